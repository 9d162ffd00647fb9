"""Files that are replaced as a whole and reach the disk, also on file systems that lack some of the system calls.

Network file systems and FUSE do not have them all: CIFS answers EINVAL to the fsync of a directory, NFS EBADF to the
flock of a directory, and others ENOSYS. That is no failure of what was written, so it is passed over; any other error,
such as a full disk or a defect, is raised.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import secrets
import stat
from pathlib import Path

#: Prefix of files that are being written.
TEMPORARY = ".incomplete-"

_UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
#: Errors of a file system without locks. EBADF: NFS locks only what is open for writing, which no directory can be.
NO_LOCKS = {*_UNSUPPORTED, errno.ENOLCK, errno.EBADF}
#: Of Linux: paths are relative to the working directory; exchange, do not replace.
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def write_temporary(folder: Path, data: bytes, mode: int | None = None) -> Path:
    """Write a new file with a temporary name into a folder, put it on the disk and return its path.

    Args:
        folder: the folder.
        data: content.
        mode: permissions; None: those of a new file.

    Raises:
        OSError: it cannot be written; the file is removed.
    """
    path = folder / f"{TEMPORARY}{secrets.token_hex(8)}"
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        try:
            if mode is not None:
                os.fchmod(handle, mode)
            view = memoryview(data)
            while view:
                view = view[os.write(handle, view[: 2**30]) :]
            sync(handle)
        finally:
            os.close(handle)
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink()
        raise
    return path


def write_whole(path: Path, data: bytes, mode: int | None = None) -> None:
    """Replace a file, or create it: at every moment it has its earlier content or the new one.

    A symbolic link at the path is replaced, not followed.

    Raises:
        OSError: it cannot be written; the earlier file is intact.
    """
    temporary = write_temporary(path.parent, data, mode)
    try:
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def sync(handle: int) -> None:
    """Put an open file or folder on the disk, where the file system can.

    Raises:
        OSError: it could not.
    """
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def sync_folder(folder: Path) -> None:
    """Put the names of the files of a folder on the disk, where the file system can.

    Raises:
        OSError: it could not.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        sync(handle)
    finally:
        os.close(handle)


def lock(handle: int, operation: int) -> bool:
    """Lock an open file or folder until it is closed; return False where the file system has no locks.

    Args:
        handle: of the file.
        operation: as for :func:`fcntl.flock`.

    Raises:
        OSError: another process holds the lock (``BlockingIOError``), or locking failed.
    """
    try:
        fcntl.flock(handle, operation)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return False
    return True


def exchange(first: Path, second: Path) -> bool:
    """Exchange the names of two files or folders in one step; return False where the system cannot.

    Raises:
        OSError: it failed.
    """
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # glibc 2.28, musl 1.2.5
    if function is None:
        return False
    if function(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in {*_UNSUPPORTED, errno.EXDEV}:  # EXDEV: a folder of an image, seen through overlayfs
        return False
    raise OSError(code, os.strerror(code))


def kind_of_file(mode: int) -> str | None:
    """Return what is not a regular file, in words, from the mode that ``stat`` gives; None for a regular file."""
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(mode))
