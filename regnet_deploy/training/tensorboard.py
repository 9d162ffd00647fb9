"""Metrics for TensorBoard, written as they come.

TensorBoard's own records and file, but no ``SummaryWriter``: that one writes from a thread, where a full disk is a
traceback on the terminal, and threads and forked loading processes do not go together.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from regnet_deploy.errors import DataError, require


class MetricsWriter:
    """An event file of a run, open and unbuffered: what was written is there, whatever becomes of this process."""

    def __init__(self, file: IO[bytes], resumed_at: int) -> None:
        event = require("tensorboard.compat.proto.event_pb2", "train")
        self._event, self._summary = event.Event, require("tensorboard.compat.proto.summary_pb2", "train").Summary
        self._records = require("tensorboard.summary.writer.record_writer", "train").RecordWriter(file)
        self._write(file_version="brain.Event:2")
        if resumed_at:  # what an interrupted process wrote of later steps is not shown
            self._write(step=resumed_at, session_log=event.SessionLog(status=event.SessionLog.START))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write values by their tags, at a step counted from the start of the run.

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


@contextlib.contextmanager
def open_tensorboard(directory: Path, resumed_at: int) -> Iterator[MetricsWriter]:
    """Open a new event file in the run directory; ``resumed_at`` is the step from which the run goes on.

    Raises:
        DataError: it cannot be written.
    """
    path = directory / f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
    try:
        file = path.open("ab", buffering=0)
    except OSError as error:
        raise _unwritable(str(path), error) from None
    with file:
        yield MetricsWriter(file, resumed_at)


def _unwritable(what: str, error: OSError) -> DataError:
    return DataError(f"cannot write {what}: {error.strerror}; give the same command again to go on from the checkpoint")
