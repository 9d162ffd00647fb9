"""Connections that take without asking for anything: those that send no request head or no end of it, and too many."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, ClassVar

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from regnet_deploy.serving.body_receiver import (
    LEAST_BYTES,
    MOST_BYTES,
    WHOLE,
    BodyReceiver,
    Count,
    DiscardedBody,
    PartialBody,
)
from regnet_deploy.serving.closing_response import ClosingResponse
from regnet_deploy.serving.http_parser import Parser
from regnet_deploy.serving.protocol import dumps
from regnet_deploy.serving.response_coalescing import CoalescingTransport

_Base: Any = HttpToolsProtocol

#: Bytes of a request that are not its body - head, sizes of chunks, trailers - beyond which it is refused; as many
#: again as the body has are allowed for its chunks. uvicorn's parser keeps them all in memory and has no limit of its
#: own.
MAX_HEAD_BYTES = 64 * 2**10

#: Requests on one connection that wait behind the one that is being answered; more end the connection. uvicorn reads on
#: whenever it has answered one, however many wait.
MAX_PIPELINED = 100

#: Connections beyond the limit on which health is answered: who watches over the server is not told that it is ill when
#: it is busy.
HEALTH_CONNECTIONS = 8

_HEALTH = "/v2/health/"


def limited_protocol(timeout_s: float, max_connections: int) -> type[asyncio.Protocol]:
    """Return uvicorn's HTTP protocol with limits that it lacks, :data:`MAX_HEAD_BYTES` and :data:`MAX_PIPELINED` too.

    Args:
        timeout_s: seconds in which the head of a request must have arrived, from the start of the connection or, on one
            that is kept alive, from the first byte after an answer; also for which an answer waits for its client to
            take some of it.
        max_connections: open at a time. For one more, that which has been idle for the longest is closed; where none
            is, :data:`HEALTH_CONNECTIONS` more are open for questions about health, and what else comes is told to
            come back and closed.
    """
    no_room = f"{max_connections} connections are open already, try again"
    full = _closing(b"503 Service Unavailable", no_room, b"retry-after: 1\r\n")
    too_large = _closing(
        b"431 Request Header Fields Too Large", f"more than {MAX_HEAD_BYTES} bytes of head, chunk sizes or trailers"
    )
    invalid = _closing(b"400 Bad Request", "this is not a request of HTTP/1.1")

    async def refuse_all(scope: Scope, receive: Receive, send: Send) -> None:
        refusal = ClosingResponse(dumps({"error": no_room}), 503, {"retry-after": "1"}, media_type="application/json")
        await refusal(scope, receive, send)

    class Guarded(_Base):  # type: ignore[misc]
        _idle: ClassVar[dict[Any, None]] = {}  # connections, in the order in which they became so
        _ending: ClassVar[set[Any]] = set()  # connections that were closed for others and still count as open
        _deadline: asyncio.TimerHandle | None = None
        _untaken: asyncio.TimerHandle | None = None
        _body_bytes = 0
        _other_bytes = 0
        _received_bytes = 0  # of what is being parsed, without bodies
        _running: Any = None
        _answer: CoalescingTransport | None = None
        _parsed: Any = None  # the request that is being parsed or was last; None up to the end of its head
        _within = False  # a request that has not come to its end
        _for_health = False
        _refused = False
        _offered = 0  # bytes of a body that was offered in one piece, until somebody asks for it
        receiver: BodyReceiver | None = None  # through which bytes come; None where they come straight from a transport

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.parser = Parser(self, self._head_again)

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            over = self.make_room(len(self.connections))
            if over > HEALTH_CONNECTIONS:
                self._refused = True
                transport.write(full)
                transport.close()
                return
            self._for_health = over > 0
            self._await_head()

        @classmethod
        def make_room(cls, connections: int) -> int:
            """Close connections that are idle, the longest first, and return by how many there are still too many."""
            over = connections - len(cls._ending) - max_connections
            if over > 0:
                for one in [one for one in cls._idle if not one.transport.get_write_buffer_size()][:over]:
                    del cls._idle[one]
                    cls._ending.add(one)
                    one.transport.abort()  # at once: nothing is under way, and its place is taken
                    over -= 1
            return over

        def data_received(self, data: bytes | memoryview) -> None:
            if self._refused:
                return
            self._idle.pop(self, None)
            before = self.cycle
            self._received_bytes = len(data)
            self._other_bytes += len(data)
            super().data_received(data)
            if self.cycle is not before:  # a head was complete
                self._disarm()
                if self.cycle is self._running and self.receiver is not None:
                    self._offer_whole(self.receiver)
            elif before is None or before.response_complete:
                self._await_head()
            if self._other_bytes > MAX_HEAD_BYTES + self._body_bytes:
                self._refuse(too_large)

        def on_message_begin(self) -> None:
            self._parsed, self._within = None, True
            if len(self.pipeline) > MAX_PIPELINED:
                raise OverflowError("too many requests at once")  # the parser makes it an error of its own
            self._body_bytes = 0
            self._other_bytes = self._received_bytes  # too much by the heads before it in the same bytes
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            if self.parser.is_offered:
                if self.parser.get_method() == b"CONNECT":
                    raise ValueError("no tunnels")  # the parser makes it an error of its own
                return
            super().on_headers_complete()
            self._parsed = self.cycle

        def on_message_complete(self) -> None:
            if not self.parser.is_offered:
                self._within = False
                super().on_message_complete()

        def _head_again(self) -> bytes:
            version = self.parser.get_http_version().encode("ascii")
            lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
            lines += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
            return b"\r\n".join([*lines, b"", b""])

        def on_body(self, body: bytes) -> None:
            self._body_bytes += len(body)
            self._other_bytes -= len(body)
            self._received_bytes -= len(body)
            super().on_body(body)

        def send_400_response(self, msg: str) -> None:
            self._refuse(invalid)

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._untaken is None:
                self._untaken = self.loop.call_later(timeout_s, self._abandon)

        def resume_writing(self) -> None:
            self._taken()
            super().resume_writing()

        def connection_lost(self, exc: Exception | None) -> None:
            self._idle.pop(self, None)
            self._ending.discard(self)
            self._disarm()
            self._taken()
            self._silence()
            for cycle in (self.cycle, self._running):
                if cycle is not None:
                    cycle.scope.pop("extensions", None)  # which leads back here
            super().connection_lost(exc)

        def _start_asgi_task(self, cycle: Any, app: Any) -> None:
            self._running = cycle
            cycle.transport = self._answer = CoalescingTransport(self.transport)
            if self._for_health and not _asks_for_health(cycle.scope):
                app = refuse_all
            super()._start_asgi_task(cycle, app)

        def shutdown(self) -> None:
            running = self._running
            if running is not None and running.response_started and not running.keep_alive:
                # A refusal that takes in what its client still sends: not while the server waits for it to end.
                running.more_body = False
                running.message_event.set()
            super().shutdown()

        def on_response_complete(self) -> None:
            if self._answer is not None:
                self._answer.flush()  # of a head without a body
            offered, self._offered = self._offered, 0
            if offered and self.cycle.more_body and self.receiver is not None:
                self.receiver.receive(DiscardedBody(offered - self._body_bytes), self._received_whole)
                self._await_head()  # the next one cannot come before the rest of this body
            super().on_response_complete()
            if self.timeout_keep_alive_task is not None and not self._within:
                self._idle[self] = None

        def _offer_whole(self, receiver: BodyReceiver) -> None:
            """Offer the application the body in one piece, where it is there or long enough for the rest to wait."""
            cycle, length = self.cycle, 0
            if self._within:
                declared = next((value for name, value in self.headers if name == b"content-length"), b"")
                length = int(declared.strip().lstrip(b"0") or 0)  # a number has few digits but may have many zeros
                receiver.expect(length)
                is_long = self._body_bytes + LEAST_BYTES <= length <= MOST_BYTES
                # The parser is not told of the rest: it must have been the last thing that it knew of this connection.
                if not is_long or not cycle.keep_alive or cycle.waiting_for_100_continue:
                    return
                self.flow.pause_reading()
                self._offered = length
            cycle.scope["extensions"] = {WHOLE: partial(self._whole, receiver, length)}

        def _whole(
            self, receiver: BodyReceiver, length: int, lead: int, count: Count
        ) -> bytearray | asyncio.Future[memoryview]:
            cycle = self._running
            if cycle.more_body and (receiver.is_receiving or len(cycle.body) != self._body_bytes):
                raise RuntimeError("this body was asked for already")
            begun, cycle.body = cycle.body, bytearray()
            if not cycle.more_body:
                count(len(begun))
                return begun  # type: ignore[no-any-return]
            self._offered = 0
            rest = PartialBody(begun, length, lead, count)
            if cycle.disconnected:
                rest.lost()
            else:
                receiver.receive(rest, self._received_whole)
                self.flow.resume_reading()
            return rest.whole

        def _received_whole(self) -> None:
            self.parser = Parser(self, self._head_again)  # the one there was waits for this body
            self.on_message_complete()
            if self.cycle.response_complete and not self.transport.is_closing():
                self._disarm()
                self._unset_keepalive_if_required()  # which counts from the answer
                self.timeout_keep_alive_task = self.loop.call_later(
                    self.timeout_keep_alive, self.timeout_keep_alive_handler
                )
                self._idle[self] = None

        def _refuse(self, answer: bytes) -> None:
            """Answer a request that cannot be read on, and close, once those before it are answered."""
            if self._refused or self.transport.is_closing():
                return
            self._refused = True
            if self._parsed is not None and self.pipeline and self.pipeline[0][0] is self._parsed:
                self.pipeline.popleft()  # the newest
                self._parsed = None
            last = self.pipeline[0][0] if self.pipeline else self._running
            if last is not None and last is not self._parsed and not last.response_complete:
                last.keep_alive = False
                return
            if last is None or last is not self._parsed or not last.response_started:
                self.transport.write(answer)
            self._silence()
            self.transport.close()

        def _abandon(self) -> None:
            self._silence()
            self.transport.abort()

        def _silence(self) -> None:
            """Have nothing more written by what is being answered; uvicorn tells it to the last request alone."""
            for cycle in (self.cycle, self._running):
                if cycle is not None:
                    cycle.disconnected = True
                    cycle.message_event.set()

        def _taken(self) -> None:
            if self._untaken is not None:
                self._untaken.cancel()
                self._untaken = None

        def _await_head(self) -> None:
            if self._deadline is None:
                self._deadline = self.loop.call_later(timeout_s, self.transport.close)

        def _disarm(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

    return Guarded


def _asks_for_health(scope: Scope) -> bool:
    return scope["method"] in ("GET", "HEAD") and str(scope["path"]).startswith(_HEALTH)


def _closing(status: bytes, error: str, headers: bytes = b"") -> bytes:
    body = dumps({"error": error})
    return b"HTTP/1.1 %b\r\n%bconnection: close\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        status,
        headers,
        len(body),
        body,
    )
