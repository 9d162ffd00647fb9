"""The places of a listening socket for connections: which have one, which are idle, and which wait for one."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Receive, Scope, Send

from regnet_deploy.serving.protocol import dumps
from regnet_deploy.serving.responses import ClosingResponse

if TYPE_CHECKING:
    from regnet_deploy.serving.connection_limits import ConnectionLimits
    from regnet_deploy.serving.limited_protocol import LimitedProtocol

_HEALTH = "/v2/health/"

#: Why a connection was ended without an answer; see :class:`ConnectionCounts`.
ABORT_REASONS = ("idle", "slow", "handshake", "files")


@dataclass
class ConnectionCounts:
    """What became of the connections of a listening socket.

    Attributes:
        limit: connections that may be open; 0: no socket is served.
        open: connections that are open, during their TLS handshake as well.
        refused: connections that were one too many: they got 503.
        aborted: connections that were ended without an answer, by reason: ``idle`` (closed for a newcomer), ``slow``
            (the client did not send a head or did not read), ``handshake`` (of TLS, failed or late). ``files`` counts
            the times that connections had to wait because the process or the machine could open no more files.
    """

    limit: int = 0
    open: int = 0
    refused: int = 0
    aborted: Counter[str] = field(default_factory=Counter)


class ConnectionPlaces:
    """The places of one listening socket, and the connections that wait for a request, longest idle first.

    Attributes:
        leaving: each answer closes its connection from now on.
    """

    def __init__(self, limits: ConnectionLimits, counts: ConnectionCounts) -> None:
        self._limits, self.counts = limits, counts
        self._taken: set[LimitedProtocol] = set()
        self._excess: set[LimitedProtocol] = set()
        self._refused: dict[LimitedProtocol, None] = {}
        self._idle: dict[LimitedProtocol, float] = {}
        self.leaving = False

    def __contains__(self, connection: LimitedProtocol) -> bool:
        """Return whether a connection is idle."""
        return connection in self._idle

    def take(self, connection: LimitedProtocol) -> bool:
        """Give a connection a place, that of an idle one if need be; return False where there is none."""
        if len(self._taken) >= self._limits.max_connections and not self._free_one(
            self._taken, self._limits.min_idle_s
        ):
            return False
        self._excess.discard(connection)
        self._taken.add(connection)
        return True

    def take_excess(self, connection: LimitedProtocol) -> bool:
        """Let in a connection that has no place yet; return False where there are too many of them."""
        # These have asked about health only: a probe that is lost is repeated.
        if len(self._excess) >= self._limits.health_connections and not self._free_one(self._excess, 0.0):
            self.counts.refused += 1
            return False
        self._excess.add(connection)
        return True

    async def wait_for(self, connection: LimitedProtocol) -> bool:
        """Wait until a connection has a place; return False where nobody is idle, or nobody for long enough."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._limits.min_idle_s
        while not self.take(connection):
            since = next((since for one, since in self._idle.items() if self._can_be_freed(one, self._taken)), None)
            if since is None or since + self._limits.min_idle_s > end:
                return False
            await asyncio.sleep(max(0.001, since + self._limits.min_idle_s - loop.time()))
        return True

    def refuse(self, connection: LimitedProtocol) -> None:
        """Note that a connection gets no place: it is closed when its client has sent the rest of its request."""
        self.counts.refused += 1
        self._excess.discard(connection)
        self._refused[connection] = None

    def close_refused(self) -> None:
        """Close the connection that was refused first, whatever its client still sends."""
        connection = next(iter(self._refused), None)
        if connection is not None:
            del self._refused[connection]
            connection.transport.close()

    def add_idle(self, connection: LimitedProtocol) -> None:
        """Note that a connection waits for a request."""
        self._idle[connection] = connection.loop.time()

    def discard_idle(self, connection: LimitedProtocol) -> None:
        """Note that a connection does not wait any more."""
        self._idle.pop(connection, None)

    def closed(self, connection: LimitedProtocol) -> None:
        """Note that a connection is gone."""
        self._idle.pop(connection, None)
        self._taken.discard(connection)
        self._excess.discard(connection)
        self._refused.pop(connection, None)

    def close_idle(self) -> None:
        """Close the idle connections."""
        for connection in list(self._idle):
            connection.transport.close()

    def _free_one(self, among: set[LimitedProtocol], min_idle_s: float) -> bool:
        """Close the connection of some that has been idle for the longest, if it has been for so long."""
        for connection, since in self._idle.items():
            if self._can_be_freed(connection, among):
                if connection.loop.time() - since < min_idle_s:
                    return False
                self.closed(connection)
                self.counts.aborted["idle"] += 1
                connection.transport.abort()
                return True
        return False

    def _can_be_freed(self, connection: LimitedProtocol, among: set[LimitedProtocol]) -> bool:
        """Return whether an idle connection is one of some, and its client has got all of its answers."""
        return connection in among and not connection.transport.get_write_buffer_size()


class ExcessConnection:
    """An ASGI application for a connection without a place: its requests wait for one; without one, health is answered.

    Another request is refused then, and the connection closed.
    """

    def __init__(
        self, app: ASGIApp, error: str, find_place: Callable[[], Awaitable[bool]], refuse: Callable[[], None]
    ) -> None:
        self._app, self._error, self._find_place, self._refuse = app, error, find_place, refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        is_health = scope["method"] in ("GET", "HEAD") and str(scope["path"]).startswith(_HEALTH)
        if await self._find_place() or is_health:
            await self._app(scope, receive, send)
        else:
            self._refuse()
            body, headers = dumps({"error": self._error}), {"retry-after": "1"}
            await ClosingResponse(body, 503, headers, media_type="application/json")(scope, receive, send)
