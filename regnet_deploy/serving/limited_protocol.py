"""uvicorn's HTTP protocol with limits on connections, request heads, pipelining and slow clients."""

from __future__ import annotations

import asyncio
import os
import socket
from functools import partial
from typing import Any

from starlette.types import ASGIApp
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
from regnet_deploy.serving.connection_limits import ConnectionLimits
from regnet_deploy.serving.connection_places import ConnectionPlaces, ExcessConnection
from regnet_deploy.serving.http_parser import Parser
from regnet_deploy.serving.protocol import dumps

_Base: Any = HttpToolsProtocol

#: Seconds for which data that has arrived is read before a client counts as too slow.
_LATE_S = 0.05
#: Seconds that a request of a client that sends no more may take until the client is probed.
_PROBE_S = 0.25

_CLOSE = (b"connection", b"close")


class LimitedProtocol(_Base):  # type: ignore[misc]
    """One connection: uvicorn's protocol within :class:`ConnectionLimits`, with bodies from a :class:`BodyReceiver`."""

    app: ASGIApp
    receiver: BodyReceiver | None = None

    def __init__(
        self, config: Any, server_state: Any, app_state: Any, limits: ConnectionLimits, places: ConnectionPlaces
    ) -> None:
        super().__init__(config=config, server_state=server_state, app_state=app_state)
        self.parser = Parser(self, self._head_without_upgrade)
        self._limits, self._places = limits, places
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
        self._last: Any = None  # the cycle after whose response the connection closes because the server leaves
        self._is_half_closed = False  # the client sends no more, and is answered
        self._probe_timer: asyncio.TimerHandle | None = None

    # Connection

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Find a place for the connection, or refuse it."""
        super().connection_made(transport)
        limits, places = self._limits, self._places
        if not places.take(self):
            if not places.take_excess(self):
                self._refused = True
                transport.write(_error_response(b"503 Service Unavailable", limits.full_error, b"retry-after: 1\r\n"))
                transport.close()
                return
            self.app = ExcessConnection(self.app, limits.full_error, self._find_place, partial(places.refuse, self))
        self._start_head_timer()

    async def _find_place(self) -> bool:
        if not await self._places.wait_for(self):
            return False
        self.app = self.config.loaded_app
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection, and tell the running application."""
        self._places.closed(self)
        for stop in (self._stop_head_timer, self._stop_write_timer, self._stop_probe_timer):
            stop()
        self._disconnect_cycles()
        for cycle in (self.cycle, self._answered):
            if cycle is not None:
                cycle.scope.pop("extensions", None)  # a reference cycle
        super().connection_lost(exc)

    def leave(self) -> None:
        """Have the connection closed after the answers to the requests that are here, or to the next one."""
        last = self.pipeline[0][0] if self.pipeline else self._answered
        if last is not None and not last.response_started:
            self._close_after_last(last)

    def _close_after_last(self, cycle: Any) -> None:
        """Have the connection closed after a response, and not after the one before, which was to say so."""
        before = self._last
        if before is not None and not before.response_started:
            before.keep_alive = True
            before.default_headers = [header for header in before.default_headers if header != _CLOSE]
        if cycle.keep_alive:
            _close_after(cycle)
            self._last = cycle

    def eof_received(self) -> bool:
        """Answer a client that has closed its side of the connection after its requests."""
        if self._is_half_closed:
            return True
        if self._in_message:
            self._refuse(b"400 Bad Request", "the request ended before its head and its body were complete")
            return True
        last = self.pipeline[0][0] if self.pipeline else self._answered
        if last is None or last.response_complete or self.scheme == "https":  # nothing follows the end of TLS
            return False
        self._is_half_closed = True
        _close_after(last)
        if last.scope["http_version"] == "1.1":
            self._probe_timer = self.loop.call_later(_PROBE_S, self._probe)
        return True

    def _probe(self) -> None:
        """Tell a client that only sends no more from one that is gone, which looks the same until it gets something.

        A client ignores an interim response. The system of one that is gone resets the connection.
        """
        if not self._answered.response_started:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._probe_timer = self.loop.call_later(_PROBE_S, self._abort_if_reset)

    def _abort_if_reset(self) -> None:  # nothing is read any more, so the event loop does not notice
        with socket.socket(fileno=os.dup(self.transport.get_extra_info("socket").fileno())) as same:
            if same.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._disconnect_cycles()
                self.transport.abort()
                return
        self._probe_timer = self.loop.call_later(_PROBE_S, self._abort_if_reset)

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
        self._places.discard_idle(self)
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
        elif self._places.leaving:
            self._close_after_last(self.cycle)
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
            self._places.add_idle(self)

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
        self._places.counts.aborted["slow"] += 1
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
            self._places.add_idle(self)

    # Timers

    def _start_head_timer(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self._limits.timeout_s, self._head_is_late)

    def _head_is_late(self) -> None:
        # Where the event loop had no time, timers come before what has arrived meanwhile: it is read first.
        self._head_timer = self.loop.call_later(_LATE_S, self._close_slow)

    def _close_slow(self) -> None:
        self._places.counts.aborted["slow"] += 1
        self.transport.close()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, unless a request has arrived meanwhile."""
        self.timeout_keep_alive_task = self.loop.call_later(_LATE_S, super().timeout_keep_alive_handler)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _stop_probe_timer(self) -> None:
        if self._probe_timer is not None:
            self._probe_timer.cancel()
            self._probe_timer = None


def _close_after(cycle: Any) -> None:
    """Have the connection closed after a response that says so; uvicorn before 0.53 does it in fewer cases."""
    cycle.keep_alive = False
    cycle.default_headers = [*cycle.default_headers, _CLOSE]


def _error_response(status: bytes, error: str, headers: bytes = b"") -> bytes:
    body = dumps({"error": error})
    return b"HTTP/1.1 %b\r\n%bconnection: close\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        status,
        headers,
        len(body),
        body,
    )
