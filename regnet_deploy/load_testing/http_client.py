"""An HTTP/1.1 client with persistent connections and little work per request, as the server may use the same cores.

A request is bytes that were made before the load; of an answer the client reads status, body and one header. There is
no queue: a request takes an idle connection or opens one, and beyond the limit of requests in flight it is not sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from regnet_deploy.errors import UsageError, require
from regnet_deploy.load_testing.target import Target

#: In place of an HTTP status: the connection failed or was closed; there was no answer within the timeout.
BROKEN, TIMED_OUT = -1, -2

_HEADER_LENGTH = b"inference-header-content-length"
#: Files that this process has open beside the connections.
_OTHER_FILES = 32


@dataclass(frozen=True, slots=True)
class HttpReply:
    """An answer.

    Attributes:
        status: HTTP status.
        body: the body, without chunked encoding.
        json_bytes: length of the JSON at the start of a body with binary tensors; None where no header gives it.
    """

    status: int
    body: bytes
    json_bytes: int | None


#: Called once for every request that was sent, with its ticket, the status or ``BROKEN`` or ``TIMED_OUT``, the
#: answer where there is one, and the time when it was complete (``time.monotonic()``).
OnAnswer = Callable[[int, int, "HttpReply | None", float], None]


def raise_open_files_limit(connections: int, option: str | None = None) -> None:
    """Raise the limit of open files of this process as far as a number of connections needs.

    Args:
        connections: maximum number of open connections.
        option: the command-line option that sets it, for the message.

    Raises:
        UsageError: they need more files than the hard limit allows.
    """
    try:
        import resource
    except ModuleNotFoundError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + _OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard == resource.RLIM_INFINITY or hard >= needed:
        with contextlib.suppress(OSError, ValueError):  # a system may allow less than its hard limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
            return
    allowed = soft if hard == resource.RLIM_INFINITY or hard >= needed else hard
    less = f", or give {option} {allowed - _OTHER_FILES} or less" if option and allowed > _OTHER_FILES else ""
    raise UsageError(
        f"{option or 'connections:'} {connections} needs {needed} open files and this process may have {allowed}: "
        f"raise the limit (`ulimit -n {needed}`){less}"
    )


class HttpClient:
    """Connections to one server, on the running event loop.

    Attributes:
        in_flight: requests that are sent and not answered.
        problem: message of the last connection that failed.
    """

    def __init__(self, target: Target, max_in_flight: int, on_answer: OnAnswer, timeout_s: float) -> None:
        self.in_flight = 0
        self.problem = ""
        httptools = require("httptools", "serve")
        self._parser: Any = httptools.HttpResponseParser
        self._parser_error: type[Exception] = httptools.HttpParserError
        self._loop = asyncio.get_running_loop()
        self._target = target
        self._context = target.context()
        self._max_in_flight = max_in_flight
        self._on_answer = on_answer
        self._timeout_s = timeout_s
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._closed = False

    def send(self, ticket: int, request: bytes, due: float | None = None) -> bool:
        """Send a request; return False where the limit of requests in flight is reached, or the client is closed.

        Args:
            ticket: number of the request, passed to ``on_answer``.
            request: the whole request.
            due: its scheduled time (``time.monotonic()``), from which the timeout counts; by default now.
        """
        if self.in_flight >= self._max_in_flight or self._closed:
            return False
        self.in_flight += 1
        due = time.monotonic() if due is None else due
        if self._idle:
            self._idle.pop().send(ticket, request, due)
        else:
            task = self._loop.create_task(self._connect(ticket, request, due))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)
        return True

    def expire(self) -> None:
        """End the requests that are past their timeout; to be called periodically."""
        before = time.monotonic() - self._timeout_s
        for connection in list(self._open):
            if connection.ticket is not None and connection.due < before:
                connection.end(TIMED_OUT)

    def close(self) -> None:
        """Close every connection; requests in flight are not reported any more."""
        self._closed = True
        for task in self._opening:
            task.cancel()
        for connection in list(self._open):
            connection.ticket = None
            connection.end(BROKEN)

    async def _connect(self, ticket: int, request: bytes, due: float) -> None:
        opening = self._loop.create_connection(self._make, self._target.host, self._target.port, ssl=self._context)
        try:
            _, connection = await asyncio.wait_for(opening, max(0.001, due + self._timeout_s - time.monotonic()))
        except TimeoutError:
            self.finish(ticket, TIMED_OUT, None, due)
        except OSError as error:  # errors of TLS included
            self.problem = error.strerror or str(error)
            self.finish(ticket, BROKEN, None, due)
        else:
            connection.send(ticket, request, due)

    def _make(self) -> _Connection:
        return _Connection(self, self._parser, self._parser_error)

    def finish(self, ticket: int, status: int, reply: HttpReply | None, due: float) -> None:
        """Report the end of a request; an answer after the timeout counts as a timeout."""
        self.in_flight -= 1
        now = time.monotonic()
        if now - due > self._timeout_s and status != BROKEN:
            status, reply = TIMED_OUT, None
        self._on_answer(ticket, status, reply, now)

    def opened(self, connection: _Connection) -> None:
        """Register a connection."""
        self._open.add(connection)

    def release(self, connection: _Connection) -> None:
        """Keep a connection for the next request."""
        self._idle.append(connection)

    def remove(self, connection: _Connection) -> None:
        """Remove a closed connection."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)


class _Connection(asyncio.Protocol):
    """One connection, with one request at a time."""

    def __init__(self, client: HttpClient, parser: Any, broken: type[Exception]) -> None:
        self.ticket: int | None = None
        self.due = 0.0
        self._client = client
        self._parser = parser(self)
        self._broken = broken
        self._transport: Any = None
        self._chunks: list[bytes] = []
        self._json_bytes: int | None = None
        self._complete = self._keep = False

    def send(self, ticket: int, request: bytes, due: float) -> None:
        self.ticket, self.due = ticket, due
        self._transport.write(request)
        if self._transport.is_closing():  # the server closed it between two requests
            self.end(BROKEN)

    def end(self, status: int) -> None:
        """Close the connection; the request on it has failed."""
        self._client.remove(self)
        ticket, self.ticket = self.ticket, None
        if self._transport is not None:
            self._transport.abort()
        if ticket is not None:
            self._client.finish(ticket, status, None, self.due)

    # asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._client.opened(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except self._broken as error:
            self._client.problem = f"not HTTP: {error}"
            self.end(BROKEN)
            return
        if self._complete:
            self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.ticket is not None:
            self._client.problem = "the connection was closed before the answer" + (f": {exc}" if exc else "")
        self.end(BROKEN)

    # httptools' callbacks

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(name) == len(_HEADER_LENGTH) and name.lower() == _HEADER_LENGTH and value.isdigit():
            self._json_bytes = int(value)

    def on_body(self, body: bytes) -> None:
        self._chunks.append(body)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:  # 100 Continue comes before the answer
            self._complete, self._keep = True, self._parser.should_keep_alive()

    def _finish(self) -> None:
        ticket, due = self.ticket, self.due
        status = self._parser.get_status_code()
        reply = HttpReply(status, b"".join(self._chunks), self._json_bytes)
        self._chunks, self._json_bytes, self._complete = [], None, False
        self.ticket = None
        if ticket is None or not self._keep:  # an answer without a request, or the last one of the connection
            self.end(BROKEN)
        else:
            self._client.release(self)
        if ticket is not None:
            self._client.finish(ticket, status, reply, due)
