"""Sources of encoded images, read by index, and the simplest of them: files."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

from regnet_deploy.images.decode import ImageError

#: A larger image is refused before it is read.
MAX_BYTES = 512 * 2**20
#: Largest share of unreadable images with which an accuracy is stated. With more, the rest does not represent the set.
MAX_UNREADABLE = 0.1


class Stamp(NamedTuple):
    """Identifies the content of an image without reading it.

    Size and time of modification are the same for two files that were swapped, or that came out of one archive. The
    number of the file tells these apart, and the time of change is not set back by what copies times.

    Attributes:
        size: bytes.
        mtime_ns: time of modification.
        ctime_ns: time at which content, name, owner or permissions were changed.
        inode: number of the file.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


class ImageSource(Protocol):
    """Encoded images, read by index.

    A source can be pickled, and several threads and processes can read from it at the same time.
    """

    @property
    def root(self) -> Path:
        """Folder or file that holds the images."""

    @property
    def names(self) -> Sequence[str]:
        """Unique name of each image; a name stays the same when images are added or removed."""

    def read(self, index: int) -> bytes:
        """Return the encoded image.

        Raises:
            ImageError: it cannot be read, or is larger than :data:`MAX_BYTES`.
        """

    def stamp(self, index: int) -> Stamp:
        """Return what changes when the content of the image changes.

        Raises:
            ImageError: it cannot be found.
        """


@dataclass(frozen=True)
class FolderSource:
    """Image files below a folder, or those that a file lists.

    Attributes:
        root: the folder, or the file that lists them.
        names: paths of the files relative to ``folder``, with ``/``.
        folder: that the names are relative to; None is ``root``.
    """

    root: Path
    names: tuple[str, ...]
    folder: Path | None = None

    def read(self, index: int) -> bytes:
        """Return the content of a regular file."""
        name = self.names[index]
        return read_image_file(os.path.join(self.folder or self.root, name), name)

    def stamp(self, index: int) -> Stamp:
        """Return size, times and number of a file."""
        name = self.names[index]
        return file_stamp(os.path.join(self.folder or self.root, name), name)


@dataclass(frozen=True)
class SelectedImages:
    """Some images of another source.

    Attributes:
        of: the other source.
        names: of the images.
        indices: of the images in ``of``.
    """

    of: ImageSource
    names: tuple[str, ...]
    indices: tuple[int, ...]

    @property
    def root(self) -> Path:
        """Folder or file that holds the images."""
        return self.of.root

    def read(self, index: int) -> bytes:
        """Return the encoded image."""
        return self.of.read(self.indices[index])

    def stamp(self, index: int) -> Stamp:
        """Return what changes when the content of the image changes."""
        return self.of.stamp(self.indices[index])


def select_images(source: ImageSource, names: Iterable[str]) -> ImageSource:
    """Return a source that has these images of another one, in this order."""
    selected = tuple(names)
    if isinstance(source, FolderSource):
        return replace(source, names=selected)
    index = {name: i for i, name in enumerate(source.names)}
    return SelectedImages(source, selected, tuple(index[name] for name in selected))


def file_stamp(path: str | Path, name: str) -> Stamp:
    """Return size, times and number of a file.

    Args:
        path: the file.
        name: what messages call it.

    Raises:
        ImageError: it cannot be found.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise _unreadable(name, error) from None
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def read_image_file(path: str | Path, name: str | None = None) -> bytes:
    """Return the content of one image file. A named pipe or a device is not waited for.

    Args:
        path: the file.
        name: what messages call it; the path by default.

    Raises:
        ImageError: it is not a regular file, cannot be read, or is larger than :data:`MAX_BYTES`.
    """
    name = str(path) if name is None else name
    try:
        # O_NONBLOCK: opening a named pipe would wait for a writer.
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                raise ImageError(name, "not a file")
            if status.st_size > MAX_BYTES:
                raise ImageError(name, f"larger than {MAX_BYTES // 2**20} MiB")
            with open(file, "rb", buffering=0, closefd=False) as opened:
                return opened.read()
        finally:
            os.close(file)
    except OSError as error:
        raise _unreadable(name, error) from None


def read_head(path: str | Path, size: int = 4096) -> bytes:
    """Return the first bytes of a regular file; nothing if it is none or cannot be read."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return os.read(file, size) if stat.S_ISREG(os.fstat(file).st_mode) else b""
        finally:
            os.close(file)
    except OSError:
        return b""


def _unreadable(name: str, error: OSError) -> ImageError:
    return ImageError(name, f"cannot be read: {error.strerror}")
