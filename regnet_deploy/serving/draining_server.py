"""The HTTP server of a process: it proves its models when it starts, and ends without losing a request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn

from regnet_deploy.errors import RegnetDeployError, ServerError
from regnet_deploy.runtimes.golden_set import Agreement
from regnet_deploy.serving.admission import ServerState
from regnet_deploy.serving.connection_limits import ConnectionLimits
from regnet_deploy.serving.limited_server import LimitedServer
from regnet_deploy.serving.listeners import Listeners, url_of
from regnet_deploy.serving.model_version import ModelVersion
from regnet_deploy.serving.server_core import ServerCore

if TYPE_CHECKING:
    from regnet_deploy.serving.grpc_server import GrpcServer
    from regnet_deploy.serving.metrics_server import MetricsServer

#: Signals that end the server as SIGTERM does, but never at once, however often they come.
_DRAIN_SIGNALS = (signal.SIGHUP, signal.SIGQUIT)
#: Signals that change nothing; without a handler they would end the process.
_IGNORED_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)


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
                "restriction": model.card["restriction"],
                "note": model.note,
                "golden": agreement.to_json(),
            }
            for model, agreement in self.models
        ]
        facts = {"url": self.url, "grpc_port": self.grpc_port, "metrics": self.metrics_url}
        return {**facts, **(models[0] if models else {}), "models": models}


class CutOffFilter(logging.Filter):
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


class DrainingServer(LimitedServer):
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
        super().__init__(config, ConnectionLimits(limits.max_connections, limits.read_timeout_s), core.connections)
        self._stop = stop
        self.failure: RegnetDeployError | None = None
        self._core, self._listeners = core, listeners
        self._admission = core.service.admission
        self._linger_s, self._drain_s = linger_s, drain_s
        self._leaving_since: float | None = None
        self._is_draining = False
        self._drain_until: float | None = None
        self._announce = announce
        self._start: asyncio.Task[ServerReady] | None = None
        self._unannounced: ServerReady | None = None
        self._metrics: MetricsServer | None = None
        self._grpc: GrpcServer | None = None
        self.log_filter = CutOffFilter()

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
            self._metrics = await start_metrics(self._core.metrics, listeners.metrics)
        if listeners.grpc is not None:
            host, wanted = listeners.grpc
            self._grpc = await start_grpc(
                self._core.service, host, wanted, token=listeners.token, tls=listeners.tls, linger_s=self._linger_s
            )
            port = self._grpc.port
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
        if self._leaving_since is not None:
            self._leave(time.monotonic() - self._leaving_since)
        if self._drain_until is not None:
            if not self._admission.in_flight:
                return True
            if time.monotonic() > self._drain_until:
                return self._cut_off(f"after {self._drain_s:g} s of draining")
        return await super().on_tick(counter)

    def _leave(self, seconds: float) -> None:
        """Do what is due so many seconds after the signal: clients are sent away before they are refused."""
        if not self._places.leaving:
            self.leave()
        if self._grpc is not None and seconds >= self._linger_s / 2:
            self._grpc.stop_listening()
        if seconds >= self._linger_s and self._drain_until is None:
            self._drain()
        if self._drain_until is not None and not self._is_draining:
            self._is_draining = True
            self.close_idle()
            if self._grpc is not None:
                self._grpc.drain()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the listeners, then stop the core."""
        if self._start is not None:
            self._start.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):  # reported already, or of no interest any more
                await self._start
        await super().shutdown(sockets)
        for other in (self._metrics, self._grpc):
            if other is not None:
                await other.stop()
        await self._core.stop()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals in the main thread while the context lasts."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        with super().capture_signals():
            handlers = dict.fromkeys(_DRAIN_SIGNALS, self._handle_drain)
            handlers |= dict.fromkeys(_IGNORED_SIGNALS, self._handle_ignored)
            # What the parent has the process ignore stays ignored: nohup does that with SIGHUP.
            before = {
                sig: signal.signal(sig, handler)
                for sig, handler in handlers.items()
                if signal.getsignal(sig) is not signal.SIG_IGN
            }
            try:
                yield
            finally:
                for sig, handler in before.items():
                    signal.signal(sig, handler)

    def _handle_drain(self, sig: int, frame: FrameType | None) -> None:
        if self._leaving_since is None:  # a closed terminal may send it twice
            self.handle_exit(sig, frame)

    def _handle_ignored(self, sig: int, frame: FrameType | None) -> None:
        self._core.log_event("ignored", signal=signal.Signals(sig).name)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal: the first one lets the server leave, the second one ends it."""
        if self._leaving_since is not None:
            self._admission.state = ServerState.DRAINING
            self._cut_off(f"by a second {signal.Signals(sig).name}")
            self.should_exit = self.force_exit = True
        elif self._linger_s > 0 and self._admission.state is ServerState.READY:
            self._admission.state = ServerState.LEAVING
            self._leaving_since = time.monotonic()
            self._core.log_event("leaving", seconds=self._linger_s)
        else:
            self._drain()

    def _drain(self) -> None:
        self._admission.state = ServerState.DRAINING
        self._drain_until = time.monotonic() + self._drain_s
        if self._leaving_since is None:
            self._leaving_since = time.monotonic()
        self._core.log_event("draining", requests=self._admission.in_flight)

    def _cut_off(self, reason: str) -> bool:
        if self._admission.in_flight:
            self.failure = ServerError(f"{self._admission.in_flight} requests were cut off {reason}")
            self.log_filter.active = True
        return True
