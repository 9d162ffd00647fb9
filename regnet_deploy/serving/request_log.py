"""The server's log: its events, the requests that it failed, and all requests if configured."""

from __future__ import annotations

import itertools
import logging
import math
import os
import re
import threading
import time
import traceback
from collections.abc import Callable, Hashable
from typing import Any, Literal, TextIO, get_args

from regnet_deploy.errors import UsageError, did_you_mean
from regnet_deploy.serving.log_writer import (
    MAX_TRACEBACK,
    LogWriter,
    RateLimit,
    clean,
    format_json,
    format_text,
)
from regnet_deploy.serving.loggers import hold_logger, release_logger
from regnet_deploy.serving.request_record import RequestRecord
from regnet_deploy.serving.tracing import parse_trace_parent

Format = Literal["text", "json"]
FORMATS: tuple[str, ...] = get_args(Format)

#: Loggers of libraries whose warnings are written to this log.
LIBRARIES = ("uvicorn", "asyncio", "grpc")

#: Lines of a kind per second.
LINES_A_SECOND = 10

#: Statuses below 500 that are logged: they can show an overloaded server or an attack.
_REFUSALS = frozenset((401, 408, 413, 429))

#: Request ids: random digits of this process, then a counter; a random id for each request would cost a system call.
_PROCESS, _NUMBERS = os.urandom(6).hex(), itertools.count(int.from_bytes(os.urandom(4), "big"))

#: Threads whose servers have an open log.
_threads: list[int] = []

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


def request_id_of(given: str | bytes | None) -> str:
    """Return the id of a request: the one that its client sent, or a new one.

    Args:
        given: header ``x-request-id``; used if it has 1 to 128 characters of ``[A-Za-z0-9._:/+=-]``.
    """
    if given is not None:
        text = given.decode("latin-1") if isinstance(given, bytes) else given
        if _REQUEST_ID.fullmatch(text):
            return text
    return f"{_PROCESS}{next(_NUMBERS):012x}"


class RequestLog:
    """Writes the log of the server that runs in the thread which creates it.

    A handler at the loggers of the server and of :data:`LIBRARIES` takes their records until the log is closed. In the
    main thread, the process is the server's, and all of these records are. In another thread, records of libraries are
    the server's where they come from that thread, and records of the server's other threads are written to the log of
    each server in the process.

    Requests that ended with 5xx, 401, 408, 413 or 429 are logged as warnings, at most :data:`LINES_A_SECOND` of each
    status; with ``every_request`` all requests are logged, without that limit.

    Args:
        format: ``json``, an object in each line, or ``text``.
        every_request: log all requests.
        stream: gets the lines; it can block or be closed without blocking the server.
        clock: seconds, for the rate limit.

    Raises:
        UsageError: the format is unknown.
    """

    def __init__(
        self, format: str, every_request: bool, stream: TextIO, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if format not in FORMATS:
            raise UsageError(
                f"unknown log format {format!r}{did_you_mean(format, FORMATS)}; the formats are {', '.join(FORMATS)}"
            )
        self._every_request = every_request
        self._handler = _Handler(format == "json", stream, clock)
        self._logger = logging.getLogger(__package__)
        self._closed = False
        hold_logger(self._logger.name, logging.INFO)
        for name in (self._logger.name, *LIBRARIES):
            logging.getLogger(name).addHandler(self._handler)
        _threads.append(self._handler.thread)

    def observe(self, record: RequestRecord) -> None:
        """Log a request that has ended, if it is to be logged."""
        bad = record.status >= 500 or record.status in _REFUSALS
        if self._every_request or (bad and self._handler.allow(("request", record.status))):
            self._log(logging.WARNING if bad else logging.INFO, "request", _facts(record))

    def event(self, name: str, level: int = logging.INFO, **facts: Any) -> None:
        """Log an event of the server; levels are those of :mod:`logging`."""
        self._log(level, name, clean(facts))

    def close(self, timeout_s: float = 2.0) -> None:
        """Write the queued lines, for at most ``timeout_s`` seconds, and restore the loggers."""
        if not self._closed:
            self._closed = True
            _threads.remove(self._handler.thread)
            for name in (self._logger.name, *LIBRARIES):
                logging.getLogger(name).removeHandler(self._handler)
            release_logger(self._logger.name)
        self._handler.lines.close(timeout_s)

    def _log(self, level: int, name: str, facts: dict[str, Any]) -> None:
        self._logger.log(level, "%s", name, extra={"event": clean(name), "facts": facts, "handler": self._handler})


class _Handler(logging.Handler):
    """Formats the records of all loggers as lines."""

    def __init__(self, as_json: bool, stream: TextIO, clock: Callable[[], float]) -> None:
        super().__init__()
        self._as_json = as_json
        self._clock = clock
        self._limit = RateLimit(LINES_A_SECOND)
        self.thread = threading.get_ident()
        self._has_process = threading.current_thread() is threading.main_thread()
        self.lines = LogWriter(stream, self._notes, self._limit.waiting)

    def allow(self, kind: Hashable) -> bool:
        """Return whether another line of ``kind`` may be written; suppressed lines are counted and reported later."""
        if self._limit.allow(kind, self._clock()):
            return True
        self.lines.wake()
        return False

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is of this server and not of another one, or of the program around it."""
        if hasattr(record, "handler"):
            return record.handler is self
        if record.thread == self.thread:
            return True
        if record.thread in _threads:
            return False
        return self._has_process or record.name.startswith(__package__)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record; records of libraries are rate-limited."""
        try:
            facts = getattr(record, "facts", None)
            if facts is None:
                ours = record.name.startswith(__package__)
                if not (ours or record.levelno >= logging.WARNING):
                    return
                if not self.allow((record.name, os.path.basename(record.pathname), record.lineno)):
                    return
                facts = clean({"logger": record.name, "message": record.getMessage()})
            name = getattr(record, "event", "message")
            error = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else ""
            self.lines.put(self._line(record.created, record.levelname, name, facts, error[-MAX_TRACEBACK:]))
        except Exception:
            self.handleError(record)

    def _line(self, when: float, level: str, name: str, facts: dict[str, Any], error: str = "") -> str:
        """Return a line; ``facts`` are clean, ``error`` is escaped here."""
        stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(when))}.{int(when % 1 * 1000):03d}Z"
        if self._as_json:
            line = {"time": stamp, "level": level.lower(), "event": name, **facts}
            return format_json(line | {"exception": error.encode("utf-8", "replace").decode()} if error else line)
        text = f"{stamp} {level:<7} {format_json(name)[1:-1]} {format_text(facts)}".rstrip()
        return "\n    ".join((text, *(format_json(part)[1:-1] for part in error.splitlines())))

    def _notes(self, dropped: int) -> list[str]:
        now = math.inf if self.lines.closed else self._clock()
        lines = []
        for kind, count in self._limit.suppressed(now).items():
            lines.append(self._line(time.time(), "WARNING", "suppressed", {"lines": count, "of": kind}))
        if dropped:
            lines.append(self._line(time.time(), "WARNING", "dropped", {"lines": dropped, "why": "nobody read them"}))
        return lines


def _facts(record: RequestRecord) -> dict[str, Any]:
    """Return the facts of a request; what may come from a client is cleaned."""
    facts: dict[str, Any] = {"request_id": clean(record.request_id)}
    parent = parse_trace_parent(record.trace_parent)
    if parent is not None:
        facts["trace_id"] = f"{parent.trace_id:032x}"
    facts |= {
        "model": clean(record.model),
        "version": clean(record.version),
        "protocol": record.protocol,
        "operation": record.operation,
        "status": record.status,
        "images": record.images,
        "batch": record.batch,
        "ms": {
            "read": _ms(record.read_s),
            "decode": _ms(record.decode_s),
            "queue": _ms(record.queue_s),
            "inference": _ms(record.inference_s),
            "total": _ms(record.total_s),
        },
    }
    if record.error is not None:
        facts["error"] = clean(record.error)
    return facts


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
