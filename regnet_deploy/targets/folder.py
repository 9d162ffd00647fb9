"""A folder that is written whole or not at all."""

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
    """Find out whether :func:`write_folder` may write here.

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


def write_folder(folder: Path, files: Mapping[str, bytes], *, force: bool = False) -> None:
    """Write files by their paths below ``folder``; whatever happens, it holds all of them or what it held before.

    Only with :data:`MARK` among them can they be replaced later.

    Raises:
        UsageError: see :func:`ensure_free`; or it cannot be written.
    """
    ensure_free(folder, force=force)
    with _writable(folder):
        parent = folder.absolute().parent
        parent.mkdir(parents=True, exist_ok=True)
        with _temporary(parent) as made:
            for name, data in files.items():
                path = made / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            made.chmod(0o777 & ~_umask())  # mkdtemp's is for its maker alone
            if os.path.lexists(folder):
                # A folder with something in it cannot be renamed over: it goes aside first, and back where that fails.
                with _temporary(parent) as aside:
                    os.rename(folder, aside / "old")
                    try:
                        os.rename(made, folder)
                    except BaseException:
                        os.rename(aside / "old", folder)
                        raise
            else:
                os.rename(made, folder)


@contextlib.contextmanager
def _temporary(parent: Path) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix=".incomplete-", dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


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
