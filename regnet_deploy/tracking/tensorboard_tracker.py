"""TensorBoard: an event file in the folder of the run.

Event files are written with TensorBoard's own record writer, but without ``SummaryWriter``: that one writes from a
thread, in which a full disk ends in a traceback, and threads and forked loading processes do not go together.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections.abc import Mapping
from types import ModuleType
from typing import IO, Any

from regnet_deploy.errors import require
from regnet_deploy.tracking.tracker import Status, TrackedRun, TrackerError


class TensorBoardTracker:
    """An open, unbuffered event file: what is written is in the file, even if the process is killed."""

    place = ""

    def __init__(self, file: IO[bytes], run: TrackedRun) -> None:
        event = require("tensorboard.compat.proto.event_pb2", "train")
        self._event, self._summary = event.Event, require("tensorboard.compat.proto.summary_pb2", "train").Summary
        self._text = require("tensorboard.plugins.text.summary_v2", "train").text_pb
        self._file = file
        self._records = require("tensorboard.summary.writer.record_writer", "train").RecordWriter(file)
        self._last_step = run.resumed_at
        self._write(file_version="brain.Event:2")
        if run.resumed_at:  # hides what an interrupted process wrote about later steps
            self._write(step=run.resumed_at, session_log=event.SessionLog(status=event.SessionLog.START))
        self._write(step=run.resumed_at, summary=self._text("run", _markdown(run.parameters)))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write values; see :class:`regnet_deploy.tracking.tracker.Tracker`."""
        self._last_step = step
        entries = [self._summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._write(step=step, summary=self._summary(value=entries))

    def result(self, values: Mapping[str, str | int | float]) -> None:
        """Write the final values as a table."""
        self._write(step=self._last_step, summary=self._text("final", _markdown(values)))

    def close(self, status: Status) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, **fields: Any) -> None:
        record, start = self._event(wall_time=time.time(), **fields).SerializeToString(), self._file.tell()
        try:
            self._records.write(record)
            if self._file.tell() - start < len(record):  # the file system took a part of it
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            with contextlib.suppress(OSError):  # a part of a record would hide the later ones
                self._file.truncate(start)
                self._file.seek(start)
            raise TrackerError(f"cannot write {self._file.name}: {error.strerror}") from None


def load_tensorboard() -> ModuleType:
    """Import TensorBoard.

    Raises:
        MissingExtra: it is not installed.
    """
    return require("tensorboard", "train")


def open_tensorboard(run: TrackedRun) -> TensorBoardTracker:
    """Open a new event file in the folder of a run.

    Raises:
        TrackerError: it cannot be written.
        MissingExtra: TensorBoard is not installed.
    """
    name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
    path = run.directory / name
    try:
        run.directory.mkdir(exist_ok=True)
        file = path.open("ab", buffering=0)
    except OSError as error:
        raise TrackerError(f"cannot write {path}: {error.strerror}") from None
    try:
        return TensorBoardTracker(file, run)
    except BaseException:
        file.close()
        raise


def _markdown(values: Mapping[str, str | int | float]) -> str:
    """Return a table, as TensorBoard shows texts."""
    rows = (f"| {name} | {str(value).replace('|', ' ')} |" for name, value in values.items())
    return "\n".join(("| name | value |", "| --- | --- |", *rows))
