"""Connections that take without asking for anything: those that send no request head or no end of it, and too many."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from regnet_deploy.serving.protocol import dumps

_Base: Any = AutoHTTPProtocol  # either of uvicorn's two: they share the names used here

#: Bytes of a request that are not its body - head, sizes of chunks, trailers - beyond which it is refused; as many
#: again as the body has are allowed for its chunks. uvicorn's parser keeps them all in memory and has no limit of its
#: own (the slower of the two, h11, has one, and does not tell what is body).
MAX_HEAD_BYTES = 64 * 2**10

#: Requests on one connection that wait behind the one that is being answered; more end the connection. uvicorn reads on
#: whenever it has answered one, however many wait.
MAX_PIPELINED = 100

#: Of an answer up to which it is copied behind its head.
_COPIED_BYTES = 64 * 2**10


class Joined:
    """A transport on which the first write, an answer's head, waits for the second: one call of the system for both.

    Of a small answer that is a fifth of its cost.
    """

    __slots__ = ("_begun", "_head", "_transport")

    def __init__(self, transport: Any) -> None:
        self._transport, self._head, self._begun = transport, b"", False

    def write(self, data: bytes) -> None:
        """Keep the head, or write what is kept and this."""
        if not self._begun:
            self._head, self._begun = data, True
        elif self._head:
            head, self._head = self._head, b""
            if len(data) < _COPIED_BYTES:
                self._transport.write(head + data)
            else:
                self._transport.writelines((head, data))
        else:
            self._transport.write(data)

    def flush(self) -> None:
        """Write what is kept."""
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)

    def close(self) -> None:
        """Write what is kept, and close."""
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        """Return what else the transport has."""
        return getattr(self._transport, name)


def guarded(timeout_s: float, max_connections: int) -> type[asyncio.Protocol]:
    """Return uvicorn's HTTP protocol with limits that it lacks, :data:`MAX_HEAD_BYTES` and :data:`MAX_PIPELINED` too.

    Args:
        timeout_s: seconds in which the head of a request must have arrived, from the start of the connection or, on one
            that is kept alive, from the first byte after an answer; also for which an answer waits for its client to
            take some of it.
        max_connections: open at a time; one more is told to come back and closed.
    """
    full = _closing(b"503 Service Unavailable", f"{max_connections} connections are open already, try again")
    too_large = _closing(
        b"431 Request Header Fields Too Large", f"more than {MAX_HEAD_BYTES} bytes of head, chunk sizes or trailers"
    )
    invalid = _closing(b"400 Bad Request", "this is not a request of HTTP/1.1")

    class Guarded(_Base):  # type: ignore[misc]
        _deadline: asyncio.TimerHandle | None = None
        _untaken: asyncio.TimerHandle | None = None
        _body_bytes = 0
        _other_bytes = 0
        _received_bytes = 0  # of what is being parsed, without bodies
        _running: Any = None
        _answer: Joined | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            if len(self.connections) > max_connections:
                transport.write(full)
                transport.close()
                return
            self._await_head()

        def data_received(self, data: bytes) -> None:
            before = self.cycle
            if before is None or before.response_complete:
                self._await_head()
            self._received_bytes = len(data)
            self._other_bytes += len(data)
            super().data_received(data)
            if self.cycle is not before:  # a head was complete
                self._disarm()
            if hasattr(_Base, "on_body") and self._other_bytes > MAX_HEAD_BYTES + self._body_bytes:
                self._refuse(too_large)

        def on_message_begin(self) -> None:
            if len(self.pipeline) > MAX_PIPELINED:
                raise OverflowError("too many requests at once")  # the parser makes it an error of its own
            self._body_bytes = 0
            self._other_bytes = self._received_bytes  # too much by the heads before it in the same bytes
            super().on_message_begin()

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
            self._disarm()
            self._taken()
            self._silence()
            super().connection_lost(exc)

        def _start_asgi_task(self, cycle: Any, app: Any) -> None:
            self._running = cycle
            cycle.transport = self._answer = Joined(self.transport)
            super()._start_asgi_task(cycle, app)

        def on_response_complete(self) -> None:
            if self._answer is not None:
                self._answer.flush()  # of a head without a body
            super().on_response_complete()

        def _refuse(self, answer: bytes) -> None:
            """Answer and close; where another answer is under way, only close."""
            if self.transport.is_closing():
                return
            cycle = self.cycle
            begun = cycle is not None and cycle.response_started and not cycle.response_complete
            if not begun and not getattr(self, "pipeline", ()):
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


def _closing(status: bytes, error: str) -> bytes:
    body = dumps({"error": error})
    return (
        b"HTTP/1.1 %b\r\nretry-after: 1\r\nconnection: close\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body)
    )
