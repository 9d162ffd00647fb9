import asyncio
import os
import re
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from regnet_deploy.serving.admission import Admission, ServerState
from regnet_deploy.serving.connection_places import ABORT_REASONS, ConnectionCounts
from regnet_deploy.serving.gpu_metrics import GpuState
from regnet_deploy.serving.metrics import DURATIONS, Metrics
from regnet_deploy.serving.request_record import RequestRecord

FINISHED = RequestRecord(
    *("regnet", "1", "http", "infer", 200, 1, 1, 1_700_000_000.0),
    *(0.001, 0.0, 0.002, 0.003, 0.007, "id", None, None),
)
PIDS = (os.getpid(), 2**22 + 1)  # the second is of no process: above what Linux gives
NAMES = {"model": "regnet", "version": "1"}


class Models:
    """Models of a server; each version is (name, version)."""

    def __init__(self, *versions: tuple[str, str]) -> None:
        self.versions = versions
        self.broken: list[tuple[str, str]] = []
        self.executions: dict[tuple[str, str], dict[int, tuple[int, float]]] = {}

    def all(self) -> list[Any]:
        return [self.get(*names) for names in self.versions]

    def get(self, name: str, version: str) -> Any:
        session = SimpleNamespace(runtime="onnxruntime 1.32.0", device="cpu")
        executions = self.executions.setdefault((name, version), {})
        batcher = SimpleNamespace(depth=5, running=8, executions=executions)
        return SimpleNamespace(name=name, version=version, variant="onnx-fp32", session=session, batcher=batcher)

    def index(self) -> list[dict[str, str]]:
        states = [(*names, "READY") for names in self.versions] + [(*names, "UNAVAILABLE") for names in self.broken]
        return [{"name": name, "version": version, "state": state, "reason": ""} for name, version, state in states]

    def ready(self) -> bool:
        return True


class Gpus:
    async def read(self) -> tuple[GpuState, ...]:
        return (GpuState(0, "H100", "GPU-0", 0.73, 7, 80, 41.0, None),)


@pytest.fixture
def models() -> Models:
    return Models(("regnet", "1"))


@pytest.fixture
def admission() -> Admission:
    return Admission(4)


@pytest.fixture
def metrics(models: Models, admission: Admission) -> Metrics:
    return Metrics(models, admission, SimpleNamespace(workers=2, busy=1, waiting=3, restarts=4, pids=PIDS), Gpus())


def samples(metrics: Metrics) -> dict[tuple[Any, ...], float]:
    """Return the samples by name and labels."""
    text = metrics.render()[0].decode()
    return {
        (sample.name.removeprefix("regnet_deploy_"), *sorted(sample.labels.items())): sample.value
        for family in parse(text)
        for sample in family.samples
    }


def key(name: str, /, **labels: str) -> tuple[Any, ...]:
    return (name, *sorted(labels.items()))


def test_requests_are_counted_by_what_they_were_and_how_they_ended(metrics: Metrics):
    for changes in ({}, {}, {"status": 503}, {"protocol": "grpc"}, {"model": "", "version": "", "status": 404}):
        metrics.observe(FINISHED._replace(**changes))
    found = samples(metrics)
    http = {"protocol": "http", "operation": "infer"}
    assert found[key("requests_total", **NAMES, **http, status="200")] == 2
    assert found[key("requests_total", **NAMES, **http, status="503")] == 1
    assert found[key("requests_total", **NAMES, **http | {"protocol": "grpc"}, status="200")] == 1
    assert found[key("requests_total", model="", version="", **http, status="404")] == 1


def test_durations_have_the_stages_that_a_request_had(metrics: Metrics):
    metrics.observe(FINISHED)
    metrics.observe(FINISHED._replace(total_s=99.0))
    found = samples(metrics)
    of = {**NAMES, "operation": "infer"}
    bucket = "request_duration_seconds_bucket"
    assert found[key(bucket, **of, stage="queue", le="0.001")] == 0
    assert found[key(bucket, **of, stage="queue", le="0.002")] == 2, "a bound is part of its bucket"
    assert found[key(bucket, **of, stage="total", le="10.0")] == 1
    assert found[key(bucket, **of, stage="total", le="+Inf")] == 2
    assert found[key("request_duration_seconds_sum", **of, stage="total")] == pytest.approx(99.007)
    assert found[key("request_duration_seconds_count", **of, stage="inference")] == 2
    assert not [name for name in found if ("stage", "decode") in name], "no image was decoded"
    assert (DURATIONS[0], DURATIONS[-1]) == (0.0005, 10.0)


def test_a_refusal_hides_no_latency(metrics: Metrics):
    metrics.observe(FINISHED._replace(status=503, total_s=0.0001))
    assert not [name for name in samples(metrics) if name[0].startswith("request_duration")]


def test_batches_are_those_that_were_run_whoever_waited_for_them(metrics: Metrics, models: Models):
    metrics.observe(FINISHED._replace(images=3, batch=8))
    metrics.observe(FINISHED._replace(images=7, batch=0, status=503))
    models.executions["regnet", "1"] = {8: (1, 0.1), 200: (1, 0.9)}
    found = samples(metrics)
    assert found[key("images_total", **NAMES)] == 3
    assert found[key("batch_images_bucket", **NAMES, le="6.0")] == 0
    assert found[key("batch_images_bucket", **NAMES, le="8.0")] == 1
    assert found[key("batch_images_count", **NAMES)] == 2
    assert found[key("batch_images_sum", **NAMES)] == 208


@pytest.mark.parametrize("scraped", [True, False])
def test_batches_of_a_version_that_was_replaced_under_its_number_count_on(
    metrics: Metrics, models: Models, scraped: bool
):
    old = models.get("regnet", "1")
    old.batcher.executions[2] = (3, 0.1)
    if scraped:
        samples(metrics)
    models.executions["regnet", "1"] = {4: (1, 0.1)}
    old.batcher.executions[2] = (4, 0.2)  # the last requests of the old one
    expected = 5 if scraped else 1
    assert samples(metrics)[key("batch_images_count", **NAMES)] == expected
    metrics.forget(old)
    for _ in range(2):
        assert samples(metrics)[key("batch_images_count", **NAMES)] == 5


def test_counters_of_a_version_begin_at_zero(metrics: Metrics):
    found = samples(metrics)
    assert found[key("images_total", **NAMES)] == found[key("batch_images_count", **NAMES)] == 0


def test_what_the_server_is_doing_is_read_when_it_is_asked_for(metrics: Metrics, models: Models, admission: Admission):
    models.broken = [("regnet", "2")]
    with admission.enter() as place:
        place.take(1000)
        found = samples(metrics)
    assert found[key("queue_images", **NAMES)] == 5
    assert found[key("running_images", **NAMES)] == 8
    assert found[key("in_flight_requests")] == 1
    assert found[key("body_bytes_in_flight")] == 1000
    assert found[key("ready")] == 1
    assert found[key("model_ready", **NAMES)] == 1
    assert found[key("model_ready", model="regnet", version="2")] == 0
    assert found[key("model_info", **NAMES, variant="onnx-fp32", runtime="onnxruntime 1.32.0", device="cpu")] == 1
    decoding = [found[key(f"decode_{name}")] for name in ("workers", "busy", "waiting", "restarts_total")]
    assert decoding == [2, 1, 3, 4]
    assert found[key("decode_memory_bytes")] > 2**20
    admission.state = ServerState.DRAINING
    found = samples(metrics)
    assert (found[key("ready")], found[key("in_flight_requests")]) == (0, 0)
    assert found[key("process_resident_memory_bytes")] > 0
    assert found[key("process_open_fds")] > 0
    assert key("python_gc_collections_total", generation="0") in found


def test_gpus_are_read_when_they_are_asked_for(metrics: Metrics):
    asyncio.run(metrics.scrape())
    found = samples(metrics)
    of = {"gpu": "0", "name": "H100", "uuid": "GPU-0"}
    assert found[key("gpu_utilisation_ratio", **of)] == 0.73
    assert found[key("gpu_memory_used_bytes", **of)] == 7
    assert not [name for name in found if name[0] == "gpu_power_watts"], "the driver does not tell"


def test_nothing_is_left_of_a_version_that_has_gone(metrics: Metrics, models: Models):
    metrics.observe(FINISHED)
    models.versions = (("regnet", "2"),)
    metrics.observe(FINISHED._replace(version="2"))
    metrics.forget(models.get("regnet", "1"))
    metrics.observe(FINISHED)  # ended a little later
    for _ in range(2):
        assert {dict(name[1:])["version"] for name in samples(metrics) if name[0] == "requests_total"} == {"2"}
        metrics.observe(FINISHED)


def test_nothing_is_kept_of_swaps_that_nobody_asked_about(metrics: Metrics, models: Models):
    for version in range(1, 20):
        models.versions = (("regnet", str(version)),)
        metrics.observe(FINISHED._replace(version=str(version)))
        metrics.forget(models.get("regnet", str(version - 1)))
    assert len(metrics._versions) == 1


def test_a_version_that_takes_the_place_of_another_goes_on_counting(metrics: Metrics, models: Models):
    metrics.observe(FINISHED)
    metrics.forget(models.get("regnet", "1"))
    samples(metrics)
    metrics.observe(FINISHED)
    status = {"protocol": "http", "operation": "infer", "status": "200"}
    assert samples(metrics)[key("requests_total", **NAMES, **status)] == 2


def test_openmetrics_for_who_takes_nothing_else(metrics: Metrics):
    metrics.observe(FINISHED)
    content, kind = metrics.render("application/openmetrics-text;version=1.0.0")
    assert kind.startswith("application/openmetrics-text; version=1.0.0")
    assert content.endswith(b"# EOF\n")
    assert "regnet_deploy_requests" in {family.name for family in parse_openmetrics(content.decode())}
    for accept in ("", "text/html\r\nevil: 1; version=x", "application/openmetrics-text;version=1.0.0;q=0.5,*/*;q=0.1"):
        assert metrics.render(accept)[1] == "text/plain; version=0.0.4; charset=utf-8"


def test_two_servers_share_nothing(models: Models, admission: Admission):
    first, second = Metrics(models, admission), Metrics(models, admission)
    first.observe(FINISHED)
    assert [name for name in samples(first) if name[0] == "requests_total"]
    assert not [name for name in samples(second) if name[0] == "requests_total"]


def test_names_are_those_that_prometheus_wants(metrics: Metrics):
    metrics.observe(FINISHED)
    asyncio.run(metrics.scrape())
    for family in parse(metrics.render()[0].decode()):
        assert re.fullmatch(r"(regnet_deploy|process|python)_[a-z_]+", family.name)
        assert family.documentation


def test_connections_are_counted_where_a_socket_is_served(models: Models, admission: Admission):
    counts = ConnectionCounts()
    metrics = Metrics(models, admission, connections=counts)
    assert b"regnet_deploy_connections" not in metrics.render()[0]
    counts.limit, counts.open, counts.refused = 512, 3, 2
    counts.aborted["slow"] += 1
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in parse(metrics.render()[0].decode())
        for sample in family.samples
        if "connections" in sample.name
    }
    prefix = "regnet_deploy_connections"
    assert found == {
        (prefix,): 3,
        (f"{prefix}_limit",): 512,
        (f"{prefix}_refused_total",): 2,
        **{(f"{prefix}_aborted_total", reason): float(reason == "slow") for reason in ABORT_REASONS},
    }
