"""The run directory beside the bundle: lock, checkpoint, image check, packed images, earlier weights, runs."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from regnet_deploy.bundle import Bundle, ensure_writable
from regnet_deploy.errors import BundleError, DataError, UsageError
from regnet_deploy.file_lock import file_lock
from regnet_deploy.space.complexity import network_complexity

_LOCK = ".lock"
_RUN = "run-"
#: Names of files and folders in a run directory.
_CONTENT = re.compile(
    r"\.lock|checkpoint\.safetensors|checked-[0-9a-f]{12}\.jsonl|earlier-[0-9a-f]{12}(-\d+)?|run-\d+|"
    r"packed-[0-9a-f]{12}\.(pixels|index)",
    re.ASCII,
)
#: In the root of a file system of its own, which may be a run directory.
_OF_FILE_SYSTEM = frozenset({"lost+found"})


def default_directory(bundle_path: str | Path) -> Path:
    """Return the run directory of a bundle: its sibling ``<bundle>.training``."""
    folder = Path(bundle_path).resolve()
    return folder.parent / f"{folder.name}.training"


def ensure_usable(directory: Path, bundle_path: Path, data: str | Path) -> None:
    """Check, before anything is written, that a folder may be a run directory, without other data in it.

    An existing folder has to be empty or a run directory, and the folder is not in the bundle nor among the images.
    Among the images, folders that are not searched for images can be used: hidden ones and ``<name>.training``.

    Raises:
        UsageError: it may not.
    """
    folder, bundle, images = (Path(os.path.realpath(path)) for path in (directory, bundle_path, data))
    if folder.is_relative_to(bundle):
        where = "is the bundle" if folder == bundle else f"is inside the bundle {bundle_path}"
        raise UsageError(f"--run-dir {directory} {where}: give a folder outside of it, or omit --run-dir")
    inside = folder.relative_to(images).parts if folder.is_relative_to(images) else None
    if inside is not None and not any(name.startswith(".") or name.lower().endswith(".training") for name in inside):
        where = "is the folder of the images" if not inside else f"is inside the folder of the images, {data}"
        raise UsageError(f"--run-dir {directory} {where}: give a folder outside of it, or omit --run-dir")
    try:
        content = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    except OSError:
        return  # the lock file says why
    known = any(_CONTENT.fullmatch(name) for name in content)
    other = sorted(name for name in content - _OF_FILE_SYSTEM if not name.startswith("."))
    if other and not known:
        raise UsageError(
            f"the run directory {directory} has other files ({other[0]}): give a new or empty folder with --run-dir"
        )


@contextlib.contextmanager
def open_directory(path: Path) -> Iterator[Path]:
    """Create the run directory if it does not exist, and lock it while the context is open.

    Raises:
        DataError: another run uses it, or it cannot be written.
    """
    unwritable = f"cannot write {path}: {{}}; give another --run-dir"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(unwritable.format(error.strerror)) from None
    busy = f"another training is running in {path}: wait for it, or give another --run-dir"
    with file_lock(path / _LOCK, busy=busy, unwritable=unwritable):
        yield path


def ensure_free_space(bundle: Bundle, directory: Path) -> None:
    """Check, before a day of training, that its checkpoints and its result can be written.

    Raises:
        BundleError: the bundle cannot be written, or there is no space for the weights.
        DataError: there is no space for two checkpoints, which exist while one replaces the other.
    """
    ensure_writable(bundle)
    architecture = bundle.architecture
    cost = network_complexity(architecture.network, architecture.resolution, architecture.classes)
    weight_bytes = 4 * int(cost.total.parameters)
    for folder, size, kind in ((bundle.path, weight_bytes, BundleError), (directory, 6 * weight_bytes, DataError)):
        free = shutil.disk_usage(folder).free
        if free < size:
            raise kind(
                f"{folder} has {free / 1e6:.0f} MB free and training needs {size / 1e6:.0f} MB there: "
                "free some space first, nothing was trained"
            )


def new_run_name(directory: Path) -> str:
    """Return the name of a new run, ``run-1``, ``run-2``, ...: TensorBoard draws each folder as a run of its own."""
    numbers = [path.name.removeprefix(_RUN) for path in directory.glob(f"{_RUN}*")]
    return f"{_RUN}{1 + max((int(number) for number in numbers if number.isdecimal()), default=0)}"
