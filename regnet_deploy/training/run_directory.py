"""The run directory beside the bundle: checkpoint, what the check of the images said, TensorBoard's event files."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from regnet_deploy.bundle import Bundle, ensure_writable
from regnet_deploy.errors import BundleError, DataError
from regnet_deploy.file_lock import file_lock
from regnet_deploy.space.complexity import network_complexity
from regnet_deploy.space.network import Network

_LOCK = ".lock"


def default_directory(bundle_path: str | Path) -> Path:
    """Return the run directory of a bundle: its sibling ``<bundle>.training``."""
    folder = Path(bundle_path).resolve()
    return folder.parent / f"{folder.name}.training"


@contextlib.contextmanager
def open_directory(path: Path) -> Iterator[Path]:
    """Make the run directory where it is not there, and hold it while a run is in it.

    Raises:
        DataError: another run is in it, or it cannot be written.
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
    """Find out before a day of training whether its checkpoints and its result can be written.

    Raises:
        BundleError: the bundle cannot be written, or has no room for the weights.
        DataError: the run directory has no room for two checkpoints, which are there while one replaces the other.
    """
    ensure_writable(bundle)
    architecture = bundle.part("architecture")
    cost = network_complexity(Network.from_json(architecture), architecture["resolution"], architecture["classes"])
    weight_bytes = 4 * int(cost.total.parameters)
    for folder, size, kind in ((bundle.path, weight_bytes, BundleError), (directory, 6 * weight_bytes, DataError)):
        free = shutil.disk_usage(folder).free
        if free < size:
            raise kind(
                f"{folder} has {free / 1e6:.0f} MB free and training needs {size / 1e6:.0f} MB there: "
                "make room first, nothing was trained"
            )
