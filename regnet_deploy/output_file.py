"""Files that a user asked for by name: a figure, a page, a table.

Everything that an option such as ``--html FILE`` names is checked and written here, so that all commands treat links,
devices and suffixes in the same way.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from regnet_deploy.durable_files import kind_of_file, write_whole
from regnet_deploy.errors import UsageError

PAGE_SUFFIXES = (".html", ".htm")


def check_output_file(path: str | Path, suffixes: Sequence[str], what: str) -> Path:
    """Check before long work that a file can be written, and return its path.

    Args:
        path: as the user gave it.
        suffixes: of the formats that can be written, in lower case.
        what: is written, such as ``a figure``.

    Raises:
        UsageError: its suffix is that of another format, its folder does not exist, or it is something else than a
            regular file or a link to one.
    """
    target = Path(path)
    check_regular(target)
    if target.suffix.lower() not in suffixes:
        listed = " or ".join(filter(None, [", ".join(suffixes[:-1]), suffixes[-1]]))
        raise UsageError(f"{what} is written as {listed}, got {target.name}: give a name that ends so")
    return target


def check_regular(path: Path) -> Path:
    """Return the file to which a path leads, through symbolic links; it need not exist.

    Raises:
        UsageError: its folder does not exist, it is a device, a folder or anything else than a regular file, or it
            cannot be examined, for example because its name is too long or its folder may not be read.
    """
    try:
        if not path.parent.is_dir():
            raise UsageError(f"there is no folder {path.parent} for {path.name}: create it first")
        link = " leads to" if path.is_symlink() else " is"
        try:
            kind = kind_of_file(os.stat(path).st_mode)
        except FileNotFoundError:
            target = Path(os.path.realpath(path))
            if not target.parent.is_dir():
                raise UsageError(f"{path} leads to {target}, whose folder does not exist: give another file") from None
            return target
    except OSError as error:  # also for links that lead to each other
        raise UsageError(f"cannot write {path}: {error.strerror}; give another file") from None
    if kind is not None:
        raise UsageError(f"{path}{link} {kind}: give the name of a file")
    return Path(os.path.realpath(path))


def write_output_file(path: Path, data: bytes) -> None:
    """Write a file as a whole; through a symbolic link, the file to which it leads, which keeps its permissions.

    Raises:
        UsageError: it cannot be written, or is not a regular file; an earlier file is intact.
    """
    target = check_regular(path)
    try:
        mode = stat.S_IMODE(os.stat(target).st_mode) if target.exists() else None
        if mode is not None and not os.access(target, os.W_OK):  # a rename would replace it all the same
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        write_whole(target, data, mode)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}; choose another file") from None
