"""uvicorn's HTTP protocol with limits on connections, request heads, pipelining and slow clients."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from regnet_deploy.serving.body_receiver import (
    BODY_EXTENSION,
    MAX_DIRECT_BYTES,
    MIN_DIRECT_BYTES,
    BodyReceiver,
    CountBytes,
    DiscardedBody,
    PartialBody,
)
from regnet_deploy.serving.http_parser import Parser
from regnet_deploy.serving.protocol import dumps
from regnet_deploy.serving.responses import ClosingResponse

_Base: Any = HttpToolsProtocol

_HEALTH = "/v2/health/"


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits of one listening socket, which uvicorn lacks.

    Attributes:
        max_connections: open connections. For one more, the connection that has been idle for the longest is closed.
        timeout_s: seconds in which the head of a request must arrive, from the start of the connection or, on one that
            is kept alive, from the first byte after a response; also the seconds for which a response waits for its
            client to read.
        health_connections: connections beyond ``max_connections`` that are accepted where none is idle, and answer
            health requests only: a busy server is not reported as broken. Further connections get 503.
        max_head_bytes: bytes of a request that are not body (head, chunk sizes, trailers) above which it gets 431. As
            many again as the body has are allowed for its chunks. httptools keeps them all in memory.
        max_pipelined: requests that wait behind the one that is being answered; more of them close the connection.
            uvicorn reads on after every response, however many requests wait.
    """

    max_connections: int
    timeout_s: float
    health_connections: int = 8
    max_head_bytes: int = 64 * 2**10
    max_pipelined: int = 100

    @property
    def full_error(self) -> str:
        """What a client is told that is one too many."""
        return f"{self.max_connections} connections are open already, try again"


class IdleConnections:
    """The connections of one listening socket that wait for a request, in the order in which they became idle."""

    def __init__(self) -> None:
        self._idle: dict[LimitedProtocol, None] = {}
        self._closing: set[LimitedProtocol] = set()  # closed to make room; uvicorn still counts them as open

    def __contains__(self, connection: LimitedProtocol) -> bool:
        return connection in self._idle

    def add(self, connection: LimitedProtocol) -> None:
        """Note that a connection waits for a request."""
        self._idle[connection] = None

    def discard(self, connection: LimitedProtocol) -> None:
        """Note that a connection does not wait any more."""
        self._idle.pop(connection, None)

    def closed(self, connection: LimitedProtocol) -> None:
        """Note that a connection is gone."""
        self._idle.pop(connection, None)
        self._closing.discard(connection)

    def make_room(self, open_connections: int, max_connections: int) -> int:
        """Close idle connections, the longest idle first; return by how many there are still too many."""
        excess = open_connections - len(self._closing) - max_connections
        if excess > 0:
            for connection in [one for one in self._idle if not one.transport.get_write_buffer_size()][:excess]:
                del self._idle[connection]
                self._closing.add(connection)
                connection.transport.abort()
                excess -= 1
        return excess


class HealthOnly:
    """An ASGI application that passes on health requests and refuses all others with 503."""

    def __init__(self, app: ASGIApp, error: str) -> None:
        self._app, self._error = app, error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["method"] in ("GET", "HEAD") and str(scope["path"]).startswith(_HEALTH):
            await self._app(scope, receive, send)
            return
        body, headers = dumps({"error": self._error}), {"retry-after": "1"}
        await ClosingResponse(body, 503, headers, media_type="application/json")(scope, receive, send)


class LimitedProtocol(_Base):  # type: ignore[misc]
    """One connection: uvicorn's protocol within :class:`ConnectionLimits`, with bodies from a :class:`BodyReceiver`."""

    app: ASGIApp
    receiver: BodyReceiver | None = None

    def __init__(
        self, config: Any, server_state: Any, app_state: Any, limits: ConnectionLimits, idle: IdleConnections
    ) -> None:
        super().__init__(config=config, server_state=server_state, app_state=app_state)
        self.parser = Parser(self, self._head_without_upgrade)
        self._limits, self._idle = limits, idle
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._answered: Any = None  # uvicorn's cycle of the request that is being answered, or was last
        self._parsed: Any = None  # the cycle of the request that is being parsed; None before the end of its head
        self._in_message = False  # a request has begun and has not ended
        self._refused = False
        self._body_bytes = 0  # of the request that is being parsed
        self._overhead_bytes = 0  # of this request, everything but its body
        self._read_overhead_bytes = 0  # the same, of the data that is being parsed
        self._offered_bytes = 0  # length of a body that is offered to the application and not taken yet

    # Connection

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Make room for the connection, or refuse it."""
        super().connection_made(transport)
        limits = self._limits
        excess = self._idle.make_room(len(self.connections), limits.max_connections)
        if excess > limits.health_connections:
            self._refused = True
            transport.write(_error_response(b"503 Service Unavailable", limits.full_error, b"retry-after: 1\r\n"))
            transport.close()
            return
        if excess > 0:
            self.app = HealthOnly(self.app, limits.full_error)
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection, and tell the running application."""
        self._idle.closed(self)
        self._stop_head_timer()
        self._stop_write_timer()
        self._disconnect_cycles()
        for cycle in (self.cycle, self._answered):
            if cycle is not None:
                cycle.scope.pop("extensions", None)  # a reference cycle
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Close the connection after the response that is being sent."""
        answered = self._answered
        if answered is not None and answered.response_started and not answered.keep_alive:
            # A refusal that reads what its client still sends: the server does not wait for that when it ends.
            answered.more_body = False
            answered.message_event.set()
        super().shutdown()

    # Requests

    def data_received(self, data: bytes | memoryview) -> None:
        """Parse data, and hold it against the limits."""
        if self._refused:
            return
        self._idle.discard(self)
        previous = self.cycle
        self._read_overhead_bytes = len(data)
        self._overhead_bytes += len(data)
        super().data_received(data)
        if self.cycle is not previous:  # a head is complete
            self._stop_head_timer()
            if self.cycle is self._answered and self.receiver is not None:
                self._offer_body(self.receiver)
        elif previous is None or previous.response_complete:
            self._start_head_timer()
        if self._overhead_bytes > self._limits.max_head_bytes + self._body_bytes:
            error = f"more than {self._limits.max_head_bytes} bytes of head, chunk sizes or trailers"
            self._refuse(b"431 Request Header Fields Too Large", error)

    def on_message_begin(self) -> None:
        """Start counting the bytes of a request."""
        self._parsed, self._in_message = None, True
        if len(self.pipeline) > self._limits.max_pipelined:
            raise OverflowError("too many pipelined requests")  # httptools makes an HttpParserError of it
        self._body_bytes = 0
        self._overhead_bytes = self._read_overhead_bytes  # too many by the heads before it in the same data
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Start the application, unless the head is to be parsed again."""
        if self.parser.is_upgrade_offered:
            if self.parser.get_method() == b"CONNECT":
                raise ValueError("no tunnels")  # httptools makes an HttpParserError of it
            return
        pipelined = len(self.pipeline)
        super().on_headers_complete()
        self._parsed = self.cycle
        if self.cycle.keep_alive and not self.parser.should_keep_alive():
            _close_after(self.cycle)
        if len(self.pipeline) == pipelined:
            self._answered = self.cycle

    def on_body(self, body: bytes) -> None:
        """Count bytes of a body."""
        self._body_bytes += len(body)
        self._overhead_bytes -= len(body)
        self._read_overhead_bytes -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that a request has been parsed."""
        if not self.parser.is_upgrade_offered:
            self._in_message = False
            super().on_message_complete()

    def _head_without_upgrade(self) -> bytes:
        version = self.parser.get_http_version().encode("ascii")
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        lines += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    # Responses

    def on_response_complete(self) -> None:
        """Go on with the next request, or wait for one."""
        offered, self._offered_bytes = self._offered_bytes, 0
        if offered and self.cycle.more_body and self.receiver is not None:
            self.receiver.receive(DiscardedBody(offered - self._body_bytes), self._body_received)
            self._start_head_timer()  # the next head cannot arrive before the rest of this body
        pipelined = len(self.pipeline)
        following = self.pipeline[-1][0] if pipelined else None
        super().on_response_complete()
        if len(self.pipeline) < pipelined:
            self._answered = following
        if self.timeout_keep_alive_task is not None and not self._in_message:
            self._idle.add(self)

    def pause_writing(self) -> None:
        """Start the timer of a client that does not read."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self._limits.timeout_s, self._abort)

    def resume_writing(self) -> None:
        """Stop that timer."""
        self._stop_write_timer()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP."""
        self._refuse(b"400 Bad Request", "this is not a request of HTTP/1.1")

    def _refuse(self, status: bytes, error: str) -> None:
        """Answer a request that cannot be parsed further and close, after the responses to the requests before it."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        if self._parsed is not None and self.pipeline and self.pipeline[0][0] is self._parsed:
            self.pipeline.popleft()  # the newest
            self._parsed = None
        last = self.pipeline[0][0] if self.pipeline else self._answered
        if last is not None and last is not self._parsed and not last.response_complete:
            _close_after(last)
            return
        if last is None or last is not self._parsed or not last.response_started:
            self.transport.write(_error_response(status, error))
        self._disconnect_cycles()
        self.transport.close()

    def _abort(self) -> None:
        self._disconnect_cycles()
        self.transport.abort()

    def _disconnect_cycles(self) -> None:
        """Tell the running application that its client is gone; uvicorn tells the last request only."""
        for cycle in (self.cycle, self._answered):
            if cycle is not None:
                cycle.disconnected = True
                cycle.message_event.set()

    # Bodies

    def _offer_body(self, receiver: BodyReceiver) -> None:
        """Offer the application the body in one piece: it is there, or its rest is long enough to receive directly."""
        cycle, length = self.cycle, 0
        if self._in_message:
            declared = next((value for name, value in self.headers if name == b"content-length"), b"")
            length = int(declared.strip().lstrip(b"0") or 0)  # a number has few digits but may have many zeros
            receiver.expect(length)
            is_long = self._body_bytes + MIN_DIRECT_BYTES <= length <= MAX_DIRECT_BYTES
            # The parser does not see the rest, and is replaced then: nothing of its state may matter afterwards.
            if not is_long or not cycle.keep_alive or cycle.waiting_for_100_continue:
                return
            self.flow.pause_reading()
            self._offered_bytes = length
        cycle.scope["extensions"] = {BODY_EXTENSION: partial(self._take_body, receiver, length)}

    def _take_body(
        self, receiver: BodyReceiver, length: int, offset: int, count: CountBytes
    ) -> bytes | bytearray | asyncio.Future[memoryview]:
        cycle = self._answered
        if cycle.more_body and (receiver.is_receiving or len(cycle.body) != self._body_bytes):
            raise RuntimeError("this body was taken already")
        start: bytes | bytearray = cycle.body
        cycle.body = bytearray()
        if not cycle.more_body:
            count(len(start))
            return start
        self._offered_bytes = 0
        body = PartialBody(start, length, offset, count)
        if cycle.disconnected:
            body.connection_lost()
        else:
            receiver.receive(body, self._body_received)
            self.flow.resume_reading()
        return body.complete

    def _body_received(self) -> None:
        self.parser = Parser(self, self._head_without_upgrade)  # the old one still waits for this body
        self.on_message_complete()
        if self.cycle.response_complete and not self.transport.is_closing():
            self._stop_head_timer()
            self._unset_keepalive_if_required()  # it counts from the response
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
            self._idle.add(self)

    # Timers

    def _start_head_timer(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self._limits.timeout_s, self.transport.close)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None


def _close_after(cycle: Any) -> None:
    """Have the connection closed after a response that says so; uvicorn before 0.53 does it in fewer cases."""
    cycle.keep_alive = False
    cycle.default_headers = [*cycle.default_headers, (b"connection", b"close")]


def _error_response(status: bytes, error: str, headers: bytes = b"") -> bytes:
    body = dumps({"error": error})
    return b"HTTP/1.1 %b\r\n%bconnection: close\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        status,
        headers,
        len(body),
        body,
    )
