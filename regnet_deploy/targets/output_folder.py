"""Writes a folder completely or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from regnet_deploy.durable_files import TEMPORARY, exchange, sync_folder, write_whole
from regnet_deploy.errors import UsageError

#: File that marks a folder as written here, so that it may be replaced.
MARK = ".regnet-package.json"


def ensure_free(folder: Path, *, force: bool) -> None:
    """Check that :func:`write_folders` may write a folder.

    Raises:
        UsageError: it is a file, or a folder that is not empty; with ``force``, a folder that was written here may be
            replaced, but not one that holds the folders of several targets.
    """
    with _writable(folder):
        if not folder.exists():
            return
        if not folder.is_dir():
            raise UsageError(f"{folder} exists and is not a folder: choose another one with --output")
        if not any(folder.iterdir()):
            return
        if targets := sorted(path.parent.name for path in folder.glob(f"*/{MARK}")):
            raise UsageError(
                f"{folder} holds {', '.join(targets)} of a package with several targets: choose another folder with "
                "--output, or package several targets again, each of which has its own folder in it"
            )
        if not (folder / MARK).is_file():
            raise UsageError(
                f"{folder} is not empty and was not made by `regnet-deploy package`: choose another folder with "
                "--output"
            )
        if not force:
            raise UsageError(
                f"{folder} is not empty: choose another folder with --output, or give --force to replace it"
            )


def write_folders(folders: Mapping[Path, Mapping[str, bytes]], *, force: bool = False) -> None:
    """Write folders of files completely, or leave all folders as they were.

    The folders are written beside their destinations and then renamed; a link to a folder stays one. A folder can be
    replaced later only if :data:`MARK` is among its files. Where the system can exchange two folders in one step, as
    Linux does, a folder is at every moment the earlier one or the new one; elsewhere it is away between two renames.

    Args:
        folders: folder -> path below it -> content.
        force: replace folders that were written here.

    Raises:
        UsageError: see :func:`ensure_free`; or a folder cannot be written, and then none is.
    """
    for folder in folders:
        ensure_free(folder, force=force)
    folders = {Path(os.path.realpath(folder)): files for folder, files in folders.items()}
    temporary: dict[Path, Path] = {}
    try:
        for folder, files in folders.items():
            with _writable(folder):
                folder.parent.mkdir(parents=True, exist_ok=True)
                temporary[folder] = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=folder.parent))
                _fill(temporary[folder], files)
        numbers = {folder: new.stat().st_ino for folder, new in temporary.items()}
        try:
            for folder, new in temporary.items():
                with _writable(folder):
                    _put(new, folder)
        except BaseException:
            _restore(temporary, numbers)
            raise
        for folder, new in temporary.items():
            with contextlib.suppress(OSError):  # what is there is complete
                sync_folder(folder.parent)
            shutil.rmtree(_backup(new), ignore_errors=True)
    finally:
        for new in temporary.values():
            shutil.rmtree(new, ignore_errors=True)


def _put(new: Path, folder: Path) -> None:
    """Put a new folder in its place; an earlier one has then the name of the new one, or that of its backup."""
    if not os.path.lexists(folder):
        os.rename(new, folder)
    elif not exchange(new, folder):
        # A folder that is not empty cannot be replaced by a rename: it is moved away first.
        os.rename(folder, _backup(new))
        os.rename(new, folder)


def _fill(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
    for each in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        sync_folder(each)
    folder.chmod(0o777 & ~_umask())  # only the owner can access a folder of mkdtemp


def _backup(new: Path) -> Path:
    """Return the path to which the folder that ``new`` replaces is moved meanwhile."""
    return new.with_name(f"{new.name}-old")


def _restore(temporary: Mapping[Path, Path], numbers: Mapping[Path, int]) -> None:
    """Undo the renames that were done; the file system tells which, wherever the interruption was.

    Args:
        temporary: folder -> the new folder beside it.
        numbers: folder -> inode of the new folder.

    Raises:
        UsageError: a folder cannot be restored; the message has its path.
    """
    for folder, new in temporary.items():
        try:
            is_new = os.path.lexists(folder) and folder.stat().st_ino == numbers[folder]
            if is_new and new.exists():  # after an exchange
                os.rename(new, _backup(new))
            if is_new:
                os.rename(folder, new)
            if _backup(new).exists():
                os.rename(_backup(new), folder)
        except OSError as error:
            raise UsageError(
                f"cannot write {folder}: {error.strerror}; its earlier content is in {_backup(new)} now"
            ) from None


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"cannot write {folder}: {error.strerror}; nothing was changed - free space, fix the permissions or choose "
            "another folder with --output"
        ) from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
