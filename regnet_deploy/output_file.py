"""Files that a user asked for by name: a figure, a page, a table.

Everything that an option such as ``--html FILE`` names is checked and written here, so that all commands treat links,
devices and suffixes in the same way.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from regnet_deploy.durable_files import kind_of_file, write_temporary, write_whole
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
        write_whole(target, data, _mode_to_keep(target))
    except OSError as error:
        raise _cannot_write(path, error) from None


@contextlib.contextmanager
def staged_files() -> Iterator[Callable[[Path, bytes], Path]]:
    """Write files that belong together: when the block ends, all of them get their names; if it fails, none does.

    Gives a function of a path and its content, which writes the content under a temporary name and returns that path.
    The file that was staged first gets its name last. A symbolic link is followed, as by :func:`write_output_file`.

    Raises:
        UsageError: a file cannot be written, or is not a regular file.
    """
    staged: dict[Path, Path] = {}
    created: list[Path] = []

    def stage(path: Path, data: bytes) -> Path:
        target = check_regular(path)
        try:
            staged[target] = write_temporary(target.parent, data, _mode_to_keep(target))
        except OSError as error:
            raise _cannot_write(path, error) from None
        return staged[target]

    try:
        yield stage
        for target, temporary in reversed(staged.items()):
            if not target.exists():
                created.append(target)
            try:
                os.replace(temporary, target)
            except OSError as error:
                raise _cannot_write(target, error) from None
    except BaseException:
        for path in (*staged.values(), *created):
            with contextlib.suppress(OSError):
                path.unlink()
        raise


def _mode_to_keep(target: Path) -> int | None:
    """Return the permissions of an earlier file; None if there is none.

    Raises:
        PermissionError: it may not be written; a rename would replace it all the same.
    """
    if not target.exists():
        return None
    if not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return stat.S_IMODE(os.stat(target).st_mode)


def _cannot_write(path: Path, error: OSError) -> UsageError:
    return UsageError(f"cannot write {path}: {error.strerror}; choose another file")
