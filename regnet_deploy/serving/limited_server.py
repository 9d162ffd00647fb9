"""uvicorn's server with connections of our own, and the check that the installed uvicorn fits."""

from __future__ import annotations

import dis
import inspect
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.lifespan.off import LifespanOff
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from regnet_deploy.errors import ServerError
from regnet_deploy.serving.acceptor import Acceptor
from regnet_deploy.serving.body_receiver import BodyReceiver, create_read_buffer
from regnet_deploy.serving.connection_limits import ConnectionLimits
from regnet_deploy.serving.connection_places import ConnectionCounts, ConnectionPlaces
from regnet_deploy.serving.limited_protocol import LimitedProtocol

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
    uvicorn.Config: ("loaded_app", "ssl"),
    uvicorn.Server: ("force_exit", "lifespan", "server_state", "servers", "should_exit", "started"),
    LifespanOff: ("state",),
    HttpToolsProtocol: (
        *("app", "config", "connections", "cycle", "flow", "headers", "loop", "parser", "pipeline", "scheme"),
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
    """uvicorn's server, whose connections are :class:`~regnet_deploy.serving.limited_protocol.LimitedProtocol`."""

    def __init__(
        self, config: uvicorn.Config, limits: ConnectionLimits, counts: ConnectionCounts | None = None
    ) -> None:
        """Create a server.

        Args:
            config: of uvicorn.
            limits: of connections.
            counts: of connections, for metrics; they are updated.

        Raises:
            ServerError: the installed uvicorn does not fit.
        """
        check_uvicorn()
        super().__init__(config)
        self._limits = limits
        self._counts = counts or ConnectionCounts()
        self._places = ConnectionPlaces(limits, self._counts)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on bound sockets.

        Raises:
            ServerError: a socket cannot be served.
        """
        await super().startup([])
        self.started = False  # until the sockets are served
        config, buffer, limits = self.config, create_read_buffer(), self._limits
        self._counts.limit = limits.max_connections

        def create_protocol(lost: Callable[[], None]) -> Any:
            protocol = LimitedProtocol(config, self.server_state, self.lifespan.state, limits, self._places)
            return BodyReceiver(protocol, buffer, lost)

        for bound in sockets or []:
            try:
                acceptor = Acceptor(
                    bound,
                    create_protocol,
                    self._counts,
                    limits.max_open(tls=config.ssl is not None),
                    self._places.close_refused,
                    config.ssl,
                    min(limits.timeout_s, HANDSHAKE_TIMEOUT_S),
                )
            except (OSError, ValueError) as error:
                for other in self.servers:
                    other.close()
                raise ServerError(f"cannot listen on {bound}: {error}") from error
            self.servers.append(acceptor)  # type: ignore[arg-type]  # it has what uvicorn calls
        self.started = True

    def leave(self) -> None:
        """Have each connection closed after its next response, which says so."""
        self._places.leaving = True
        for connection in self.server_state.connections:
            connection.leave()  # type: ignore[union-attr]

    def close_idle(self) -> None:
        """Close the connections that wait for a request."""
        self._places.close_idle()
