"""Spans of requests for an OpenTelemetry collector, made after the fact and sent by a thread of their own."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from regnet_deploy import __version__
from regnet_deploy.errors import UsageError, require
from regnet_deploy.serving.request_record import RequestRecord

#: Requests that wait to be sent; more are dropped, and counted.
MAX_WAITING = 4096

#: Requests sent at once: few, because encoding them holds the interpreter that the event loop wants too.
BATCH = 64

#: Seconds in which requests gather before they are sent.
GATHER_S = 1.0

#: Seconds that an attempt to send may take, with everything that is tried again.
SEND_TIMEOUT_S = 5.0

#: Seconds between two warnings that the collector cannot be reached.
WARN_EVERY_S = 300.0

_TRACE_PARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.{0,512})?")
_METHODS = {"infer": "ModelInfer"}
_ROUTES = {"infer": "/v2/models/{model}/infer", "classify": "/classify"}


class TraceParent(NamedTuple):
    """The span that a request came from."""

    trace_id: int
    span_id: int
    flags: int


def parse_trace_parent(header: str | None) -> TraceParent | None:
    """Return what the header ``traceparent`` of W3C Trace Context says, or None: there is none, or it is not valid."""
    found = _TRACE_PARENT.fullmatch(header) if header is not None and len(header) < 1024 else None
    if found is None or (header is not None and header.startswith("00") and len(header) != 55):
        return None
    parent = TraceParent(*(int(part, 16) for part in found.groups()))
    return parent if parent.trace_id and parent.span_id else None


class Tracing:
    """Sends a span for each request, with a span for each of its stages.

    Telling it of a request takes no more than putting it into a list. A collector that is not there, slow or broken
    costs spans, and a line in the log now and then, nothing else. The variables of OpenTelemetry for what is sampled
    (``OTEL_TRACES_SAMPLER``), the resource and the exporter's headers are obeyed.

    Args:
        url: to which spans are posted.
        service_name: attribute ``service.name``, unless the environment says otherwise.

    Raises:
        MissingExtra: OpenTelemetry is not installed.
    """

    def __init__(self, url: str, service_name: str) -> None:
        self._logger = logging.getLogger(__package__)
        self._where = _without_secrets(url)
        self._exporter_logger = logging.getLogger("opentelemetry.exporter")
        self._reasons = _Reasons()
        self._spans = _Spans(service_name)
        exporter = require("opentelemetry.exporter.otlp.proto.http.trace_exporter", "otel")
        self._success = require("opentelemetry.sdk.trace.export", "otel").SpanExportResult.SUCCESS
        self._exporter: Any = exporter.OTLPSpanExporter(endpoint=url, timeout=SEND_TIMEOUT_S)
        self._waiting: deque[RequestRecord] = deque()
        self._lost = 0
        self._warned_at = -WARN_EVERY_S
        self._stop = threading.Event()
        self._propagated = self._exporter_logger.propagate
        self._exporter_logger.propagate = False  # what it has to say is said here, and not for every attempt
        self._exporter_logger.addHandler(self._reasons)
        self._thread = threading.Thread(target=self._work, name="tracing", daemon=True)
        self._thread.start()

    def observe(self, finished: RequestRecord) -> None:
        """Have a request's spans sent."""
        if len(self._waiting) < MAX_WAITING:
            self._waiting.append(finished)
        else:
            self._lost += 1

    def close(self, timeout_s: float = 1.5) -> None:
        """Send what waits, for at most ``timeout_s`` seconds and a little."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join(timeout_s)
        with contextlib.suppress(Exception):  # whatever it is, it is over
            self._exporter.shutdown()  # also ends the waiting for another attempt
        self._thread.join(0.25)
        self._exporter_logger.removeHandler(self._reasons)
        self._exporter_logger.propagate = self._propagated

    def _work(self) -> None:
        while True:
            stopping = self._stop.wait(GATHER_S)
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
                if not self._send(batch) and stopping:
                    return  # it is not there, and nobody has time to wait for it
            if stopping:
                return

    def _send(self, batch: list[RequestRecord]) -> bool:
        """Send a batch; whatever goes wrong is a warning, and the batch is lost."""
        try:
            spans = [span for finished in batch for span in self._spans.of(finished)]
            if not spans or self._exporter.export(spans) is self._success:
                return True
            reason = self._reasons.last or "it refuses them"
        except Exception as error:  # of a library, in a thread that has nobody to tell but the log
            reason = f"{type(error).__name__}: {error}"
        self._lost += len(batch)
        now = time.monotonic()
        if now - self._warned_at >= WARN_EVERY_S:
            self._warned_at = now
            lost, self._lost = self._lost, 0
            self._logger.warning("the spans of %d requests did not reach %s: %.300s", lost, self._where, reason)
        return False


def open_tracing(url: str, service_name: str = "regnet-deploy") -> Tracing:
    """Return what sends spans to a collector, by OTLP over HTTP.

    Args:
        url: of the collector, such as ``http://localhost:4318``; without a path, ``/v1/traces`` is meant.
        service_name: what traces call this server.

    Raises:
        UsageError: the URL is none of HTTP.
        MissingExtra: OpenTelemetry is not installed.
    """
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or any(not character.isprintable() or character == " " for character in url):
        raise UsageError(f"cannot send traces to {url[:200]!r}: a collector's URL looks like http://localhost:4318")
    if parts.path in ("", "/"):
        url = urlunsplit(parts._replace(path="/v1/traces"))
    return Tracing(url, service_name)


class _Reasons(logging.Handler):
    """Keeps the last thing that the exporter had to say."""

    last = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.last = record.getMessage()


class _Spans:
    """Makes spans of requests that are over: as they are read, without the bookkeeping of those that go on."""

    def __init__(self, service_name: str) -> None:
        self._trace = require("opentelemetry.trace", "otel")
        self._sdk = require("opentelemetry.sdk.trace", "otel")
        resources = require("opentelemetry.sdk.resources", "otel")
        scope = require("opentelemetry.sdk.util.instrumentation", "otel")
        detected = resources.OTELResourceDetector().detect()  # what the environment says, before what we say
        own = {"service.name": service_name, "service.version": __version__}
        self._resource = resources.Resource.create(own).merge(detected)
        provider = self._sdk.TracerProvider(resource=self._resource, shutdown_on_exit=False)
        self._sampler, self._ids = provider.sampler, provider.id_generator
        self._scope = scope.InstrumentationScope("regnet_deploy", __version__)

    def of(self, finished: RequestRecord) -> Iterator[Any]:
        """Yield the span of a request and those of its stages; none where it is not sampled."""
        trace = self._trace
        parent = self._parent(finished)
        trace_id = parent.trace_id if parent else self._ids.generate_trace_id()
        name, attributes = _described(finished)
        around = trace.set_span_in_context(trace.NonRecordingSpan(parent)) if parent else None
        kind = trace.SpanKind.SERVER
        sampling = self._sampler.should_sample(around, trace_id, name, kind, attributes)
        if not sampling.decision.is_sampled():
            return
        context = self._context(trace_id)
        start = int(finished.started * 1e9)
        end = start + int(finished.total_s * 1e9)
        yield self._sdk.ReadableSpan(
            name,
            context,
            parent,
            self._resource,
            attributes | dict(sampling.attributes or {}),
            kind=kind,
            status=self._status(finished),
            start_time=start,
            end_time=end,
            instrumentation_scope=self._scope,
        )
        for stage, begin, until in _stages(finished, start):
            yield self._sdk.ReadableSpan(
                stage,
                self._context(trace_id),
                context,
                self._resource,
                {},
                start_time=begin,
                end_time=min(until, end),
                instrumentation_scope=self._scope,
            )

    def _parent(self, finished: RequestRecord) -> Any:
        parent = parse_trace_parent(finished.trace_parent)
        if parent is None:
            return None
        flags = self._trace.TraceFlags(parent.flags & 1)
        return self._trace.SpanContext(parent.trace_id, parent.span_id, is_remote=True, trace_flags=flags)

    def _context(self, trace_id: int) -> Any:
        flags = self._trace.TraceFlags(1)
        return self._trace.SpanContext(trace_id, self._ids.generate_span_id(), is_remote=False, trace_flags=flags)

    def _status(self, finished: RequestRecord) -> Any:
        codes = self._trace.StatusCode
        if finished.status < 500:  # of a server's span, what is the client's mistake is no error
            return self._trace.Status(codes.UNSET)
        return self._trace.Status(codes.ERROR, (finished.error or "")[:300])


def _described(finished: RequestRecord) -> tuple[str, dict[str, Any]]:
    """Return name and attributes, by OpenTelemetry's conventions for HTTP and RPC; our own have our name."""
    if finished.protocol == "grpc":
        name = f"inference.GRPCInferenceService/{_METHODS.get(finished.operation, finished.operation)}"
        attributes: dict[str, Any] = {"rpc.system.name": "grpc", "rpc.method": name}
    else:
        route = _ROUTES.get(finished.operation, "/")
        name = f"POST {route}"
        attributes = {"http.request.method": "POST", "http.route": route, "http.response.status_code": finished.status}
    if finished.status >= 500:
        attributes["error.type"] = str(finished.status)
    attributes |= {
        "regnet_deploy.operation": finished.operation,
        "regnet_deploy.request_id": finished.request_id,
        "regnet_deploy.images": finished.images,
    }
    if finished.model:
        attributes |= {"regnet_deploy.model": finished.model, "regnet_deploy.version": finished.version}
    if finished.batch:
        attributes["regnet_deploy.batch"] = finished.batch
    return name, attributes


def _stages(finished: RequestRecord, start: int) -> Iterator[tuple[str, int, int]]:
    """Yield name, start and end of the stages that were reached, as if each began when the one before had ended."""
    seconds = (finished.read_s, finished.decode_s, finished.queue_s, finished.inference_s)
    for name, duration in zip(("read", "decode", "queue", "inference"), seconds, strict=True):
        if duration:
            end = start + int(duration * 1e9)
            yield name, start, end
            start = end


def _without_secrets(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))
