"""Sockets that uvicorn answers on, with TLS handshakes that are counted and come to an end."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any

import uvicorn

from regnet_deploy.serving.heads import HEALTH_CONNECTIONS

#: Seconds for a handshake; those of asyncio are 60.
HANDSHAKE_S = 10.0


async def listen(server: uvicorn.Server, sockets: list[socket.socket], timeout_s: float) -> list[asyncio.Server]:
    """Have a server that has started up without sockets answer on some.

    Connections whose handshake is under way count as open ones. Where there is no room for one more and no idle one to
    close, the handshake that has taken the longest ends: those of clients that want something take a moment.

    Args:
        server: with the protocol of :func:`regnet_deploy.serving.heads.guarded`.
        sockets: bound.
        timeout_s: seconds for a handshake, at most :data:`HANDSHAKE_S`.
    """
    config = server.config

    def make() -> Any:
        protocol: Any = config.http_protocol_class
        return protocol(config=config, server_state=server.server_state, app_state=server.lifespan.state)

    loop, factory = asyncio.get_running_loop(), make
    if config.ssl is not None:
        door = _Door(make, config.ssl, server.server_state.connections, min(timeout_s, HANDSHAKE_S))

        def factory() -> Any:
            return _Handshake(door)

    return [await loop.create_server(factory, sock=sock, backlog=config.backlog) for sock in sockets]


class _Door:
    """What the handshakes of a server share."""

    def __init__(self, make: Any, context: ssl.SSLContext, connections: Any, timeout_s: float) -> None:
        self.make, self.context, self.timeout_s = make, context, timeout_s
        self._connections = connections
        self._under_way: dict[Any, asyncio.Task[None]] = {}  # by transport, the oldest first

    def enter(self, transport: Any, task: asyncio.Task[None], protocol: Any) -> None:
        """Count a handshake, and end another one where that is one too many."""
        self._under_way[transport] = task
        over = protocol.make_room(len(self._connections) + len(self._under_way))
        if over > HEALTH_CONNECTIONS and len(self._under_way) > 1:
            oldest = next(iter(self._under_way))
            del self._under_way[oldest]
            oldest.abort()

    def leave(self, transport: Any) -> None:
        """Count it no more."""
        self._under_way.pop(transport, None)


class _Handshake(asyncio.Protocol):
    """A connection up to the end of its handshake, and what arrives before it is handed on."""

    def __init__(self, door: _Door) -> None:
        self._door = door
        self._received: list[bytes] = []

    def connection_made(self, transport: Any) -> None:
        """Begin."""
        transport.pause_reading()  # what arrives is for the protocol of TLS
        protocol = self._door.make()
        task = asyncio.get_running_loop().create_task(self._shake(transport, protocol))
        self._door.enter(transport, task, protocol)

    def data_received(self, data: bytes) -> None:
        """Keep what came right behind the handshake."""
        self._received.append(data)

    async def _shake(self, transport: Any, protocol: Any) -> None:
        door, loop = self._door, asyncio.get_running_loop()
        try:
            secure: Any = await loop.start_tls(
                transport, self, door.context, server_side=True, ssl_handshake_timeout=door.timeout_s
            )
        except OSError:  # no TLS, none that is spoken here, too late, or gone
            return
        finally:
            door.leave(transport)
        if secure is None or secure.is_closing():
            return
        secure.set_protocol(protocol)
        protocol.connection_made(secure)
        for data in self._received:
            protocol.data_received(data)
        self._received.clear()
