"""Prometheus metrics: requests, latency by stage, queues, batches, the process and its GPUs.

Nothing is global, and no label comes from a client. Counting a request adds to plain numbers; the metric families are
built when Prometheus scrapes.
"""

from __future__ import annotations

import resource
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from regnet_deploy import __version__
from regnet_deploy.serving.admission import Admission, ServerState
from regnet_deploy.serving.connection_places import ABORT_REASONS, ConnectionCounts
from regnet_deploy.serving.gpu_metrics import GpuReader, GpuState
from regnet_deploy.serving.request_record import RequestRecord

if TYPE_CHECKING:
    from regnet_deploy.serving.model_registry import ModelRegistry
    from regnet_deploy.serving.model_version import ModelVersion

PREFIX = "regnet_deploy_"

#: Upper bounds of the buckets of durations, seconds.
DURATIONS = (
    *(0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)

#: Upper bounds of the buckets of batches, images.
BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128)

#: Stages of a request, in the order in which they are observed.
STAGES = ("read", "decode", "queue", "inference", "total")

_MODEL = ("model", "version")

#: Images in an inference -> number of inferences and their seconds, as a batcher counts them.
_Executions = dict[int, tuple[int, float]]


class Decoders(Protocol):
    """What metrics need of the pool that decodes images."""

    @property
    def pids(self) -> Sequence[int]:
        """Of its processes."""
        ...

    @property
    def workers(self) -> int:
        """Processes."""
        ...

    @property
    def busy(self) -> int:
        """Processes that are decoding."""
        ...

    @property
    def waiting(self) -> int:
        """Images that wait for one."""
        ...

    @property
    def restarts(self) -> int:
        """Processes that had to be replaced so far."""
        ...


class Metrics:
    """Counts requests and renders metrics; used from the event loop only.

    Args:
        models: the models that are served.
        admission: the server's state and its requests in flight.
        decoders: the pool that decodes images; None: no metrics of it.
        gpus: reads the GPUs; by default with NVML.
        connections: of the HTTP socket; None: no metrics of them.
    """

    def __init__(
        self,
        models: ModelRegistry,
        admission: Admission,
        decoders: Decoders | None = None,
        gpus: GpuReader | None = None,
        connections: ConnectionCounts | None = None,
    ) -> None:
        self._models = models
        self._admission = admission
        self._decoders = decoders
        self._gpus = gpus or GpuReader()
        self._connections = connections or ConnectionCounts()
        self._gpu_states: tuple[GpuState, ...] = ()
        self._versions: dict[tuple[str, str], _Version] = {}
        self._registry = CollectorRegistry()
        self._registry.register(_Families(self._collect))
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def observe(self, record: RequestRecord) -> None:
        """Count a request that has ended."""
        version = self._versions.get((record.model, record.version))
        if version is None:
            version = self._version(record.model, record.version)
        version.observe(record)

    def forget(self, model: ModelVersion) -> None:
        """Drop the metrics of a version that has ended; they stay where another version has the same number."""
        self._drop_removed_versions()
        version = self._versions.get((model.name, model.version))
        if version is not None:
            version.ended(model.batcher.executions)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return the metrics and their content type.

        Args:
            accept: header ``Accept``. OpenMetrics has the same content as Prometheus's text format and takes longer to
                write, so it is sent only to clients that accept nothing else.
        """
        if "application/openmetrics-text" in accept and "text/plain" not in accept and "*/*" not in accept:
            content: bytes = openmetrics.generate_latest(self._registry)  # type: ignore[no-untyped-call]
            return content, openmetrics.CONTENT_TYPE_LATEST
        return generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4

    async def scrape(self, accept: str = "") -> tuple[bytes, str]:
        """Read the GPUs in a thread, and render."""
        self._gpu_states = await self._gpus.read()
        return self.render(accept)

    def _version(self, model: str, version: str) -> _Version:
        return self._versions.setdefault((model, version), _Version())

    def _drop_removed_versions(self) -> None:
        there = {(model.name, model.version) for model in self._models.all()}
        for names in [names for names in self._versions if names[0] and names not in there]:
            del self._versions[names]

    def _collect(self) -> Iterator[Metric]:
        self._drop_removed_versions()  # again: a request may have ended since then
        for model in self._models.all():  # so that its counters start at 0, not at the first request
            self._version(model.name, model.version).follow(model.batcher.executions)
        yield from self._requests()
        yield from self._loaded()
        yield from self._server()
        yield from _connection_families(self._connections)
        yield from _gpu_families(self._gpu_states)

    def _requests(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            PREFIX + "requests", "Requests that have ended.", labels=(*_MODEL, "protocol", "operation", "status")
        )
        durations = HistogramMetricFamily(
            PREFIX + "request_duration_seconds",
            "Time in each stage that an answered request reached.",
            labels=(*_MODEL, "operation", "stage"),
        )
        images = CounterMetricFamily(PREFIX + "images", "Images that were run.", labels=_MODEL)
        batches = HistogramMetricFamily(PREFIX + "batch_images", "Images in the batches that were run.", labels=_MODEL)
        for names, version in sorted(self._versions.items()):
            for (protocol, operation, status), count in version.requests.items():
                requests.add_metric((*names, protocol, operation, str(status)), count)
            for operation, stages in version.stages.items():
                for stage, histogram in zip(STAGES, stages, strict=True):
                    if histogram.total:
                        durations.add_metric((*names, operation, stage), histogram.buckets(), histogram.total)
            if names[0]:
                images.add_metric(names, version.images)
                histogram = version.batches()
                batches.add_metric(names, histogram.buckets(), histogram.total)
        yield from (requests, durations, images, batches)

    def _loaded(self) -> Iterator[Metric]:
        ready = GaugeMetricFamily(PREFIX + "model_ready", "1 where the version answers requests.", labels=_MODEL)
        failed = GaugeMetricFamily(
            PREFIX + "model_load_failed", "1 where what lies in the version's folder is not served.", labels=_MODEL
        )
        for entry in self._models.index():
            names = (entry["name"], entry.get("version", ""))
            ready.add_metric(names, entry["state"] == "READY")
            failed.add_metric(names, bool(entry["reason"]))
        info = InfoMetricFamily(PREFIX + "model", "What a version runs.", labels=_MODEL)
        queue = GaugeMetricFamily(PREFIX + "queue_images", "Images that wait for a batch.", labels=_MODEL)
        running = GaugeMetricFamily(PREFIX + "running_images", "Images that are being run.", labels=_MODEL)
        for model in self._models.all():
            names, session = (model.name, model.version), model.session
            info.add_metric(names, {"variant": model.variant, "runtime": session.runtime, "device": session.device})
            queue.add_metric(names, model.batcher.depth)
            running.add_metric(names, model.batcher.running)
        yield from (ready, failed, info, queue, running)

    def _server(self) -> Iterator[Metric]:
        admission = self._admission
        yield InfoMetricFamily(PREFIX + "server", "The server itself.", value={"version": __version__})
        ready = admission.state is ServerState.READY and self._models.ready()
        yield GaugeMetricFamily(
            PREFIX + "ready", "1 where requests are accepted and the models of --ready answer.", ready
        )
        yield GaugeMetricFamily(PREFIX + "in_flight_requests", "Requests in flight.", admission.in_flight)
        yield GaugeMetricFamily(PREFIX + "body_bytes_in_flight", "Bytes of their bodies.", admission.bytes_in_flight)
        if self._decoders is not None:
            pool = self._decoders
            yield GaugeMetricFamily(PREFIX + "decode_workers", "Processes that decode images.", pool.workers)
            yield GaugeMetricFamily(PREFIX + "decode_busy", "Processes that are decoding.", pool.busy)
            yield GaugeMetricFamily(PREFIX + "decode_waiting", "Images that wait to be decoded.", pool.waiting)
            memory = sum(map(_resident_bytes, pool.pids))
            yield GaugeMetricFamily(PREFIX + "decode_memory_bytes", "Resident memory of these processes.", memory)
            yield CounterMetricFamily(PREFIX + "decode_restarts", "Decoding processes replaced.", pool.restarts)


class _Families(Collector):
    """A collector of the families, as a registry takes it."""

    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Metric]:
        """Return the families."""
        return self._collect()

    def describe(self) -> Iterable[Metric]:
        """Return nothing: the registry has no other collector with these names."""
        return ()


class _Histogram:
    """Counts in buckets; the last one counts what is above the bounds."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0.0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float, weight: float = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += weight
        self.total += value * weight

    def buckets(self) -> list[tuple[str, float]]:
        return list(zip((*map(str, map(float, self.bounds)), "+Inf"), accumulate(self.counts), strict=True))


class _Version:
    """The metrics of one version of a model."""

    __slots__ = ("executions", "images", "past", "requests", "stages")

    def __init__(self) -> None:
        self.requests: dict[tuple[str, str, int], int] = {}
        self.stages: dict[str, tuple[_Histogram, ...]] = {}
        self.images = 0
        self.executions: list[_Executions] = []  # of the batchers that have not ended
        self.past: dict[int, int] = {}  # images in an inference -> number of inferences, of those that have

    def follow(self, executions: _Executions) -> None:
        if not any(executions is known for known in self.executions):
            self.executions.append(executions)

    def ended(self, executions: _Executions) -> None:
        self.executions = [known for known in self.executions if known is not executions]
        for size, (count, _) in executions.items():
            self.past[size] = self.past.get(size, 0) + count

    def batches(self) -> _Histogram:
        histogram = _Histogram(BATCHES)
        for size, count in self.past.items():
            histogram.add(size, count)
        for executions in self.executions:
            for size, (count, _) in executions.items():
                histogram.add(size, count)
        return histogram

    def observe(self, record: RequestRecord) -> None:
        kind = (record.protocol, record.operation, record.status)
        self.requests[kind] = self.requests.get(kind, 0) + 1
        if record.batch:
            self.images += record.images
        if record.status >= 400:  # a refusal takes no time and would hide the latency of the others
            return
        stages = self.stages.get(record.operation)
        if stages is None:
            stages = self.stages[record.operation] = tuple(_Histogram(DURATIONS) for _ in STAGES)
        read, decode, queue, inference, total = stages
        total.add(record.total_s)
        if record.read_s:
            read.add(record.read_s)
        if record.decode_s:
            decode.add(record.decode_s)
        if record.queue_s:
            queue.add(record.queue_s)
        if record.inference_s:
            inference.add(record.inference_s)


def _resident_bytes(pid: int) -> int:
    try:
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    except (OSError, IndexError):  # the process has just ended
        return 0
    return int(pages) * resource.getpagesize()


def _connection_families(counts: ConnectionCounts) -> Iterator[Metric]:
    if counts.limit:
        yield GaugeMetricFamily(PREFIX + "connections", "HTTP connections that are open.", counts.open)
        yield GaugeMetricFamily(PREFIX + "connections_limit", "HTTP connections that may be open.", counts.limit)
        yield CounterMetricFamily(PREFIX + "connections_refused", "HTTP connections that got 503.", counts.refused)
        aborted = CounterMetricFamily(
            PREFIX + "connections_aborted", "HTTP connections that ended without an answer.", labels=("reason",)
        )
        for reason in ABORT_REASONS:
            aborted.add_metric((reason,), counts.aborted[reason])
        yield aborted


def _gpu_families(states: Sequence[GpuState]) -> Iterator[Metric]:
    for name, text, attribute in (
        ("utilisation_ratio", "Share of the last sample period in which a kernel ran.", "utilization"),
        ("memory_used_bytes", "Memory that all processes together use.", "memory_used"),
        ("memory_total_bytes", "Memory of the GPU.", "memory_total"),
        ("temperature_celsius", "Temperature of the chip.", "temperature"),
        ("power_watts", "Power draw of the GPU.", "power"),
    ):
        family = GaugeMetricFamily(f"{PREFIX}gpu_{name}", text, labels=("gpu", "name", "uuid"))
        for state in states:
            value = getattr(state, attribute)
            if value is not None:
                family.add_metric((str(state.index), state.name, state.uuid), value)
        if family.samples:
            yield family
