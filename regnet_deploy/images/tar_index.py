"""The samples of one tar shard: where their images are, and their labels. A shard is searched once.

Shards have the form of WebDataset: members with the same key, the name up to its suffix, are one sample, as ``KEY.jpg``
and ``KEY.cls``. They are read by the standard library: webdataset reads shards from their start to their end, by which
neither the order by seed nor resumption within an epoch would hold, and has had few releases since 2025.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from regnet_deploy.durable_files import write_whole
from regnet_deploy.errors import DataError
from regnet_deploy.images.byte_ranges import stamp_of
from regnet_deploy.images.decode import SUFFIXES
from regnet_deploy.images.image_source import Stamp
from regnet_deploy.images.image_table import plain_label
from regnet_deploy.images.names import printable
from regnet_deploy.user_cache import cache_folder

#: Suffixes of members with the class of a sample; of several, the first one that has a class counts.
LABEL_SUFFIXES = (".cls", ".json", ".txt")
#: Keys of JSON members that have the class, likewise.
LABEL_KEYS = ("label", "class", "cls", "class_name", "label_name", "category", "target")
#: Bytes and characters that the member of a class, and a class, have at most.
_MEMBER_BYTES, _LABEL_LENGTH = 2**20, 200
#: First bytes of compressed files -> how they are called.
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_BLOCK, _VERSION = 512, 1


class Sample(NamedTuple):
    """Name of the member that is an image, its first byte and its bytes in the shard, and its class."""

    name: str
    offset: int
    size: int
    label: str


@dataclass(frozen=True)
class TarIndex:
    """What is in a shard.

    Attributes:
        stamp: of the shard when it was searched.
        samples: images with their classes, in the order of the shard.
        left_out: member -> why it is not used.
    """

    stamp: Stamp
    samples: tuple[Sample, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)


def tar_index(path: Path) -> TarIndex:
    """Return what is in a shard: from the cache of this user, if the shard has not changed since it was searched.

    Raises:
        DataError: it cannot be read, is no uncompressed tar archive, or is damaged or cut short.
    """
    try:
        stamp = stamp_of(path)
        cache = cache_folder("shard-indices") / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"
        known = _read_cache(cache, stamp)
        if known is None:
            known = _search(path, stamp)
            _write_cache(cache, known)
        return known
    except OSError as error:
        raise DataError(f"cannot read the shard {path}: {error.strerror}") from None


def _search(path: Path, stamp: Stamp) -> TarIndex:
    keys: dict[str, dict[str, tarfile.TarInfo]] = {}
    left_out: dict[str, str] = {}
    with path.open("rb") as file:
        for member in _members(path, file):
            key, suffix = _key(member.name)
            if not suffix or PurePosixPath(member.name).name.startswith("."):
                continue
            if not member.isreg() or member.issparse():
                left_out[member.name] = "a link or a sparse file, not a plain one"
                continue
            same = keys.setdefault(key, {})
            if suffix in same:
                left_out[f"{member.name}#2"] = "in the shard twice: the first one is read"
                continue
            same[suffix] = member
        samples = []
        for key, parts in keys.items():
            images = [suffix for suffix in parts if suffix in SUFFIXES]
            labels = [suffix for suffix in LABEL_SUFFIXES if suffix in parts]
            if len(images) != 1:
                reason = f"{len(images)} images have one key" if images else "a class without an image"
                left_out |= {parts[suffix].name: reason for suffix in images or labels}
                continue
            image = parts[images[0]]
            label = None
            reason = f"no class: {PurePosixPath(key).name}.cls, .txt or .json is missing"
            for suffix in labels:
                label, reason = _label(suffix, os.pread(file.fileno(), _MEMBER_BYTES, parts[suffix].offset_data), parts)
                if label is not None:
                    break
            if label is None:
                left_out[image.name] = reason
            else:
                samples.append(Sample(image.name, image.offset_data, image.size, label))
    return TarIndex(stamp, tuple(samples), left_out)


def _members(path: Path, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Yield the members of an archive.

    Raises:
        DataError: it is none, is compressed, or damaged. The library takes a damaged header for the end of the archive.
    """
    start = os.pread(file.fileno(), 8, 0)
    method = next((name for magic, name in _COMPRESSED.items() if start.startswith(magic)), None)
    if method:
        raise DataError(
            f"the shard {path} is compressed with {method}, and its images could not be read one by one: unpack "
            "it to a plain .tar"
        )
    found, size = 0, os.fstat(file.fileno()).st_size
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                found += 1
                if member.size < 0:  # the library would read the same headers again and again
                    raise tarfile.ReadError(f"{printable(member.name)} has a negative size")
                if archive.offset > size:
                    raise tarfile.ReadError("unexpected end of data")
                yield member
            end = os.pread(file.fileno(), _BLOCK, archive.offset)
            if not end:  # cut between two members, or still being written
                raise tarfile.ReadError("no end mark")
            if end.strip(b"\0"):
                raise tarfile.ReadError(f"no header at byte {archive.offset:,}")
    # A header may say any size of a name and of attributes, which the library reads at once, and follow any number of
    # headers of attributes, by recursion.
    except (tarfile.TarError, EOFError, ValueError, OverflowError, MemoryError, RecursionError) as error:
        error = error if str(error) else tarfile.ReadError("a header has an impossible size")
        if not found:
            raise DataError(f"the shard {path} is no tar archive: {error}") from None
        raise DataError(
            f"the shard {path} is damaged or cut short after {found:,} members ({error}): copy it again, or leave "
            "it out"
        ) from None


def _key(name: str) -> tuple[str, str]:
    """Return the key and the suffix of a member; the suffix is "" if it is neither an image nor a class.

    As in WebDataset, the key ends at the first dot of the file; where that leaves no known suffix, at the last one.
    """
    path = PurePosixPath(name)
    stem, dot, rest = path.name.partition(".")
    for key, suffix in ((stem, f"{dot}{rest}".lower()), (path.stem, path.suffix.lower())):
        if suffix in SUFFIXES or suffix in LABEL_SUFFIXES:
            return str(path.with_name(key)) if key else name, suffix
    return name, ""


def _label(suffix: str, data: bytes, parts: Mapping[str, tarfile.TarInfo]) -> tuple[str | None, str]:
    """Return the class that a member names, or None and why it names none."""
    member = parts[suffix]
    data = data[: member.size]
    if member.size > _MEMBER_BYTES:
        return None, f"no class: {member.name} is larger than {_MEMBER_BYTES // 2**20} MiB"
    try:
        text: Any = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None, f"no class: {member.name} is not UTF-8"
    if suffix == ".json":
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            return None, f"no class: {member.name} is no JSON"
        values = [content.get(key) for key in LABEL_KEYS] if isinstance(content, dict) else [content]
        text = next((each for each in values if isinstance(each, str | int) and not isinstance(each, bool)), "")
        if text == "":
            return None, f"no class: {member.name} has none of {', '.join(LABEL_KEYS)}"
    label = plain_label(text)
    if not label:
        return None, f"no class: {member.name} is empty"
    if len(label) > _LABEL_LENGTH:
        return None, f"no class: {member.name} has more than {_LABEL_LENGTH} characters, as captions have"
    return label, ""


def _read_cache(cache: Path, stamp: Stamp) -> TarIndex | None:
    try:
        data = json.loads(cache.read_text(encoding="utf-8"))
        if data["version"] != _VERSION or Stamp(*data["stamp"]) != stamp:
            return None
        return TarIndex(stamp, tuple(Sample(*each) for each in data["samples"]), data["left_out"])
    except (OSError, ValueError, TypeError, KeyError):
        return None  # there is none, or not of this version


def _write_cache(cache: Path, index: TarIndex) -> None:
    """Keep what was found. Where that is not possible, the shard is searched again the next time."""
    with contextlib.suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_whole(cache, json.dumps({"version": _VERSION, **asdict(index)}).encode())
