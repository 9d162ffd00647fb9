"""Decoded images in one file, read by memory mapping.

Two files have one name: ``.pixels`` has the pixels of one image after the other, and ``.index`` a header and a line of
JSON for each image with its name, its stamp and where its pixels are. Both only grow. The line of an image is written
when its pixels are on the disk, so a process that was killed leaves nothing that is wrong, and the next one goes on
after the last line. An image whose stamp has changed is packed again.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import mmap
import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from regnet_deploy.cpu import available_cores
from regnet_deploy.durable_files import lock, sync
from regnet_deploy.errors import DataError, require
from regnet_deploy.images.decode import ImageError
from regnet_deploy.images.image_source import ImageSource, Stamp
from regnet_deploy.progress import Progress

if TYPE_CHECKING:
    from PIL.Image import Image

#: Space that packing leaves free, bytes: checkpoints and the bundle need some.
FREE_BYTES = 2**30
#: Images that are on the disk before the index names them.
_CHUNK = 256
_POLL_S = 0.2
_VERSION = 1
_PREFIX = "packed-"


@dataclass(frozen=True)
class Entry:
    """Where the pixels of an image are in the file, and its width and height."""

    offset: int
    width: int
    height: int


class PackedImages:
    """Images by number, from a packed file; None where an image is not in it. Forked processes share the memory."""

    def __init__(self, path: Path, entries: Sequence[Entry | None], channels: int) -> None:
        self._entries, self._channels = entries, channels
        self._pixels = memoryview(b"")
        if any(entries):
            with path.open("rb") as file:
                self._pixels = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def __getitem__(self, number: int) -> Image | None:
        """Return an image, RGB or gray."""
        entry = self._entries[number]
        if entry is None:
            return None
        size = (entry.width, entry.height)
        pixels = self._pixels[entry.offset : entry.offset + self._channels * entry.width * entry.height]
        mode = "L" if self._channels == 1 else "RGB"
        image: Image = require("PIL.Image", "train").frombuffer(mode, size, pixels, "raw", mode, 0, 1)
        return image

    def __len__(self) -> int:
        """Return the number of images, with those that are not in the file."""
        return len(self._entries)


@dataclass(frozen=True)
class Packing:
    """What a packed file has.

    Attributes:
        source: where the images come from.
        indices: of the images in the source.
        channels: 3 for RGB, 1 for gray.
        description: of how their pixels are made; a file with another one is written anew.
        total: bytes of all of them, decoded.
        decoded: returns the image of a number, or anything else where it cannot be read.
    """

    source: ImageSource
    indices: Sequence[int]
    channels: int
    description: str
    total: int
    decoded: Callable[[int], Image | object]

    @property
    def name(self) -> str:
        """Name of the two files without their suffixes: the same images have the same one, whatever they contain."""
        root = os.path.realpath(self.source.root)
        return f"{_PREFIX}{hashlib.sha256(os.fsencode(root) + self.header).hexdigest()[:12]}"

    @property
    def header(self) -> bytes:
        """First line of the index."""
        return f"{json.dumps({'packed': _VERSION, 'channels': self.channels, 'pixels': self.description})}\n".encode()

    def size(self, entry: Entry) -> int:
        """Return the bytes of an image."""
        return self.channels * entry.width * entry.height


def pack_images(folder: Path, packing: Packing, progress: Progress) -> PackedImages:
    """Return the images from a file in a folder, after those that are not in it yet were decoded into it.

    Another process that packs the same images is waited for.

    Raises:
        DataError: the folder cannot be written, or has too little space.
    """
    path, index_path = folder / f"{packing.name}.pixels", folder / f"{packing.name}.index"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with index_path.open("a+b") as index:
            _wait_for_lock(index, folder, progress)
            found, stamps, end = _found(path, index, packing)
            missing = [number for number, entry in enumerate(found) if entry is None and stamps[number] is not None]
            if missing:
                _ensure_space(folder, packing, found)
                progress.message(
                    f"{len(missing):,} training images are decoded once, into {folder} ({packing.total / 1e9:.2f} GB); "
                    "--cache off decodes them in every epoch"
                )
                progress.step("packing images", len(missing))
            with path.open("ab") as pixels:
                pixels.seek(pixels.truncate(end))  # what the index does not name was left by a killed process
                try:
                    for start in range(0, len(missing), _CHUNK):
                        _append(pixels, index, packing, missing[start : start + _CHUNK], found, stamps)
                        progress.update(start + _CHUNK)
                except OSError:  # the disk is full
                    index.truncate(0)
                    path.unlink()
                    raise
            return PackedImages(path, found, packing.channels)
    except OSError as error:
        raise DataError(
            f"cannot pack images into {folder}: {error.strerror}; give another folder with --cache DIR, or --cache off"
        ) from None


def drop_packed(folder: Path, keep: str = "") -> None:
    """Delete the packed files in a run directory, which is locked, but for those of this name."""
    for path in folder.glob(f"{_PREFIX}*"):
        if path.suffix in (".pixels", ".index") and path.stem != keep:
            path.unlink(missing_ok=True)


def _found(path: Path, index: IO[bytes], packing: Packing) -> tuple[list[Entry | None], list[Stamp | None], int]:
    """Return the entries of the images that are in the file, the stamps of all, and the end of the file's pixels.

    A file of images that have changed for the most part is dropped. Whoever reads from it keeps it until then.
    """
    known, end = _read(index, packing, path.stat().st_size if path.exists() else 0)
    stamps = [_stamp(packing.source, i) for i in packing.indices]
    names = [packing.source.names[i] for i in packing.indices]
    found = [known.get((name, stamp)) if stamp else None for name, stamp in zip(names, stamps, strict=True)]
    stale = end - sum(packing.size(entry) for entry in found if entry)
    if not known or stale > packing.total:
        index.truncate(0)
        index.write(packing.header)
        index.flush()
        sync(index.fileno())
        path.unlink(missing_ok=True)
        return [None] * len(found), stamps, 0
    return found, stamps, end


def _read(index: IO[bytes], packing: Packing, size: int) -> tuple[dict[tuple[str, Stamp], Entry], int]:
    """Return the entries of an index by name and stamp, and the end of their pixels; nothing if they cannot be right.

    A line that was cut short is removed.
    """
    index.seek(0)
    content = index.read()
    lines = content[: content.rfind(b"\n") + 1].splitlines(keepends=True)
    if not lines or lines[0] != packing.header:
        return {}, 0
    index.truncate(sum(map(len, lines)))
    known, end = {}, 0
    try:
        for line in lines[1:]:
            name, stamp, *place = json.loads(line)
            known[name, Stamp(*stamp)] = entry = Entry(*place)
            end = max(end, entry.offset + packing.size(entry))
    except (ValueError, TypeError):
        return {}, 0
    return (known, end) if end <= size else ({}, 0)


def _append(
    pixels: IO[bytes],
    index: IO[bytes],
    packing: Packing,
    numbers: Sequence[int],
    found: list[Entry | None],
    stamps: Sequence[Stamp | None],
) -> None:
    """Decode images into the file, and then into the index and ``found``."""
    end, lines = pixels.tell(), []
    pool = ThreadPoolExecutor(max_workers=min(16, available_cores()))
    try:
        for number, image in zip(numbers, pool.map(packing.decoded, numbers), strict=True):
            if isinstance(image, require("PIL.Image", "train").Image):
                found[number] = entry = Entry(end, *image.size)
                end += pixels.write(image.tobytes())
                name = packing.source.names[packing.indices[number]]
                lines.append(json.dumps([name, stamps[number], *astuple(entry)]) + "\n")
    finally:
        pool.shutdown(cancel_futures=True)
    pixels.flush()
    sync(pixels.fileno())
    index.write("".join(lines).encode())
    index.flush()
    sync(index.fileno())


def _ensure_space(folder: Path, packing: Packing, found: Sequence[Entry | None]) -> None:
    needed = packing.total - sum(packing.size(entry) for entry in found if entry)
    free = shutil.disk_usage(folder).free
    if free - needed < FREE_BYTES:
        raise DataError(
            f"{folder} has {free / 1e9:.2f} GB free, and the decoded images need {needed / 1e9:.2f} GB there beside "
            f"{FREE_BYTES / 1e9:.0f} GB for checkpoints: free some space, give another folder with --cache DIR, or "
            "--cache off"
        )


def _wait_for_lock(index: IO[bytes], folder: Path, progress: Progress) -> None:
    """Lock an index until it is closed.

    Raises:
        OSError: the file system has no locks.
    """
    waited = False
    while True:
        try:
            if lock(index.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB):
                return
            raise OSError(errno.ENOLCK, "its file system has no locks")
        except BlockingIOError:
            if not waited:
                progress.message(f"waiting for another training, which packs the same images into {folder}")
            waited = True
            time.sleep(_POLL_S)


def _stamp(source: ImageSource, index: int) -> Stamp | None:
    try:
        return source.stamp(index)
    except ImageError:
        return None
