"""Sockets that uvicorn answers on, with TLS handshakes that come to an end."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import uvicorn

from regnet_deploy.serving.body_receiver import BodyReceiver, read_buffer

#: Seconds for a handshake; those of asyncio are 60.
HANDSHAKE_S = 10.0


async def start_listeners(
    server: uvicorn.Server, sockets: list[socket.socket], timeout_s: float
) -> list[asyncio.base_events.Server]:
    """Have a server that has started up without sockets answer on some.

    Until its handshake is done a connection is none that the limits of :mod:`regnet_deploy.serving.connection_limits`
    know of;
    uvicorn leaves the time for it as it is.

    Args:
        server: whose connections these are.
        sockets: bound.
        timeout_s: seconds for a handshake, at most :data:`HANDSHAKE_S`.
    """
    config, loop = server.config, asyncio.get_running_loop()
    protocol: Any = config.http_protocol_class
    memory = read_buffer()

    def make() -> BodyReceiver:
        connection = protocol(config=config, server_state=server.server_state, app_state=server.lifespan.state)
        return BodyReceiver(connection, memory)

    handshake_s = None if config.ssl is None else min(timeout_s, HANDSHAKE_S)
    return [
        await loop.create_server(
            make, sock=sock, ssl=config.ssl, backlog=config.backlog, ssl_handshake_timeout=handshake_s
        )
        for sock in sockets
    ]
