"""Creates and updates bundles atomically."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from regnet_deploy.bundle.manifest import Manifest, manifest_from_json
from regnet_deploy.bundle.reading import (
    COPY_NAME,
    MANIFEST,
    STORED_NAME,
    WEIGHTS,
    Bundle,
    StoredFile,
    bundle_as_argument,
    copy_name,
    find_copies,
    open_bundle,
    parse_bundle,
    serialize,
)
from regnet_deploy.bundle.record import to_json
from regnet_deploy.durable_files import TEMPORARY, lock, sync_folder, write_whole
from regnet_deploy.errors import BundleError

#: Part that may be dropped -> the entry of the environment of the command that wrote it.
_ENTRY_OF = {"training": "train", "profile": "profile", "variants": "export", "serving": "tune"}


def create_bundle(
    path: str | Path,
    parts: Manifest | Mapping[str, Any],
    files: Mapping[str, bytes] | None = None,
    *,
    replace: bool = False,
) -> Bundle:
    """Create a bundle at ``path`` with these parts; an existing bundle with files is only replaced with ``replace``.

    Args:
        path: folder of the bundle.
        parts: the parts of a manifest, or by name; a value is a record or JSON data.
        files: contents of its files, by logical name.
        replace: replace a bundle with files, such as trained weights.

    Raises:
        BundleError: the folder has other content or trained weights, or cannot be written.
    """
    folder, written = Path(path), _written(parts)
    with writable(folder):
        if os.path.lexists(folder) and not os.path.isdir(folder):
            raise BundleError(f"{folder} exists and is not a bundle: choose another folder with -o")
        missing = [each for each in (folder, *folder.absolute().parents) if not each.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with lock_folder(folder):
                _refuse_to_replace(folder, replace)
                return commit(folder, written, {}, files or {})
        except BaseException:
            for each in missing:
                with contextlib.suppress(OSError):  # it is not empty
                    each.rmdir()
            raise


def ensure_creatable(path: str | Path, *, replace: bool = False) -> None:
    """Check before long work that :func:`create_bundle` can create a bundle at ``path``; leaves nothing there.

    Raises:
        BundleError: it cannot.
    """
    folder = Path(path)
    with writable(folder):
        if os.path.isdir(folder):
            with lock_folder(folder):
                _refuse_to_replace(folder, replace)
        elif os.path.lexists(folder):
            raise BundleError(f"{folder} exists and is not a bundle: choose another folder with -o")
        else:
            with tempfile.TemporaryDirectory(dir=folder.absolute().parent):
                pass


def _refuse_to_replace(folder: Path, replace: bool) -> None:
    """Raise BundleError if a new bundle would replace other content; called with the lock held."""
    # A copy of the manifest alone is what a command left that was killed while it created the bundle.
    others = [path.name for path in folder.iterdir() if not (COPY_NAME.match(path.name) or _is_temporary(path.name))]
    if MANIFEST in others or (others and find_copies(folder)):
        old = None if replace else open_bundle(folder)
        if old is not None and old.files:
            raise BundleError(
                f"{folder} already holds {', '.join(sorted(old.files))}: "
                "choose another folder with -o, or give --force to start it anew"
            )
    elif others:
        raise BundleError(f"{folder} exists and is not a bundle: choose another folder with -o")


def _is_temporary(name: str) -> bool:
    return name.startswith(TEMPORARY)


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
    with writable(folder), lock_folder(folder) as is_locked:
        now = open_bundle(folder)
        if expect is not None and _identity(now, parts) != _identity(expect, parts):
            raise _changed(folder)
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
        if is_locked:
            return commit(folder, new, stored, files or {})
        # Another command may be writing: its files are left alone, and what it has replaced is not replaced again.
        own = {copy_name(serialize(now.parts, now.files)), *(one.name for one in now.files.values())}
        return commit(folder, new, stored, files or {}, sweep=own, expect=now)


def ensure_writable(bundle: Bundle) -> None:
    """Check before long work that its result can be written.

    Raises:
        BundleError: it cannot.
    """
    with writable(bundle.path), tempfile.TemporaryFile(dir=bundle.path) as file:
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


def commit(
    folder: Path,
    parts: Mapping[str, Any],
    files: Mapping[str, StoredFile],
    new: Mapping[str, bytes],
    *,
    sweep: Collection[str] | None = None,
    expect: Bundle | None = None,
) -> Bundle:
    """Write files, then replace the manifest, then delete files of earlier manifests; called with the lock held.

    Args:
        folder: of the bundle.
        parts: all parts of the new manifest, JSON data.
        files: files that it keeps, by logical name.
        new: contents of new files, by logical name.
        sweep: names of the files that may be deleted; None is every file with a name of a stored file.
        expect: the bundle that is replaced, where it may change meanwhile because the folder could not be locked.

    Raises:
        OSError: the bundle is as before.
        BundleError: it was changed by another command meanwhile; or it has its new content, but it is not known whether
            that is on the disk.
    """
    contents: dict[str, bytes] = {}
    table = dict(files)
    for logical, data in new.items():
        digest = hashlib.sha256(data).hexdigest()
        stem, dot, suffix = logical.rpartition(".")
        name = f"{stem}-{digest[:12]}{dot}{suffix}" if dot else f"{logical}-{digest[:12]}"
        contents[name], table[logical] = data, StoredFile(name, digest, len(data))
    raw = serialize(parts, table)
    bundle = parse_bundle(folder, raw)  # what could not be read again is not written
    contents[copy_name(raw)] = raw
    earlier = set(os.listdir(folder))
    try:
        for name, data in contents.items():
            write_whole(folder / name, data)
        sync_folder(folder)
        if expect is not None and open_bundle(folder).digest != expect.digest:
            raise _changed(folder)
        write_whole(folder / MANIFEST, raw)
    except BaseException:
        # The manifest tells whether the last rename was done: Ctrl-C may come right behind it.
        if not _has_manifest(folder, raw):
            for name in contents.keys() - earlier:
                with contextlib.suppress(OSError):
                    os.unlink(folder / name)
        raise
    try:
        sync_folder(folder)
    except OSError as error:
        raise BundleError(
            f"{folder} has its new content, but the file system cannot tell whether that is on the disk: "
            f"{error.strerror}; check the disk, then run `regnet-deploy verify{bundle_as_argument(folder)}`"
        ) from None
    _sweep(folder, {copy_name(raw), *(stored.name for stored in table.values())}, sweep)
    return bundle


def _has_manifest(folder: Path, raw: bytes) -> bool:
    try:
        return (folder / MANIFEST).read_bytes() == raw
    except OSError:
        return False


def _changed(folder: Path) -> BundleError:
    return BundleError(f"{folder} was changed by another command meanwhile; nothing was written, run this again")


def _sweep(folder: Path, used: Collection[str], only: Collection[str] | None) -> None:
    """Delete files of earlier manifests and of interrupted commands; only files with names of this module.

    What cannot be deleted is left: the bundle is complete, and the next command tries again.
    """
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            stale = (STORED_NAME.match(name) and name not in used) or _is_temporary(name)
            if stale and (only is None or name in only):
                with contextlib.suppress(OSError):
                    os.unlink(folder / name)


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[bool]:
    """Lock the folder while it is changed, so that concurrent commands do not lose changes.

    Yields False where the file system has no locks.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        yield lock(handle, fcntl.LOCK_EX)
    finally:
        os.close(handle)


@contextlib.contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Turn an OSError, after which the folder is as before, into a BundleError."""
    try:
        yield
    except OSError as error:
        raise BundleError(
            f"cannot write {folder}: {error.strerror}; nothing was changed - free space, fix the permissions "
            "or choose another folder"
        ) from None
