"""The bundle: one folder that grows from a budget to a served model, never half-written.

``bundle.json`` is the manifest. It holds *parts* (architecture, training, profile, ...), each written by one command,
and the table of *files*. A file lies in the folder under a name that contains the start of its sha256
(``weights-3f2a9c1b0d4e.safetensors``), so a new version never overwrites the old one: new files are written and synced
first, then the manifest is replaced by one rename, then files that are no longer in it are deleted. At every moment,
also after a crash or on a full disk, the manifest and the files that it names agree. Files that it does not name are
what an interrupted command left; they do no harm, and the next command that writes deletes them.

The manifest contains the sha256 of its own content, and its bytes are the canonical ones for that content, so a changed
byte anywhere in a bundle is found. A copy of it lies beside it (``bundle-3f2a9c1b0d4e.json``), from which
:func:`regnet_deploy.bundle.repair.repair_bundle` restores a damaged one.

Parts are read as records (:mod:`regnet_deploy.bundle.manifest`), and all of them are validated when a bundle is opened.
What does not change is written as it was read: an unknown key, which a later version may have written, stays as long as
nothing beside it in the same JSON object changes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shlex
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

from regnet_deploy.bundle.manifest import (
    Architecture,
    Choice,
    Golden,
    Manifest,
    Preprocessing,
    SelectionRecord,
    manifest_from_json,
)
from regnet_deploy.bundle.measurements import Profile, Serving
from regnet_deploy.bundle.missing_manifest import describe_missing_manifest
from regnet_deploy.bundle.training import Training
from regnet_deploy.bundle.variants import Variant
from regnet_deploy.errors import BundleError, DamagedManifest, MissingPart, UsageError

T = TypeVar("T")

SCHEMA = 1
MANIFEST = "bundle.json"
WEIGHTS = "weights.safetensors"
DEFAULT_PATH = "regnet-bundle"

#: Part of the manifest -> the command that writes it.
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


def bundle_as_argument(path: str | Path) -> str:
    """Return what names a bundle in a command line: nothing for the default one, else a space and its path.

    A shell reads the path as it is: it is quoted where that is necessary.
    """
    return "" if str(path) == DEFAULT_PATH else f" {shlex.quote(str(path))}"


def _command(part: str, path: str | Path) -> str:
    """Return the command line that writes a part of a bundle."""
    command, argument = MADE_BY.get(part, part), bundle_as_argument(path)
    return f"regnet-deploy {command}{' -o' if argument and command.startswith('select') else ''}{argument}"


#: Names of stored files.
STORED_NAME = re.compile(r"[A-Za-z0-9._-]+-([0-9a-f]{12})(\.[A-Za-z0-9]+)?\Z")
#: Endings of the large files of a bundle; images may have names like those of stored files.
STORED_SUFFIXES = (".onnx", ".plan", ".safetensors")
#: Names of copies of the manifest.
COPY_NAME = re.compile(r"bundle-[0-9a-f]{12}\.json\Z")
#: Maximum size of a manifest; large ones have a hundredth of it.
_MAX_MANIFEST_BYTES = 256 * 2**20


@dataclass(frozen=True)
class StoredFile:
    """A file of the bundle: its name in the folder, sha256 and size."""

    name: str
    sha256: str
    bytes: int


class _Part(Generic[T]):
    """An attribute of a bundle: the part of the manifest with its name.

    Raises:
        MissingPart: the bundle does not have it yet; the message names the command that makes it.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, bundle: None, owner: type) -> _Part[T]: ...

    @overload
    def __get__(self, bundle: Bundle, owner: type) -> T: ...

    def __get__(self, bundle: Bundle | None, owner: type) -> _Part[T] | T:
        if bundle is None:
            return self
        value: T | None = getattr(bundle.manifest, self._name)
        if not value:
            raise MissingPart(f"{bundle.path} has no {self._name} yet: run `{_command(self._name, bundle.path)}` first")
        return value


@dataclass(frozen=True)
class Bundle:
    """A bundle, as it was when it was read.

    An attribute with the name of a part, such as :attr:`architecture`, is that part, and raises MissingPart where it is
    not there yet; in :attr:`manifest` it is None or empty then.

    Attributes:
        path: its folder.
        manifest: its parts.
        files: logical name -> file.
        digest: sha256 of the manifest.
        parts: the parts as JSON data, with what this version does not know.
    """

    path: Path
    manifest: Manifest
    files: Mapping[str, StoredFile]
    digest: str
    parts: Mapping[str, Any]

    architecture = _Part[Architecture]()
    selection = _Part[SelectionRecord]()
    preprocessing = _Part[Preprocessing]()
    #: Class names in the order of the outputs.
    labels = _Part[tuple[str, ...]]()
    training = _Part[Training]()
    profile = _Part[Profile]()
    golden = _Part[Golden]()
    #: Exported variants by name.
    variants = _Part[dict[str, Variant]]()
    choice = _Part[Choice]()
    serving = _Part[Serving]()

    @property
    def unknown_variants(self) -> dict[str, str]:
        """Names of the variants whose runtime this version does not know, with that runtime; they cannot be used."""
        stored, known = self.parts.get("variants", {}), self.manifest.variants
        return {name: variant["runtime"] for name, variant in stored.items() if name not in known}

    @property
    def argument(self) -> str:
        """The argument that names it in a command line, see :func:`bundle_as_argument`."""
        return bundle_as_argument(self.path)

    @property
    def is_trained(self) -> bool:
        """Whether it holds trained weights."""
        return WEIGHTS in self.files

    def stored_path(self, logical: str) -> Path:
        """Return the path of a file by its logical name, without reading it.

        Raises:
            MissingPart: the bundle has no such file.
        """
        if logical not in self.files:
            stem = logical.split(".")[0]
            lacks = "is not exported yet" if stem == "golden" else f"has no {logical} yet"
            raise MissingPart(f"{self.path} {lacks}: run `{_command(stem, self.path)}` first")
        return self.path / self.files[logical].name

    def read(self, logical: str) -> bytes:
        """Return the content of a file by its logical name, checked against the manifest.

        Raises:
            MissingPart: the bundle has no such file.
            BundleError: the file is missing or damaged.
        """
        path, stored = self.stored_path(logical), self.files[logical]
        try:
            data = read_file(path, stored.bytes)
        except OSError as error:
            raise BundleError(
                f"cannot read {path}: {error.strerror}; make the bundle again or restore the file"
            ) from None
        if len(data) != stored.bytes or hashlib.sha256(data).hexdigest() != stored.sha256:
            raise BundleError(
                f"{path} is damaged: its sha256 is not the {stored.sha256[:12]}... of {MANIFEST}; "
                "restore it or make it again with the command that wrote it"
            )
        return data


def read_file(path: Path, most: int | None = None) -> bytes:
    """Return a regular file, or its first ``most`` bytes, and one more if there is one.

    Other kinds of files are rejected: reading a pipe would block, and a device may have no end.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        return file.read() if most is None else file.read(most + 1)


def open_bundle(path: str | Path) -> Bundle:
    """Read the manifest of the bundle at ``path`` and check it (the files are checked when they are read).

    Raises:
        BundleError: missing, damaged, not a bundle, or written by a newer schema.
        UsageError: it is not a path.
    """
    if not isinstance(path, str | os.PathLike):
        raise UsageError(f"a bundle is opened by the path of its folder, got {path!r:.60} ({type(path).__name__})")
    folder = Path(path)
    manifest = folder / MANIFEST
    try:
        raw = read_file(manifest, _MAX_MANIFEST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        what = "does not exist"
        if find_copies(folder):
            raise DamagedManifest(f"{manifest} is missing", _restore(folder)) from None
        names = _names(folder)
        if any(STORED_NAME.match(name) and name.endswith(STORED_SUFFIXES) for name in names):
            raise BundleError(describe_missing_manifest(folder)) from None
        new_folder = folder
        if os.path.exists(folder):
            what = "is a folder without bundle.json" if os.path.isdir(folder) else "is a file"
            if names or not os.path.isdir(folder):
                new_folder = Path("FOLDER")  # `select` refuses this path
        raise BundleError(
            f"no bundle at {folder}: it {what}; make one with `regnet-deploy select --gflops 4 -o "
            f"{shlex.quote(str(new_folder))}`"
        ) from None
    except OSError as error:
        if os.path.exists(manifest) and not os.path.isfile(manifest):
            what = "a folder" if os.path.isdir(manifest) else "a pipe or a device"
            raise DamagedManifest(f"{manifest} is {what}, not a regular file", _restore(folder)) from None
        raise BundleError(f"cannot read {manifest}: {error.strerror}") from None
    return parse_bundle(folder, raw)


def _names(folder: Path) -> list[str]:
    """Return the names in a folder; none where it is no folder or cannot be read."""
    try:
        return os.listdir(folder)
    except OSError:
        return []


def read_bundle(path: str | Path, use: Callable[[Bundle], T], is_incomplete: Callable[[T], bool] | None = None) -> T:
    """Open a bundle and use it; try once more if another command has replaced the bundle meanwhile.

    A command that writes a bundle deletes the files that are not in the new manifest, while a reader of the old
    manifest may still need them.

    Args:
        path: folder of the bundle.
        use: reads what it needs and returns a result.
        is_incomplete: tells whether a result may lack files; by default, only an error means that.

    Raises:
        BundleError: missing, damaged or newer; or what ``use`` raises.
    """
    bundle = open_bundle(path)
    try:
        result = use(bundle)
    except BundleError:
        again = open_bundle(path)
        if again.digest == bundle.digest:
            raise
        return use(again)
    if is_incomplete is not None and is_incomplete(result):
        again = open_bundle(path)
        if again.digest != bundle.digest:
            return use(again)
    return result


def find_copies(folder: Path) -> list[Path]:
    """Return the copies of manifests in a folder, the latest first; they may be damaged."""
    try:
        copies = [entry for entry in folder.iterdir() if COPY_NAME.match(entry.name) and entry.is_file()]
        return sorted(copies, key=lambda path: path.stat().st_mtime_ns, reverse=True)
    except OSError:
        return []


def copy_name(raw: bytes) -> str:
    """Return the name of the copy of a manifest with these bytes."""
    return f"bundle-{hashlib.sha256(raw).hexdigest()[:12]}.json"


def _restore(folder: Path) -> str:
    argument = bundle_as_argument(folder)
    return f"`regnet-deploy verify{argument} --repair` restores it from its copy, or restore it from a backup"


def damaged_manifest(folder: Path, reason: str) -> DamagedManifest:
    """Return the error of a manifest that is damaged."""
    return DamagedManifest(f"{folder / MANIFEST} is damaged ({reason})", _restore(folder))


def manifest_content(folder: Path, raw: bytes) -> tuple[dict[str, Any], dict[str, StoredFile], str]:
    """Return the parts, the files and the sha256 that a manifest names, without checking that they agree.

    Raises:
        BundleError: the bytes are not those of a manifest, or of a newer schema.
    """
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        raise damaged_manifest(folder, _json_damage(raw)) from None
    if not isinstance(document, dict) or not isinstance(document.get("schema"), int):
        raise damaged_manifest(folder, "it is JSON, but not a manifest")
    if document["schema"] > SCHEMA:
        raise BundleError(
            f"{folder / MANIFEST} has schema {document['schema']}, this regnet-deploy reads up to {SCHEMA}: "
            "pip install --upgrade regnet-deploy"
        )
    try:
        parts, table, digest = document["parts"], document["files"], document["sha256"]
        files = {logical: StoredFile(**entry) for logical, entry in table.items()}
        serialize(parts, files)
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):  # ValueError: a number like 1e400
        raise damaged_manifest(folder, "it is JSON, but not a manifest") from None
    return parts, files, digest


def _json_damage(raw: bytes) -> str:
    """Return in words what is wrong with bytes that are not JSON."""
    if not raw:
        return "it is empty"
    if b"\0" in raw:
        return f"it has zero bytes from byte {raw.index(0):,} on"
    if raw.startswith(b"{") and not raw.endswith(b"\n}\n"):  # as every manifest ends
        return f"it is cut off after {len(raw):,} bytes"
    return f"its {len(raw):,} bytes are not valid JSON"


def parse_bundle(folder: Path, raw: bytes) -> Bundle:
    """Return the bundle whose manifest has these bytes.

    Raises:
        BundleError: they are damaged or of a newer schema, or a part does not match its record.
    """
    manifest = folder / MANIFEST
    parts, files, digest = manifest_content(folder, raw)
    canonical = serialize(parts, files)
    if canonical != raw:
        was_cut = canonical.startswith(raw)
        raise damaged_manifest(folder, f"it is cut off after {len(raw):,} bytes" if was_cut else "it was changed")
    for stored in files.values():
        if not STORED_NAME.match(stored.name):  # never follow a name out of the folder
            raise damaged_manifest(folder, "it names a file outside the bundle")
    try:
        records = manifest_from_json(parts)
    except BundleError as error:
        raise BundleError(
            f"{manifest} cannot be used: {error}; if a later version wrote it, pip install --upgrade regnet-deploy"
        ) from None
    return Bundle(folder, records, files, digest, parts)


def serialize(parts: Mapping[str, Any], files: Mapping[str, StoredFile]) -> bytes:
    """Return the canonical bytes of a manifest."""
    content = {
        "schema": SCHEMA,
        "parts": dict(parts),
        "files": {name: vars(stored) for name, stored in files.items()},
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()
    text = json.dumps({**content, "sha256": digest}, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass") + b"\n"
