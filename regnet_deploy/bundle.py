"""The bundle: one folder that grows from budget to served model, never half-written.

``bundle.json`` is the manifest. It holds *parts* (architecture, training, profile, ...), each written by one command,
and the table of *files*. A file lies in the folder under a name that carries the start of its sha256
(``weights-3f2a9c1b0d4e.safetensors``), so a new version never overwrites the old one: new files are written and synced
first, then the manifest is replaced in one rename, then files that nothing names any more are deleted. Whatever moment
a crash or a full disk picks, the manifest on disk and the files it names agree.

The manifest carries the sha256 of its own content, and its bytes are the canonical ones for that content, so a changed
byte anywhere in a bundle is found.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regnet_deploy.errors import BundleError, MissingPart

SCHEMA = 1
MANIFEST = "bundle.json"
WEIGHTS = "weights.safetensors"
DEFAULT_PATH = "regnet-bundle"

#: Part of the manifest -> the command that makes it.
MADE_BY = {
    "architecture": "select --gflops 4",
    "selection": "select --gflops 4",
    "preprocessing": "select --gflops 4",
    "training": "train --data DIR",
    "labels": "train --data DIR",
    "weights": "train --data DIR",
    "profile": "profile",
    "golden": "export --onnx",
    "variants": "export --onnx",
    "choice": "export --data DIR",
    "serving": "tune --p99-ms 20",
}

#: Part -> the entry of the environment that tells what wrote it, where the part may be dropped.
_ENTRY_OF = {"profile": "profile", "variants": "export"}

_STORED_NAME = re.compile(r"[A-Za-z0-9._-]+-[0-9a-f]{12}(\.[A-Za-z0-9]+)?\Z")
_TEMPORARY = ".incomplete-"
#: Of a manifest; those of large sweeps of precisions have a hundredth of it.
_MAX_MANIFEST_BYTES = 256 * 2**20


@dataclass(frozen=True)
class StoredFile:
    """Where a file of the bundle lies, and what it must be."""

    name: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Bundle:
    """A bundle as it was when it was read: its folder, its parts and its files."""

    path: Path
    parts: Mapping[str, Any]
    files: Mapping[str, StoredFile]
    digest: str

    def __contains__(self, part: str) -> bool:
        """Tell whether the manifest has this part."""
        return part in self.parts

    def part(self, name: str) -> Any:
        """Return a part of the manifest.

        Raises:
            MissingPart: it is not there yet; the message names the command that makes it.
        """
        if name not in self.parts:
            raise MissingPart(f"{self.path} has no {name} yet: run `regnet-deploy {MADE_BY.get(name, name)}` first")
        return self.parts[name]

    @property
    def is_trained(self) -> bool:
        """Whether it holds trained weights."""
        return WEIGHTS in self.files

    def stored_path(self, logical: str) -> Path:
        """Return where the file known as ``logical`` lies, without reading it.

        Raises:
            MissingPart: the bundle has no such file.
        """
        if logical not in self.files:
            stem = logical.split(".")[0]
            raise MissingPart(f"{self.path} has no {logical} yet: run `regnet-deploy {MADE_BY.get(stem, stem)}` first")
        return self.path / self.files[logical].name

    def read(self, logical: str) -> bytes:
        """Return the bytes of the file known as ``logical``, checked against the manifest.

        Raises:
            MissingPart: the bundle has no such file.
            BundleError: the file is gone or its bytes changed.
        """
        path, wanted = self.stored_path(logical), self.files[logical]
        try:
            data = _read_file(path, wanted.bytes)
        except OSError as error:
            raise BundleError(
                f"cannot read {path}: {error.strerror}; make the bundle again or restore the file"
            ) from None
        if len(data) != wanted.bytes or hashlib.sha256(data).hexdigest() != wanted.sha256:
            raise BundleError(
                f"{path} is damaged: its sha256 is not the {wanted.sha256[:12]}... of {MANIFEST}; "
                "restore it or make it again with the command that wrote it"
            )
        return data


def _read_file(path: Path, most: int) -> bytes:
    """Return the first ``most`` bytes of a file and one more, if there is one; of nothing but a file.

    What stands in the place of a file may be a pipe, which would be waited for, or a device without an end.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        return file.read(most + 1)


def open_bundle(path: str | Path) -> Bundle:
    """Read the manifest of the bundle at ``path`` and check it (the files are checked when they are read).

    Raises:
        BundleError: missing, damaged, not a bundle, or written by a newer schema.
    """
    folder = Path(path)
    manifest = folder / MANIFEST
    try:
        raw = _read_file(manifest, _MAX_MANIFEST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        what = "does not exist"
        if os.path.exists(folder):
            what = "is a folder without bundle.json" if os.path.isdir(folder) else "is a file"
        raise BundleError(
            f"no bundle at {folder}: it {what}; make one with `regnet-deploy select --gflops 4 -o {folder}`"
        ) from None
    except OSError as error:
        raise BundleError(f"cannot read {manifest}: {error.strerror}") from None
    return _parse(folder, raw)


def create_bundle(path: str | Path, parts: Mapping[str, Any], *, replace: bool = False) -> Bundle:
    """Start a bundle at ``path`` with these parts; one with trained weights is kept unless ``replace``.

    Raises:
        BundleError: the folder holds something else, holds trained weights, or cannot be written.
    """
    folder = Path(path)
    with _writable(folder):
        made = not os.path.exists(folder)
        if not made and not os.path.isdir(folder):
            raise BundleError(f"{folder} exists and is not a bundle: choose another folder with -o")
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with _lock(folder):
                _refuse_to_replace(folder, replace)
                return _commit(folder, dict(parts), {}, {})
        except OSError:
            if made:
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise


def ensure_creatable(path: str | Path, *, replace: bool = False) -> None:
    """Find out before long work whether :func:`create_bundle` could start a bundle at ``path``; nothing is left there.

    Raises:
        BundleError: it could not.
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
    """Refuse to start a bundle where there is something to lose; called with the lock held."""
    if (folder / MANIFEST).exists():
        old = None if replace else open_bundle(folder)
        if old is not None and old.files:
            raise BundleError(
                f"{folder} already holds {', '.join(sorted(old.files))}: "
                "choose another folder with -o, or give --force to start it anew"
            )
    elif any(not entry.name.startswith(_TEMPORARY) for entry in folder.iterdir()):
        raise BundleError(f"{folder} exists and is not a bundle: choose another folder with -o")


def update_bundle(
    path: str | Path,
    parts: Mapping[str, Any],
    files: Mapping[str, bytes] | None = None,
    *,
    drop: tuple[str, ...] = (),
    expect: Bundle | None = None,
) -> Bundle:
    """Add or replace parts and files in one step and return the new bundle.

    Args:
        path: folder of the bundle.
        parts: manifest parts by name; the value is JSON data.
        files: contents by logical name such as ``weights.safetensors``.
        drop: parts and logical file names to remove (what new weights make untrue, for example).
        expect: the bundle as the caller read it: where another command has changed the architecture, the weights or a
            part that is to be replaced since, nothing is written.

    Raises:
        BundleError: the bundle is missing, damaged, changed meanwhile, or cannot be written; it is then as before.
    """
    folder = open_bundle(path).path  # says in its own words where there is none
    with _writable(folder), _lock(folder):
        now = open_bundle(folder)
        if expect is not None and _identity(now, parts) != _identity(expect, parts):
            raise BundleError(f"{folder} was changed by another command meanwhile; nothing was written, run this again")
        kept = {name: value for name, value in now.parts.items() if name not in drop}
        stored = {name: value for name, value in now.files.items() if name not in drop}
        # Each command adds its own entry to the environment: that of another one is never in the way. An entry goes
        # with the part that it tells of.
        merged = {**kept.get("environment", {}), **parts.get("environment", {})}
        for part, command in _ENTRY_OF.items():
            if part in drop:
                merged.pop(command, None)
        new = {**kept, **parts, **({"environment": merged} if merged else {})}
        return _commit(folder, new, stored, dict(files or {}))


def ensure_writable(bundle: Bundle) -> None:
    """Find out before long work whether its result can be written.

    Raises:
        BundleError: it cannot.
    """
    with _writable(bundle.path), tempfile.TemporaryFile(dir=bundle.path) as file:
        file.write(b"room?")


def find_damage(bundle: Bundle) -> list[str]:
    """Return one line for each file of the bundle that is gone, changed or not in the manifest (empty: all is well)."""
    problems = []
    for logical in sorted(bundle.files):
        try:
            bundle.read(logical)
        except BundleError as error:
            problems.append(str(error))
    known = {stored.name for stored in bundle.files.values()} | {MANIFEST}
    for entry in sorted(bundle.path.iterdir()):
        if entry.name not in known and not entry.name.startswith(_TEMPORARY):
            problems.append(f"{entry} is not part of the bundle: delete it or keep it elsewhere")
    return problems


def _identity(bundle: Bundle, replaced: Mapping[str, Any]) -> str:
    """Return what must not change between reading a bundle and replacing these parts of it."""
    weights = bundle.files.get(WEIGHTS)
    names = {"architecture", *replaced} - {"environment"}
    content = [weights.sha256 if weights else None, {name: bundle.parts.get(name) for name in names}]
    return json.dumps(content, sort_keys=True)


def _parse(folder: Path, raw: bytes) -> Bundle:
    manifest = folder / MANIFEST
    damaged = BundleError(
        f"{manifest} is damaged (its own sha256 does not match): restore it, or start again with "
        f"`regnet-deploy select --gflops 4 -o {folder} --force`"
    )
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        raise damaged from None
    if not isinstance(document, dict) or not isinstance(document.get("schema"), int):
        raise damaged
    if document["schema"] > SCHEMA:
        raise BundleError(
            f"{manifest} has schema {document['schema']}, this regnet-deploy reads up to {SCHEMA}: "
            "pip install --upgrade regnet-deploy"
        )
    try:
        parts, table, digest = document["parts"], document["files"], document["sha256"]
        files = {logical: StoredFile(**entry) for logical, entry in table.items()}
        canonical = _serialise(parts, files)
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):  # ValueError: a number like 1e400
        raise damaged from None
    if canonical != raw:
        raise damaged
    for stored in files.values():
        if not _STORED_NAME.match(stored.name):  # never follow a name out of the folder
            raise damaged
    return Bundle(folder, parts, files, digest)


def _serialise(parts: Mapping[str, Any], files: Mapping[str, StoredFile]) -> bytes:
    content = {
        "schema": SCHEMA,
        "parts": dict(parts),
        "files": {name: vars(stored) for name, stored in files.items()},
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()
    text = json.dumps({**content, "sha256": digest}, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass") + b"\n"


def _commit(folder: Path, parts: dict[str, Any], files: dict[str, StoredFile], new: dict[str, bytes]) -> Bundle:
    for logical, data in new.items():
        digest = hashlib.sha256(data).hexdigest()
        stem, dot, suffix = logical.rpartition(".")
        name = f"{stem}-{digest[:12]}{dot}{suffix}" if dot else f"{logical}-{digest[:12]}"
        _write(folder, name, data)
        files[logical] = StoredFile(name, digest, len(data))
    _write(folder, MANIFEST, _serialise(parts, files))
    _sweep(folder, {stored.name for stored in files.values()})
    return _parse(folder, (folder / MANIFEST).read_bytes())


def _write(folder: Path, name: str, data: bytes) -> None:
    handle, temporary = tempfile.mkstemp(prefix=_TEMPORARY, dir=folder)
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
    """Delete what an earlier version or an interrupted write left; only names that this module gives."""
    for entry in folder.iterdir():
        stale = _STORED_NAME.match(entry.name) and entry.name not in used
        if stale or entry.name.startswith(_TEMPORARY):
            with contextlib.suppress(OSError):
                entry.unlink()


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the folder itself while it is changed, so that two commands cannot lose each other's part."""
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
