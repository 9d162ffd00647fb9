"""Creates and updates bundles atomically."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from regnet_deploy.bundle.manifest import Manifest, manifest_from_json
from regnet_deploy.bundle.reading import (
    MANIFEST,
    STORED_NAME,
    TEMPORARY,
    WEIGHTS,
    Bundle,
    StoredFile,
    open_bundle,
    parse_bundle,
    serialize,
)
from regnet_deploy.bundle.record import to_json
from regnet_deploy.errors import BundleError

#: Part that may be dropped -> the entry of the environment of the command that wrote it.
_ENTRY_OF = {"training": "train", "profile": "profile", "variants": "export", "serving": "tune"}


def create_bundle(path: str | Path, parts: Manifest | Mapping[str, Any], *, replace: bool = False) -> Bundle:
    """Create a bundle at ``path`` with these parts; an existing bundle with files is only replaced with ``replace``.

    Args:
        path: folder of the bundle.
        parts: the parts of a manifest, or by name; a value is a record or JSON data.
        replace: replace a bundle with files, such as trained weights.

    Raises:
        BundleError: the folder has other content or trained weights, or cannot be written.
    """
    folder = Path(path)
    with _writable(folder):
        is_new = not os.path.exists(folder)
        if not is_new and not os.path.isdir(folder):
            raise BundleError(f"{folder} exists and is not a bundle: choose another folder with -o")
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with _lock(folder):
                _refuse_to_replace(folder, replace)
                return _commit(folder, _written(parts), {}, {})
        except OSError:
            if is_new:
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise


def ensure_creatable(path: str | Path, *, replace: bool = False) -> None:
    """Check before long work that :func:`create_bundle` can create a bundle at ``path``; leaves nothing there.

    Raises:
        BundleError: it cannot.
    """
    folder = Path(path)
    with _writable(folder):
        if os.path.isdir(folder):
            with _lock(folder):
                _refuse_to_replace(folder, replace)
        elif os.path.exists(folder):
            raise BundleError(f"{folder} exists and is not a bundle: choose another folder with -o")
        else:
            with tempfile.TemporaryDirectory(dir=folder.absolute().parent):
                pass


def _refuse_to_replace(folder: Path, replace: bool) -> None:
    """Raise BundleError if a new bundle would replace other content; called with the lock held."""
    if (folder / MANIFEST).exists():
        old = None if replace else open_bundle(folder)
        if old is not None and old.files:
            raise BundleError(
                f"{folder} already holds {', '.join(sorted(old.files))}: "
                "choose another folder with -o, or give --force to start it anew"
            )
    elif any(not entry.name.startswith(TEMPORARY) for entry in folder.iterdir()):
        raise BundleError(f"{folder} exists and is not a bundle: choose another folder with -o")


def update_bundle(
    path: str | Path,
    parts: Manifest | Mapping[str, Any],
    files: Mapping[str, bytes] | None = None,
    *,
    drop: tuple[str, ...] = (),
    expect: Bundle | None = None,
) -> Bundle:
    """Add or replace parts and files in one step and return the new bundle.

    Args:
        path: folder of the bundle.
        parts: those of a manifest that are not None or empty, or parts by name; a value is a record or JSON data.
        files: contents by logical name such as ``weights.safetensors``.
        drop: parts and logical file names to remove, for example those of earlier weights; a name may be a pattern
            such as ``*.onnx``.
        expect: the bundle as the caller read it: where another command has changed the architecture, the weights or a
            part that is to be replaced since, nothing is written.

    Raises:
        BundleError: the bundle is missing, damaged, changed meanwhile, or cannot be written; it is then as before.
    """
    folder = open_bundle(path).path  # raises if there is none
    parts = _written(parts)
    with _writable(folder), _lock(folder):
        now = open_bundle(folder)
        if expect is not None and _identity(now, parts) != _identity(expect, parts):
            raise BundleError(f"{folder} was changed by another command meanwhile; nothing was written, run this again")
        kept = {name: value for name, value in now.parts.items() if name not in drop}
        stored = {name: value for name, value in now.files.items() if not any(fnmatchcase(name, one) for one in drop)}
        # Each command has an entry of its own in the environment. It is removed with the part that the command wrote.
        merged = dict(kept.get("environment", {}))
        for part, command in _ENTRY_OF.items():
            if part in drop:
                merged.pop(command, None)
        merged |= parts.get("environment", {})
        known = to_json(now.manifest)
        changed = {name: _unchanged(value, known.get(name), now.parts.get(name)) for name, value in parts.items()}
        if "variants" in changed and "variants" not in drop:  # variants of later versions are kept
            unknown = {name: now.parts["variants"][name] for name in now.unknown_variants}
            changed["variants"] = {**unknown, **changed["variants"]}
        new = {**kept, **changed, **({"environment": merged} if merged else {})}
        return _commit(folder, new, stored, dict(files or {}))


def ensure_writable(bundle: Bundle) -> None:
    """Check before long work that its result can be written.

    Raises:
        BundleError: it cannot.
    """
    with _writable(bundle.path), tempfile.TemporaryFile(dir=bundle.path) as file:
        file.write(b"test")


def _identity(bundle: Bundle, replaced: Mapping[str, Any]) -> str:
    """Return what must not change between reading a bundle and replacing these parts."""
    weights = bundle.files.get(WEIGHTS)
    names = {"architecture", *replaced} - {"environment"}
    content = [weights.sha256 if weights else None, {name: bundle.parts.get(name) for name in names}]
    return json.dumps(content, sort_keys=True)


def _written(parts: Manifest | Mapping[str, Any]) -> dict[str, Any]:
    """Return parts as JSON data.

    Raises:
        BundleError: they are not parts of a manifest.
    """
    written: dict[str, Any] = to_json(parts)
    manifest_from_json(written)
    return written


def _unchanged(new: Any, known: Any, stored: Any) -> Any:
    """Return a new value in which everything unchanged is as it was stored.

    Args:
        new: JSON data.
        known: what this version knows of the stored value.
        stored: JSON data as it was read, with unknown keys and without those that have a default.
    """
    if new == known:
        return stored
    if isinstance(new, dict) and isinstance(known, dict) and isinstance(stored, dict):
        return {
            key: _unchanged(value, known.get(key), stored.get(key))
            for key, value in new.items()
            if key in stored or key not in known or value != known[key]
        }
    if isinstance(new, list) and isinstance(known, list):
        return [stored[known.index(value)] if value in known else value for value in new]
    return new


def _commit(folder: Path, parts: dict[str, Any], files: dict[str, StoredFile], new: dict[str, bytes]) -> Bundle:
    for logical, data in new.items():
        digest = hashlib.sha256(data).hexdigest()
        stem, dot, suffix = logical.rpartition(".")
        name = f"{stem}-{digest[:12]}{dot}{suffix}" if dot else f"{logical}-{digest[:12]}"
        _write(folder, name, data)
        files[logical] = StoredFile(name, digest, len(data))
    _write(folder, MANIFEST, serialize(parts, files))
    _sweep(folder, {stored.name for stored in files.values()})
    return parse_bundle(folder, (folder / MANIFEST).read_bytes())


def _write(folder: Path, name: str, data: bytes) -> None:
    handle, temporary = tempfile.mkstemp(prefix=TEMPORARY, dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, folder / name)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sweep(folder: Path, used: set[str]) -> None:
    """Delete files of earlier versions and interrupted writes; only files with names of this module."""
    for entry in folder.iterdir():
        stale = STORED_NAME.match(entry.name) and entry.name not in used
        if stale or entry.name.startswith(TEMPORARY):
            with contextlib.suppress(OSError):
                entry.unlink()


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Lock the folder while it is changed, so that concurrent commands do not lose changes."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BundleError(
            f"cannot write {folder}: {error.strerror}; nothing was changed - free space, fix the permissions "
            "or choose another folder"
        ) from None
