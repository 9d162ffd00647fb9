"""Images that are parts of larger files: members of tar archives, values of Arrow tables."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.images.decode import ImageError
from regnet_deploy.images.image_source import MAX_BYTES, Stamp


class ByteRange(NamedTuple):
    """Where an image is: number of its file, first byte, bytes."""

    file: int
    offset: int
    size: int


@dataclass(frozen=True, eq=False)
class ByteRangeSource:
    """Images that are ranges of bytes in files. Each is read by one ``pread``, whatever the others are.

    Attributes:
        root: folder, file or pattern that names the files.
        names: of the images.
        files: absolute paths of the files.
        stamps: of the files when the ranges were found.
        ranges: file, first byte and bytes of each image, ``(n, 3)`` int64.
    """

    root: Path
    names: tuple[str, ...]
    files: tuple[str, ...]
    stamps: tuple[Stamp, ...]
    ranges: NDArray[np.int64]

    def read(self, index: int) -> bytes:
        """Return the encoded image.

        Raises:
            ImageError: its file cannot be read, or was changed after the ranges were found.
        """
        name, (number, offset, size) = self.names[index], self.ranges[index].tolist()
        if size > MAX_BYTES:
            raise ImageError(name, f"larger than {MAX_BYTES // 2**20} MiB")
        try:
            file = os.open(self.files[number], os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                if _content(_stamp(os.fstat(file))) != _content(self.stamps[number]):
                    raise ImageError(name, f"{self.files[number]} was changed after it was listed")
                parts = []
                while size:
                    part = os.pread(file, size, offset)
                    if not part:
                        raise ImageError(name, f"{self.files[number]} ends before it")
                    parts.append(part)
                    offset, size = offset + len(part), size - len(part)
            finally:
                os.close(file)
        except OSError as error:
            raise ImageError(name, f"{self.files[number]} cannot be read: {error.strerror}") from None
        return b"".join(parts)

    def stamp(self, index: int) -> Stamp:
        """Return the size of the image, and times and number of its file."""
        number = int(self.ranges[index, 0])
        try:
            status = os.stat(self.files[number])
        except OSError as error:
            raise ImageError(self.names[index], f"{self.files[number]} cannot be read: {error.strerror}") from None
        return _stamp(status)._replace(size=int(self.ranges[index, 2]))


def stamp_of(path: str | Path) -> Stamp:
    """Return size, times and number of a file that ranges are to be found in.

    Raises:
        OSError: it cannot be found.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(0, "not a file")
    return _stamp(status)


def ranges_array(ranges: list[ByteRange]) -> NDArray[np.int64]:
    """Return the ranges as ``(n, 3)`` int64."""
    return np.array(ranges, np.int64).reshape(len(ranges), 3)


def _stamp(status: os.stat_result) -> Stamp:
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def _content(stamp: Stamp) -> tuple[int, int, int]:
    """Return what changes with the content of a file, and not with its owner or its links."""
    return stamp.size, stamp.mtime_ns, stamp.inode
