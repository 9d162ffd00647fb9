"""ASGI responses that Starlette lacks."""

from __future__ import annotations

from collections.abc import Iterable

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

#: Seconds for which a :class:`ClosingResponse` reads what its client still sends.
LINGER_S = 2.0


class PlainResponse:
    """A response of two ASGI messages, which costs a fraction of creating one of Starlette's.

    Attributes:
        status_code: of HTTP.
        raw_headers: lower-case names and values; ``content-length`` is added.
        body: all of it.
    """

    __slots__ = ("body", "raw_headers", "status_code")

    def __init__(self, status_code: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
        self.status_code, self.body = status_code, body
        self.raw_headers = [*headers, (b"content-length", b"%d" % len(body))]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body})


class ClosingResponse(Response):
    """A response to a client that is still sending: reads the rest for :data:`LINGER_S` seconds, then closes.

    Closing at once, with bytes unread, would reset the connection, and the client would lose the response.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        headers = [*self.raw_headers, (b"connection", b"close")]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with anyio.move_on_after(LINGER_S):
            more = True
            while more:
                message = await receive()
                more = message["type"] == "http.request" and message.get("more_body", False)
        await send({"type": "http.response.body", "body": b""})
