"""Connections that hold a place without asking for anything: those that send no request head, and too many of them."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from regnet_deploy.serving.protocol import dumps

_Base: Any = AutoHTTPProtocol  # either of uvicorn's two: they share the names used here


def guarded(timeout_s: float, max_connections: int) -> type[asyncio.Protocol]:
    """Return uvicorn's HTTP protocol with two limits that it lacks.

    Args:
        timeout_s: seconds in which the head of a request must have arrived, from the start of the connection or, on one
            that is kept alive, from the first byte after an answer.
        max_connections: open at a time; one more is told to come back and closed.
    """
    body = dumps({"error": f"{max_connections} connections are open already, try again"})
    full = (
        b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    )

    class Guarded(_Base):  # type: ignore[misc]
        _deadline: asyncio.TimerHandle | None = None

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
            super().data_received(data)
            if self.cycle is not before:  # a head was complete
                self._disarm()

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm()
            super().connection_lost(exc)

        def _await_head(self) -> None:
            if self._deadline is None:
                self._deadline = self.loop.call_later(timeout_s, self.transport.close)

        def _disarm(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

    return Guarded
