"""The run directory beside the bundle: lock, checkpoint, image check, packed images, earlier weights, event files.

Event files are written with TensorBoard's own record writer, but without ``SummaryWriter``: that one writes from a
thread, in which a full disk ends in a traceback, and threads and forked loading processes do not go together.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from regnet_deploy.bundle import Bundle, ensure_writable
from regnet_deploy.errors import BundleError, DataError, UsageError, require
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


class MetricsWriter:
    """An open, unbuffered event file: what is written is in the file, even if the process is killed."""

    def __init__(self, file: IO[bytes], resumed_at: int) -> None:
        event = require("tensorboard.compat.proto.event_pb2", "train")
        self._event, self._summary = event.Event, require("tensorboard.compat.proto.summary_pb2", "train").Summary
        self._records = require("tensorboard.summary.writer.record_writer", "train").RecordWriter(file)
        self._write(file_version="brain.Event:2")
        if resumed_at:  # hides what an interrupted process wrote about later steps
            self._write(step=resumed_at, session_log=event.SessionLog(status=event.SessionLog.START))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write values by tag, at a step counted from the start of the run.

        Raises:
            DataError: the file cannot be written.
        """
        entries = [self._summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._write(step=step, summary=self._summary(value=entries))

    def _write(self, **fields: Any) -> None:
        try:
            self._records.write(self._event(wall_time=time.time(), **fields).SerializeToString())
        except OSError as error:
            raise _unwritable("TensorBoard's metrics", error) from None


def new_run_name(directory: Path) -> str:
    """Return the name of a new run, ``run-1``, ``run-2``, ...: TensorBoard draws each folder as a run of its own."""
    numbers = [path.name.removeprefix(_RUN) for path in directory.glob(f"{_RUN}*")]
    return f"{_RUN}{1 + max((int(number) for number in numbers if number.isdecimal()), default=0)}"


@contextlib.contextmanager
def open_tensorboard(directory: Path, resumed_at: int) -> Iterator[MetricsWriter]:
    """Open a new event file in the folder of a run; ``resumed_at`` is the step from which the run continues.

    Raises:
        DataError: it cannot be written.
    """
    path = directory / f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
    try:
        directory.mkdir(exist_ok=True)
        file = path.open("ab", buffering=0)
    except OSError as error:
        raise _unwritable(str(path), error) from None
    with file:
        yield MetricsWriter(file, resumed_at)


def _unwritable(what: str, error: OSError) -> DataError:
    return DataError(f"cannot write {what}: {error.strerror}; repeat the command to continue from the checkpoint")
