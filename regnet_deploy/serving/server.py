"""The server process: sockets, start, proof, signals, end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from regnet_deploy.errors import RegnetDeployError, ServerError
from regnet_deploy.runtimes.golden_set import Agreement
from regnet_deploy.serving.admission import ServerState
from regnet_deploy.serving.app import create_app
from regnet_deploy.serving.connection_limits import limited_protocol
from regnet_deploy.serving.listeners import start_listeners
from regnet_deploy.serving.scheduling import batch_scheduling
from regnet_deploy.serving.server_core import ServerCore

#: Seconds for which an idle connection is kept; longer than the proxies in front keep theirs.
KEEP_ALIVE_S = 75


@dataclass(frozen=True)
class Listeners:
    """Where a server listens, and for whom.

    Attributes:
        http: bound socket.
        grpc: host and port for gRPC, None for none.
        metrics: bound socket for metrics alone; None where they are on ``http``, as ``metrics_at_http`` says.
        metrics_at_http: answer ``GET /metrics`` on ``http``.
        token: that clients must show; None where everybody may ask.
        tls: files of the certificate and its key; None listens in the clear.
    """

    http: socket.socket
    grpc: tuple[str, int] | None = None
    metrics: socket.socket | None = None
    metrics_at_http: bool = False
    token: str | None = None
    tls: tuple[Path, Path] | None = None


@dataclass(frozen=True)
class ServerReady:
    """A server that answers from now on.

    Attributes:
        agreements: of each version with its golden set, in the order in which they were opened.
        grpc_port: where gRPC listens; None where it does not.
    """

    agreements: list[Agreement] = field(default_factory=list)
    grpc_port: int | None = None


def bind(host: str, port: int, option: str = "--port") -> socket.socket:
    """Return a socket bound to ``host`` and ``port``; port 0 takes a free one. ``option`` is what an error names.

    Raises:
        ServerError: the address is in use, not of this machine, or not allowed.
    """
    if not host:  # which the system would take for every address
        raise ServerError("cannot listen on an empty host: 127.0.0.1 is this machine alone, 0.0.0.0 every address")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            bound.listen(1)  # says now, not later, that another server listens here
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise ServerError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another with --host and {option}, "
            f"{option} 0 takes a free one"
        ) from None
    return bound


def url_of(bound: socket.socket, scheme: str = "http") -> str:
    """Return the base URL of a bound socket."""
    host, port = bound.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def serve(
    assembly: ServerCore,
    doors: Listeners,
    drain_s: float,
    announce: Callable[[ServerReady], None],
    linger_s: float = 0.0,
    stop: threading.Event | None = None,
) -> None:
    """Answer requests until a signal comes or ``stop`` is set.

    The golden sets are replayed while the server already answers probes; ``announce`` is called when they have passed
    and requests are let in. SIGTERM or SIGINT: not ready any more; for ``linger_s`` seconds requests are answered all
    the same, for balancers take a moment to see it; then no more are let in and those inside are finished, for at most
    ``drain_s`` seconds. A second signal ends at once.

    Raises:
        ProofError: a golden set disagrees; no request was answered.
        ServerError: requests had to be cut off, or a golden set could not be replayed.
    """
    limits = assembly.service.limits
    certificate, key = doors.tls or (None, None)
    config = uvicorn.Config(
        create_app(
            assembly.service,
            token=doors.token,
            metrics=assembly.metrics.scrape if doors.metrics_at_http else None,
        ),
        http=limited_protocol(limits.read_timeout_s, limits.max_connections),
        lifespan="off",
        ws="none",
        log_config=None,  # the log of the server has its handlers by now
        log_level=logging.WARNING,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ssl_certfile=certificate,
        ssl_keyfile=key,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=1,  # when it comes to that, the requests are answered or have had their time
    )
    server = _Server(config, assembly, doors, linger_s, drain_s, announce, stop or threading.Event())
    with batch_scheduling():
        server.run(sockets=[doors.http])
    if server.failure is not None:
        raise server.failure


class _Server(uvicorn.Server):
    """uvicorn's server with a proof at its start and a drain at its end."""

    def __init__(
        self,
        config: uvicorn.Config,
        assembly: ServerCore,
        doors: Listeners,
        linger_s: float,
        drain_s: float,
        announce: Callable[[ServerReady], None],
        stop: threading.Event,
    ) -> None:
        super().__init__(config)
        self._stop = stop
        self.failure: RegnetDeployError | None = None
        self._assembly, self._doors = assembly, doors
        self._admission = assembly.service.admission
        self._linger_s, self._drain_s = linger_s, drain_s
        self._linger_until: float | None = None
        self._announce = announce
        self._start: asyncio.Task[ServerReady] | None = None
        self._drain_until: float | None = None
        self._others: list[Any] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and begin to replay the golden sets."""
        await super().startup([])
        self.servers += await start_listeners(self, sockets or [], self._assembly.service.limits.read_timeout_s)
        self._start = asyncio.ensure_future(self._begin())

    async def _begin(self) -> ServerReady:
        """Open the other doors, which answer probes as the first one does, and prove what is served."""
        from regnet_deploy.serving.grpc_server import start_grpc
        from regnet_deploy.serving.metrics_server import start_metrics

        port = None
        if self._doors.metrics is not None:
            self._others.append(await start_metrics(self._assembly.metrics, self._doors.metrics))
        if self._doors.grpc is not None:
            host, wanted = self._doors.grpc
            grpc = await start_grpc(self._assembly.service, host, wanted, token=self._doors.token, tls=self._doors.tls)
            self._others.append(grpc)
            port = grpc.port
        return ServerReady(await self._assembly.start(), port)

    async def on_tick(self, counter: int) -> bool:
        """Move from one state to the next; called ten times a second, True ends the server."""
        if self._start is not None and self._start.done():
            try:
                ready = self._start.result()
            except RegnetDeployError as error:
                self.failure = error
                return True
            except Exception as error:  # out of memory, say: whatever it is, a server that is not proved ends
                self.failure = ServerError(f"the golden set could not be replayed: {type(error).__name__} {error}")
                return True
            self._start = None
            if self._admission.state is ServerState.STARTING:
                self._admission.state = ServerState.READY
                self._announce(ready)
        if self._stop.is_set() and self._drain_until is None:
            self._drain()
        if self._linger_until is not None and time.monotonic() > self._linger_until:
            self._linger_until = None
            self._drain()
        if self._drain_until is not None:
            if not self._admission.in_flight:
                return True
            if time.monotonic() > self._drain_until:
                return self._cut_off(f"after {self._drain_s:g} s of draining")
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close every door, then what stood behind them."""
        if self._start is not None:
            self._start.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):  # it was said, or does not matter any more
                await self._start
        await super().shutdown(sockets)
        for other in self._others:
            await other.stop()
        await self._assembly.stop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal: the first one drains, the second one ends."""
        if self._drain_until is not None or self._linger_until is not None:
            self._cut_off(f"by a second {signal.Signals(sig).name}")
            self.should_exit = self.force_exit = True
        elif self._linger_s > 0 and self._admission.state is ServerState.READY:
            self._admission.state = ServerState.LEAVING
            self._linger_until = time.monotonic() + self._linger_s
            self._assembly.tell("leaving", seconds=self._linger_s)
        else:
            self._drain()

    def _drain(self) -> None:
        self._admission.state = ServerState.DRAINING
        self._drain_until = time.monotonic() + self._drain_s
        self._assembly.tell("draining", requests=self._admission.in_flight)

    def _cut_off(self, why: str) -> bool:
        if self._admission.in_flight:
            self.failure = ServerError(f"{self._admission.in_flight} requests were cut off {why}")
            logging.getLogger("uvicorn.error").disabled = True  # it has a traceback for each of them
        return True
