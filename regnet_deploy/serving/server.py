"""The server process: sockets, start, golden-set check, signals, shutdown."""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from regnet_deploy.cpu import available_cores
from regnet_deploy.errors import UsageError, require
from regnet_deploy.field_types import check_field_types
from regnet_deploy.serving.app import create_app
from regnet_deploy.serving.bearer_auth import check_token
from regnet_deploy.serving.core_settings import CoreSettings
from regnet_deploy.serving.draining_server import DrainingServer, ServerReady
from regnet_deploy.serving.limited_server import ServerConfig
from regnet_deploy.serving.limits import Limits
from regnet_deploy.serving.listeners import Listeners, bind, check_tls, is_loopback
from regnet_deploy.serving.metrics_server import LIMITS as METRICS_LIMITS
from regnet_deploy.serving.model_repository import check_model_name
from regnet_deploy.serving.model_version import ServeOptions
from regnet_deploy.serving.open_files import fit_connections
from regnet_deploy.serving.request_log import RequestLog
from regnet_deploy.serving.scheduling import batch_scheduling
from regnet_deploy.serving.server_core import ServerCore
from regnet_deploy.serving.tracing import open_tracing
from regnet_deploy.serving.version_policy import parse_version_policies

#: Seconds for which an idle HTTP connection is kept: longer than proxies in front of the server keep theirs.
KEEP_ALIVE_S = 75.0


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
        keep_alive_s: seconds for which an idle HTTP connection is kept; by default longer than proxies in front of the
            server keep theirs.
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
    keep_alive_s: float = KEEP_ALIVE_S
    log_format: str = "text"
    log_requests: bool = False
    trace_url: str | None = None

    def __post_init__(self) -> None:
        """Check the settings; files and addresses are checked when the server starts."""
        check_field_types(self)
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
        if not (self.keep_alive_s > 0 and math.isfinite(self.keep_alive_s)):
            raise UsageError(f"keep_alive_s must be a number of seconds, more than 0, not {self.keep_alive_s}")


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
        address = http.getsockname()[0]  # gRPC gets it and not the host, of whose addresses it would take all
        if settings.grpc_port is not None:  # an error of the port is reported before the models are opened
            bind(settings.host, settings.grpc_port, "--grpc-port").close()
        grpc = None if settings.grpc_port is None else (address, settings.grpc_port)
        is_open = settings.token is None and not is_loopback(address)
        listeners = Listeners(http, grpc, metrics, metrics is None and not is_open, settings.token, settings.tls)
        log = RequestLog(settings.log_format, settings.log_requests, sys.stderr)
        stack.callback(log.close)
        observers = [log.observe]
        if settings.trace_url is not None:
            tracing = open_tracing(settings.trace_url)
            stack.callback(tracing.close)
            observers.append(tracing.observe)
        fitted = fit_connections(
            settings.limits.max_connections,
            decoders=settings.decoders or available_cores(),
            grpc=grpc is not None,
            tls=settings.tls is not None,
            others=0 if metrics is None else METRICS_LIMITS.max_open(tls=False),
            may_raise=stop is None,  # else the process is not the server's
        )
        core = ServerCore(
            path,
            CoreSettings(
                name=settings.name,
                options=settings.model,
                limits=replace(settings.limits, max_connections=fitted.connections),
                decoders=settings.decoders,
                poll_s=settings.poll_s,
                versions=settings.versions,
                ready=settings.ready,
            ),
            log_event=log.event,
            observers=tuple(observers),
        )

        def log_and_announce(ready: ServerReady) -> None:
            if settings.log_format == "json":  # in text the caller says it
                log.event("ready", **ready.to_json())
            announce(ready)
            if fitted.connections < settings.limits.max_connections:
                log.event(
                    "few_open_files",
                    logging.WARNING,
                    connections=fitted.connections,
                    wanted=settings.limits.max_connections,
                    open_files=fitted.open_files,
                    hint=f"for all, raise the limit of open files: ulimit -n {fitted.needed}",
                )
            if is_open:
                log.event("open", logging.WARNING, host=settings.host, token=None, tls=settings.tls is not None)

        serve(core, listeners, settings.drain_s, log_and_announce, settings.linger_s, stop, settings.keep_alive_s)


def serve(
    core: ServerCore,
    listeners: Listeners,
    drain_s: float,
    announce: Callable[[ServerReady], None],
    linger_s: float = 0.0,
    stop: threading.Event | None = None,
    keep_alive_s: float = KEEP_ALIVE_S,
) -> None:
    """Answer requests until a signal arrives or ``stop`` is set.

    Probes are answered at once, while the golden sets are replayed; requests are accepted, and ``announce`` is called,
    when they agree. On SIGTERM, SIGINT, SIGQUIT or SIGHUP the server reports that it is not ready, and each response
    closes its connection, so that clients go elsewhere. For ``linger_s`` seconds it still accepts requests, because
    load balancers take a moment to notice. Then it closes idle connections, refuses new requests and gives those in
    flight ``drain_s`` seconds to finish. A second SIGTERM or SIGINT ends it at once.

    Args:
        core: models and everything around them.
        listeners: sockets and what they ask of clients.
        drain_s: seconds that requests in flight have to finish.
        announce: called when requests are accepted.
        linger_s: seconds between a signal and the first refusal.
        stop: when it is set, the server drains at once, for a server that does not run in the main thread.
        keep_alive_s: seconds for which an idle HTTP connection is kept.

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
        timeout_keep_alive=keep_alive_s,  # type: ignore[arg-type]  # it is given to call_later
        timeout_graceful_shutdown=1,  # by then requests in flight have finished or had their time
    )
    server = DrainingServer(config, core, listeners, linger_s, drain_s, announce, stop or threading.Event())
    log = logging.getLogger("uvicorn.error")
    log.addFilter(server.log_filter)
    try:
        with batch_scheduling():
            server.run(sockets=[listeners.http])
    finally:
        log.removeFilter(server.log_filter)
    if server.failure is not None:
        raise server.failure
