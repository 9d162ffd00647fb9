"""Sends a span for each request, with a span for each of its stages, to an OpenTelemetry collector."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from regnet_deploy import __version__
from regnet_deploy.errors import UsageError, require
from regnet_deploy.serving.loggers import hold_logger, release_logger
from regnet_deploy.serving.request_record import RequestRecord

#: Seconds that one export may take, with all its retries.
SEND_TIMEOUT_S = 5.0

#: Seconds between two warnings that the collector cannot be reached.
WARN_EVERY_S = 300.0

_TRACE_PARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.{0,512})?")
_METHODS = {"infer": "ModelInfer"}
_ROUTES = {"infer": "/v2/models/{model}/infer", "classify": "/classify"}


class TraceParent(NamedTuple):
    """The span of the client that sent a request."""

    trace_id: int
    span_id: int
    flags: int


def parse_trace_parent(header: str | None) -> TraceParent | None:
    """Parse the header ``traceparent`` of W3C Trace Context; None where it is missing or invalid."""
    found = _TRACE_PARENT.fullmatch(header) if header is not None and len(header) < 1024 else None
    if found is None or (header is not None and header.startswith("00") and len(header) != 55):
        return None
    parent = TraceParent(*(int(part, 16) for part in found.groups()))
    return parent if parent.trace_id and parent.span_id else None


class Tracing:
    """Records a span for each request that has ended; OpenTelemetry's ``BatchSpanProcessor`` sends them.

    The processor's queue is bounded and its thread is a daemon: a collector that is missing, slow or broken costs
    spans and one line in the log every :data:`WARN_EVERY_S` seconds. The environment variables of OpenTelemetry for
    sampling, queue, resource and exporter apply.

    Args:
        url: to which spans are posted.
        service_name: attribute ``service.name``, unless the environment sets it.

    Raises:
        MissingExtra: OpenTelemetry is not installed.
    """

    def __init__(self, url: str, service_name: str) -> None:
        self._trace = require("opentelemetry.trace", "otel")
        sdk = require("opentelemetry.sdk.trace", "otel")
        resources = require("opentelemetry.sdk.resources", "otel")
        exporters = require("opentelemetry.exporter.otlp.proto.http.trace_exporter", "otel")
        export = require("opentelemetry.sdk.trace.export", "otel")
        self._log_handler = _ExporterLog(_without_secrets(url))
        own = {"service.name": service_name, "service.version": __version__}
        self._closed = False
        self._log_handler.install()
        try:
            # What the environment says goes before what we say.
            resource = resources.Resource.create(own).merge(resources.OTELResourceDetector().detect())
            self._exporter: Any = exporters.OTLPSpanExporter(endpoint=url, timeout=SEND_TIMEOUT_S)
            self._provider: Any = sdk.TracerProvider(resource=resource, shutdown_on_exit=False)
            self._provider.add_span_processor(export.BatchSpanProcessor(self._exporter))
            self._tracer: Any = self._provider.get_tracer("regnet_deploy", __version__)
        except BaseException:
            self._log_handler.remove()
            raise

    def observe(self, record: RequestRecord) -> None:
        """Queue the spans of a request that has ended."""
        if self._closed:
            return
        name, attributes = _describe(record)
        start = int(record.started * 1e9)
        end = start + int(record.total_s * 1e9)
        kind = self._trace.SpanKind.SERVER
        span = self._tracer.start_span(name, self._parent(record), kind, attributes, start_time=start)
        if record.status >= 500:  # an error of the client is none of the server's span
            span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, (record.error or "")[:300]))
        if span.is_recording():
            inside = self._trace.set_span_in_context(span)
            for stage, begin, until in _stages(record, start):
                self._tracer.start_span(stage, inside, start_time=begin).end(min(until, end))
        span.end(end)

    def close(self, timeout_s: float = 1.5) -> None:
        """Send the spans that wait, for at most ``timeout_s`` seconds and a little."""
        if self._closed:
            return
        self._closed = True
        try:
            # The processor waits for its exporter for up to 30 s, which no argument shortens.
            sending = threading.Thread(target=self._provider.shutdown, name="tracing-shutdown", daemon=True)
            sending.start()
            sending.join(timeout_s)
            if sending.is_alive():
                self._exporter.shutdown()  # ends its waiting for another attempt
                sending.join(0.25)
        finally:
            self._log_handler.remove()

    def _parent(self, record: RequestRecord) -> Any:
        """Return the context in which a request's span starts; an empty one where it begins a trace."""
        context = require("opentelemetry.context", "otel").Context()
        parent = parse_trace_parent(record.trace_parent)
        if parent is None:
            return context
        flags = self._trace.TraceFlags(parent.flags & 1)
        remote = self._trace.SpanContext(parent.trace_id, parent.span_id, is_remote=True, trace_flags=flags)
        return self._trace.set_span_in_context(self._trace.NonRecordingSpan(remote), context)


def open_tracing(url: str, service_name: str = "regnet-deploy") -> Tracing:
    """Return a :class:`Tracing` that sends spans to a collector by OTLP over HTTP.

    Args:
        url: of the collector, such as ``http://localhost:4318``; without a path, ``/v1/traces`` is meant.
        service_name: how traces call this server.

    Raises:
        UsageError: this is not an HTTP URL.
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


class _ExporterLog(logging.Handler):
    """Reports what OpenTelemetry logs as one warning of the server in every :data:`WARN_EVERY_S` seconds."""

    def __init__(self, destination: str) -> None:
        super().__init__(logging.WARNING)
        self._destination = destination
        self._source = logging.getLogger("opentelemetry")
        self._warned_at = -WARN_EVERY_S

    def install(self) -> None:
        hold_logger(self._source.name)
        self._source.addHandler(self)

    def remove(self) -> None:
        self._source.removeHandler(self)
        release_logger(self._source.name)

    def emit(self, record: logging.LogRecord) -> None:
        now = time.monotonic()
        if now - self._warned_at < WARN_EVERY_S:
            return
        self._warned_at = now
        reason = record.getMessage()
        if record.exc_info is not None and record.exc_info[1] is not None:
            reason += f": {type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
        logging.getLogger(__package__).warning("spans did not reach %s: %.300s", self._destination, reason)


def _describe(record: RequestRecord) -> tuple[str, dict[str, Any]]:
    """Return name and attributes, by OpenTelemetry's conventions for HTTP and RPC; our own have our name."""
    if record.protocol == "grpc":
        name = f"inference.GRPCInferenceService/{_METHODS.get(record.operation, record.operation)}"
        attributes: dict[str, Any] = {"rpc.system.name": "grpc", "rpc.method": name}
    else:
        route = _ROUTES.get(record.operation, "/")
        name = f"POST {route}"
        attributes = {"http.request.method": "POST", "http.route": route, "http.response.status_code": record.status}
    if record.status >= 500:
        attributes["error.type"] = str(record.status)
    attributes |= {
        "regnet_deploy.operation": record.operation,
        "regnet_deploy.request_id": record.request_id,
        "regnet_deploy.images": record.images,
    }
    if record.model:
        attributes |= {"regnet_deploy.model": record.model, "regnet_deploy.version": record.version}
    if record.batch:
        attributes["regnet_deploy.batch"] = record.batch
    return name, attributes


def _stages(record: RequestRecord, start: int) -> Iterator[tuple[str, int, int]]:
    """Yield name, start and end of the stages that were reached, as if each began when the one before had ended."""
    seconds = (record.read_s, record.decode_s, record.queue_s, record.inference_s)
    for name, duration in zip(("read", "decode", "queue", "inference"), seconds, strict=True):
        if duration:
            end = start + int(duration * 1e9)
            yield name, start, end
            start = end


def _without_secrets(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))
