"""The server process: sockets, start, golden-set check, signals, shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from regnet_deploy.errors import RegnetDeployError, ServerError, UsageError, require
from regnet_deploy.runtimes.golden_set import Agreement
from regnet_deploy.serving.admission import ServerState
from regnet_deploy.serving.app import create_app
from regnet_deploy.serving.bearer_auth import check_token
from regnet_deploy.serving.connection_limits import ConnectionLimits
from regnet_deploy.serving.limited_server import LimitedServer, ServerConfig
from regnet_deploy.serving.limits import Limits
from regnet_deploy.serving.listeners import Listeners, bind, check_tls, is_loopback, url_of
from regnet_deploy.serving.model_repository import check_model_name
from regnet_deploy.serving.model_version import ModelVersion, ServeOptions
from regnet_deploy.serving.request_log import RequestLog
from regnet_deploy.serving.scheduling import batch_scheduling
from regnet_deploy.serving.server_core import ServerCore
from regnet_deploy.serving.tracing import open_tracing
from regnet_deploy.serving.version_policy import parse_version_policies

#: Seconds for which an idle connection is kept: longer than proxies in front of the server keep theirs.
KEEP_ALIVE_S = 75


@dataclass(frozen=True)
class ServerReady:
    """A server that answers requests from now on.

    Attributes:
        url: base URL of HTTP.
        grpc_port: port of gRPC; None: no gRPC.
        metrics_url: of ``GET /metrics``; None: metrics are not served.
        models: what is served, each with its golden set's agreement.
    """

    url: str
    grpc_port: int | None
    metrics_url: str | None
    models: tuple[tuple[ModelVersion, Agreement], ...]

    def to_json(self) -> dict[str, Any]:
        """Return JSON data; the first model's facts stand at the top level as well."""
        models = [
            {
                "model": model.name,
                "version": model.version,
                "variant": model.variant,
                "runtime": model.session.runtime,
                "device": model.session.device,
                "executors": model.batching.executors,
                "threads": model.threads,
                "batch": model.batching.batch,
                "max_delay_ms": model.batching.max_delay_s * 1000,
                "trained": model.card["trained"],
                "note": model.note,
                "golden": agreement.to_json(),
            }
            for model, agreement in self.models
        ]
        facts = {"url": self.url, "grpc_port": self.grpc_port, "metrics": self.metrics_url}
        return {**facts, **(models[0] if models else {}), "models": models}


@dataclass(frozen=True)
class ServerSettings:
    """How to serve what is at a path; the options of ``regnet-deploy serve``.

    Attributes:
        name: of the model where the path is a bundle.
        model: how to run the models.
        limits: what clients may ask for.
        host: to listen on.
        port: of HTTP; 0 takes a free one.
        grpc_port: of gRPC; None: no gRPC.
        metrics_port: of metrics only; None: they are served on ``port``, where that is loopback or needs a token.
        token: bearer token that clients must send; None: requests need none.
        tls: files of the certificate chain and its private key (PEM); None: no TLS.
        decoders: processes that decode images; None: one for each core.
        poll_s: seconds between two looks for new versions; 0: none.
        versions: which are served, such as ``latest:2`` or ``cats=3,5``; empty: all.
        ready: models that must answer where the server is ready: ``any``, ``all``, or the name of one.
        linger_s, drain_s: see :func:`serve`.
        log_format: of the log, on stderr.
        log_requests: log every request, not only those that the server failed.
        trace_url: of an OpenTelemetry collector; None: no traces.

    Raises:
        UsageError: the name, the token, a port or a duration is not valid.
    """

    name: str = "regnet"
    model: ServeOptions = field(default_factory=ServeOptions)
    limits: Limits = field(default_factory=Limits)
    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int | None = None
    metrics_port: int | None = None
    token: str | None = field(default=None, repr=False)
    tls: tuple[Path, Path] | None = None
    decoders: int | None = None
    poll_s: float = 5.0
    versions: tuple[str, ...] = ()
    ready: str = "any"
    linger_s: float = 0.0
    drain_s: float = 30.0
    log_format: str = "text"
    log_requests: bool = False
    trace_url: str | None = None

    def __post_init__(self) -> None:
        """Check the settings; files and addresses are checked when the server starts."""
        for name in (self.name, self.ready, *parse_version_policies(self.versions).models):
            check_model_name(name)
        if self.token is not None:
            object.__setattr__(self, "token", check_token(self.token))
        for name in ("port", "grpc_port", "metrics_port"):
            port = getattr(self, name)
            if port is not None and not 0 <= port <= 65535:
                raise UsageError(f"{name} must be a number from 0 to 65535, not {port}")
        if self.decoders is not None and self.decoders < 1:
            raise UsageError(f"decoders must be 1 or more, not {self.decoders}")
        for name in ("poll_s", "linger_s", "drain_s"):
            seconds = getattr(self, name)
            if not (seconds >= 0 and math.isfinite(seconds)):
                raise UsageError(f"{name} must be a number of seconds, 0 or more, not {seconds}")


def run_server(
    path: str | Path,
    settings: ServerSettings,
    announce: Callable[[ServerReady], None],
    stop: threading.Event | None = None,
) -> None:
    """Open what is at a path and answer requests until a signal arrives, in the main thread, or ``stop`` is set.

    Args:
        path: a bundle, or a folder of models and versions.
        settings: how to serve it.
        announce: called when requests are accepted.
        stop: when it is set, the server drains at once: ``linger_s`` is for signals.

    Raises:
        ProofError: a golden set disagrees; no request was answered.
        RegnetDeployError: the server cannot start (no gRPC, TLS files, ...), or requests had to be cut off.
    """
    if settings.grpc_port is not None:
        require("grpc", "grpc")
        require("google.protobuf", "grpc")
    if settings.tls is not None:
        check_tls(*settings.tls)
    with contextlib.ExitStack() as stack:
        http = stack.enter_context(bind(settings.host, settings.port))
        metrics = None
        if settings.metrics_port is not None:
            metrics = stack.enter_context(bind(settings.host, settings.metrics_port, "--metrics-port"))
        grpc = None if settings.grpc_port is None else (settings.host, settings.grpc_port)
        if grpc is not None:  # an error of the address is reported before the models are opened
            bind(*grpc, "--grpc-port").close()
        is_open = settings.token is None and not is_loopback(http.getsockname()[0])
        listeners = Listeners(http, grpc, metrics, metrics is None and not is_open, settings.token, settings.tls)
        log = RequestLog(settings.log_format, settings.log_requests, sys.stderr)
        stack.callback(log.close)
        observers = [log.observe]
        if settings.trace_url is not None:
            tracing = open_tracing(settings.trace_url)
            stack.callback(tracing.close)
            observers.append(tracing.observe)
        core = ServerCore(
            path,
            name=settings.name,
            options=settings.model,
            limits=settings.limits,
            decoders=settings.decoders,
            poll_s=settings.poll_s,
            versions=settings.versions,
            ready=settings.ready,
            log_event=log.event,
            observers=tuple(observers),
        )

        def log_and_announce(ready: ServerReady) -> None:
            if settings.log_format == "json":  # in text the caller says it
                log.event("ready", **ready.to_json())
            announce(ready)
            if is_open:
                log.event("open", logging.WARNING, host=settings.host, token=None, tls=settings.tls is not None)

        serve(core, listeners, settings.drain_s, log_and_announce, settings.linger_s, stop)


def serve(
    core: ServerCore,
    listeners: Listeners,
    drain_s: float,
    announce: Callable[[ServerReady], None],
    linger_s: float = 0.0,
    stop: threading.Event | None = None,
) -> None:
    """Answer requests until a signal arrives or ``stop`` is set.

    Probes are answered at once, while the golden sets are replayed; requests are accepted, and ``announce`` is called,
    when they agree. On SIGTERM or SIGINT the server reports that it is not ready. For ``linger_s`` seconds it still
    accepts requests, because load balancers take a moment to notice. Then it refuses new requests and gives those in
    flight ``drain_s`` seconds to finish. A second signal ends it at once.

    Args:
        core: models and everything around them.
        listeners: sockets and what they ask of clients.
        drain_s: seconds that requests in flight have to finish.
        announce: called when requests are accepted.
        linger_s: seconds between a signal and the first refusal.
        stop: when it is set, the server drains at once, for a server that does not run in the main thread.

    Raises:
        ProofError: a golden set disagrees; no request was answered.
        ServerError: requests had to be cut off, a golden set could not be replayed, or the installed uvicorn does not
            fit.
    """
    certificate, key = listeners.tls or (None, None)
    config = ServerConfig(
        create_app(
            core.service,
            token=listeners.token,
            metrics=core.metrics.scrape if listeners.metrics_at_http else None,
        ),
        http="httptools",
        lifespan="off",
        ws="none",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ssl_certfile=certificate,
        ssl_keyfile=key,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=1,  # by then requests in flight have finished or had their time
    )
    server = _Server(config, core, listeners, linger_s, drain_s, announce, stop or threading.Event())
    log = logging.getLogger("uvicorn.error")
    log.addFilter(server.log_filter)
    try:
        with batch_scheduling():
            server.run(sockets=[listeners.http])
    finally:
        log.removeFilter(server.log_filter)
    if server.failure is not None:
        raise server.failure


class _CutOffFilter(logging.Filter):
    """Drops what uvicorn logs of requests that this thread's server has cut off: a traceback for each of them.

    Attributes:
        active: requests were cut off.
    """

    def __init__(self) -> None:
        super().__init__()
        self.active = False
        self._thread = threading.get_ident()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to keep a record."""
        return not (self.active and record.thread == self._thread)


class _Server(LimitedServer):
    """A uvicorn server with a golden-set check at its start and a drain at its end."""

    def __init__(
        self,
        config: uvicorn.Config,
        core: ServerCore,
        listeners: Listeners,
        linger_s: float,
        drain_s: float,
        announce: Callable[[ServerReady], None],
        stop: threading.Event,
    ) -> None:
        limits = core.service.limits
        super().__init__(config, ConnectionLimits(limits.max_connections, limits.read_timeout_s))
        self._stop = stop
        self.failure: RegnetDeployError | None = None
        self._core, self._listeners = core, listeners
        self._admission = core.service.admission
        self._linger_s, self._drain_s = linger_s, drain_s
        self._linger_until: float | None = None
        self._drain_until: float | None = None
        self._announce = announce
        self._start: asyncio.Task[ServerReady] | None = None
        self._unannounced: ServerReady | None = None
        self._other_servers: list[Any] = []
        self.log_filter = _CutOffFilter()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and begin to replay the golden sets."""
        await super().startup(sockets)
        self._start = asyncio.ensure_future(self._begin())

    async def _begin(self) -> ServerReady:
        """Open the other listeners, which answer probes as well, and replay the golden sets."""
        from regnet_deploy.serving.grpc_server import start_grpc
        from regnet_deploy.serving.metrics_server import start_metrics

        listeners, port = self._listeners, None
        if listeners.metrics is not None:
            self._other_servers.append(await start_metrics(self._core.metrics, listeners.metrics))
        if listeners.grpc is not None:
            host, wanted = listeners.grpc
            grpc = await start_grpc(self._core.service, host, wanted, token=listeners.token, tls=listeners.tls)
            self._other_servers.append(grpc)
            port = grpc.port
        await self._core.start()
        url = url_of(listeners.http, "https" if listeners.tls else "http")
        metrics = f"{url}/metrics" if listeners.metrics_at_http else None
        if listeners.metrics is not None:
            metrics = f"{url_of(listeners.metrics)}/metrics"
        return ServerReady(url, port, metrics, ())

    async def on_tick(self, counter: int) -> bool:
        """Move from one state to the next; called ten times a second, True ends the server."""
        if self._start is not None and self._start.done():
            try:
                self._unannounced = self._start.result()
            except RegnetDeployError as error:
                self.failure = error
                return True
            except Exception as error:  # for example MemoryError: a server that is not proved ends, whatever it is
                self.failure = ServerError(f"the golden set could not be replayed: {type(error).__name__} {error}")
                return True
            self._start = None
            if self._admission.state is ServerState.STARTING:
                self._admission.state = ServerState.READY
        ready, models = self._unannounced, self._core.service.models
        if ready is not None and models.all() and self._admission.state is ServerState.READY:
            self._announce(replace(ready, models=tuple(models.served())))
            self._unannounced = None
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
        """Close the listeners, then stop the core."""
        if self._start is not None:
            self._start.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):  # reported already, or of no interest any more
                await self._start
        await super().shutdown(sockets)
        for other in self._other_servers:
            await other.stop()
        await self._core.stop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal: the first one drains, the second one ends the server."""
        if self._drain_until is not None or self._linger_until is not None:
            self._admission.state = ServerState.DRAINING
            self._cut_off(f"by a second {signal.Signals(sig).name}")
            self.should_exit = self.force_exit = True
        elif self._linger_s > 0 and self._admission.state is ServerState.READY:
            self._admission.state = ServerState.LEAVING
            self._linger_until = time.monotonic() + self._linger_s
            self._core.log_event("leaving", seconds=self._linger_s)
        else:
            self._drain()

    def _drain(self) -> None:
        self._admission.state = ServerState.DRAINING
        self._drain_until = time.monotonic() + self._drain_s
        self._core.log_event("draining", requests=self._admission.in_flight)

    def _cut_off(self, reason: str) -> bool:
        if self._admission.in_flight:
            self.failure = ServerError(f"{self._admission.in_flight} requests were cut off {reason}")
            self.log_filter.active = True
        return True
