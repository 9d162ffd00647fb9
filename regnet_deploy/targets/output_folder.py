"""Writes a folder completely or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from regnet_deploy.errors import UsageError

#: Tells a folder that was written here, which may be replaced, from everything else.
MARK = ".regnet-package.json"


def ensure_free(folder: Path, *, force: bool) -> None:
    """Find out whether :func:`write_folders` may write here.

    Raises:
        UsageError: it is a file, or a folder with something in it; one that was written here may be replaced with
            ``force``.
    """
    with _writable(folder):
        if not os.path.lexists(folder):
            return
        if folder.is_symlink() or not folder.is_dir():
            raise UsageError(f"{folder} exists and is not a folder: choose another one with --output")
        if not any(folder.iterdir()):
            return
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
    """Write files by their paths below each folder; whatever happens, each holds all of them or what it held before.

    All are written beside their places first, and then renamed. Only with :data:`MARK` among its files can a folder be
    replaced later.

    Raises:
        UsageError: see :func:`ensure_free`; or one cannot be written, and then none is.
    """
    for folder in folders:
        ensure_free(folder, force=force)
    made: dict[Path, Path] = {}
    try:
        for folder, files in folders.items():
            with _writable(folder):
                parent = folder.absolute().parent
                parent.mkdir(parents=True, exist_ok=True)
                made[folder] = Path(tempfile.mkdtemp(prefix=".incomplete-", dir=parent))
                _fill(made[folder], files)
        try:
            for folder, new in made.items():
                with _writable(folder):
                    # A folder with something in it cannot be renamed over: it goes aside first.
                    if os.path.lexists(folder):
                        os.rename(folder, _aside(new))
                    os.rename(new, folder)
        except BaseException:
            _put_back(made)
            raise
        for new in made.values():
            shutil.rmtree(_aside(new), ignore_errors=True)
    finally:
        for new in made.values():
            shutil.rmtree(new, ignore_errors=True)


def _fill(made: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        path = made / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    made.chmod(0o777 & ~_umask())  # mkdtemp's is for its maker alone


def _aside(new: Path) -> Path:
    """Return where the folder is kept that ``new`` replaces, until that is in its place."""
    return new.with_name(f"{new.name}-old")


def _put_back(made: Mapping[Path, Path]) -> None:
    """Undo the renames that were done, as far as they were: the file system knows, whatever line was interrupted.

    Raises:
        UsageError: a folder cannot be put back; the line says where it is.
    """
    for folder, new in made.items():
        try:
            if not new.exists():
                os.rename(folder, new)
            if _aside(new).exists():
                os.rename(_aside(new), folder)
        except OSError as error:
            raise UsageError(
                f"cannot write {folder}: {error.strerror}; what was there before is in {_aside(new)} now"
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
