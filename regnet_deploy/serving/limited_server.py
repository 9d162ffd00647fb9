"""uvicorn's server with connections of our own, and the check that the installed uvicorn fits."""

from __future__ import annotations

import asyncio
import dis
import inspect
import socket
from typing import Any

import uvicorn
from uvicorn.lifespan.off import LifespanOff
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from regnet_deploy.errors import ServerError
from regnet_deploy.serving.body_receiver import BodyReceiver, create_read_buffer
from regnet_deploy.serving.connection_limits import ConnectionLimits, IdleConnections, LimitedProtocol

#: Versions of uvicorn that are accepted, as in pyproject.toml. The tests were run with 0.34, 0.38, 0.44, 0.50, 0.52 and
#: 0.54; for the versions between them there is :func:`check_uvicorn`.
UVICORN_VERSIONS = ">=0.34,<0.55"

#: Seconds for a TLS handshake; asyncio's default is 60.
HANDSHAKE_TIMEOUT_S = 10.0

#: Parts of uvicorn that its documentation does not promise: methods that are overridden or called, and attributes.
_METHODS: dict[type, tuple[str, ...]] = {
    uvicorn.Config: ("configure_logging", "load"),
    FlowControl: ("pause_reading", "resume_reading"),
    uvicorn.Server: ("startup", "shutdown", "on_tick", "handle_exit", "capture_signals"),
    HttpToolsProtocol: (
        "connection_made",
        "connection_lost",
        "data_received",
        "on_message_begin",
        "on_headers_complete",
        "on_body",
        "on_message_complete",
        "on_response_complete",
        "pause_writing",
        "resume_writing",
        "send_400_response",
        "shutdown",
        "timeout_keep_alive_handler",
        "_unset_keepalive_if_required",
    ),
}
_ATTRIBUTES: dict[type, tuple[str, ...]] = {
    uvicorn.Config: ("backlog", "loaded_app", "ssl"),
    uvicorn.Server: ("force_exit", "lifespan", "server_state", "servers", "should_exit", "started"),
    LifespanOff: ("state",),
    HttpToolsProtocol: (
        *("app", "connections", "cycle", "flow", "headers", "loop", "parser", "pipeline"),
        *("timeout_keep_alive", "timeout_keep_alive_task", "transport", "url"),
    ),
    RequestResponseCycle: (
        *("body", "default_headers", "disconnected", "keep_alive", "message_event", "more_body", "response_complete"),
        *("response_started", "scope", "waiting_for_100_continue"),
    ),
}


def check_uvicorn() -> None:
    """Check that the installed uvicorn has all that this server builds on.

    Raises:
        ServerError: it lacks something; says what, and how to install a version that has it.
    """
    missing = []
    for owner, names in _METHODS.items():
        missing += [f"{owner.__name__}.{name}" for name in names if not hasattr(owner, name)]
    for owner, names in _ATTRIBUTES.items():
        assigned = {
            instruction.argval
            for function in vars(owner).values()
            if inspect.isfunction(function)
            for instruction in dis.get_instructions(function)
            if instruction.opname == "STORE_ATTR"
        }
        missing += [f"{owner.__name__}.{name}" for name in names if name not in assigned]
    if missing:
        raise ServerError(
            f"uvicorn {uvicorn.__version__} lacks {', '.join(missing)}; this server works with uvicorn "
            f"{UVICORN_VERSIONS}: pip install 'uvicorn[standard]{UVICORN_VERSIONS}'"
        )


class ServerConfig(uvicorn.Config):
    """uvicorn's configuration, without its changes to the loggers of the process."""

    def configure_logging(self) -> None:
        """Leave the loggers as they are."""


class LimitedServer(uvicorn.Server):
    """uvicorn's server, whose connections are :class:`~regnet_deploy.serving.connection_limits.LimitedProtocol`."""

    def __init__(self, config: uvicorn.Config, limits: ConnectionLimits) -> None:
        """Create a server.

        Raises:
            ServerError: the installed uvicorn does not fit.
        """
        check_uvicorn()
        super().__init__(config)
        self._limits = limits
        self._idle = IdleConnections()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on bound sockets.

        A connection counts from the end of its TLS handshake, for which uvicorn has no limit of its own.

        Raises:
            ServerError: a socket cannot be served.
        """
        await super().startup([])
        self.started = False  # until the sockets are served
        config, buffer = self.config, create_read_buffer()
        handshake_s = None if config.ssl is None else min(self._limits.timeout_s, HANDSHAKE_TIMEOUT_S)

        def create_protocol() -> Any:
            protocol = LimitedProtocol(config, self.server_state, self.lifespan.state, self._limits, self._idle)
            return BodyReceiver(protocol, buffer)

        loop = asyncio.get_running_loop()
        for bound in sockets or []:
            try:
                server = await loop.create_server(
                    create_protocol,
                    sock=bound,
                    ssl=config.ssl,
                    backlog=config.backlog,
                    ssl_handshake_timeout=handshake_s,
                )
            except (OSError, ValueError) as error:
                for other in self.servers:
                    other.close()
                raise ServerError(f"cannot listen on {bound}: {error}") from error
            self.servers.append(server)
        self.started = True
