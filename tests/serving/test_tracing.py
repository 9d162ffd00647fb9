import logging
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from regnet_deploy.errors import UsageError
from regnet_deploy.serving import tracing
from regnet_deploy.serving.request_record import RequestRecord
from regnet_deploy.serving.tracing import open_tracing, parse_trace_parent

PARENT = f"00-{'ab' * 16}-{'cd' * 8}-01"
STARTED = 1_700_000_000.0
FINISHED = RequestRecord(
    *("regnet", "1", "http", "infer", 200, 1, 8, STARTED),
    *(0.001, 0.0, 0.002, 0.003, 0.007, "id-1", PARENT, None),
)


class Collector:
    """A collector of OpenTelemetry on a free port; it keeps what it was sent, and answers with ``status``."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, bytes]] = []
        self.status = 200
        self.go_on = threading.Event()
        self.go_on.set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.go_on.wait(20)
                collector.requests.append((self.path, body))
                self.send_response(collector.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def spans(self) -> list[Any]:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        spans = []
        for path, body in self.requests:
            assert path == "/v1/traces"
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                self.resource = attributes(resource.resource)
                spans += [span for scope in resource.scope_spans for span in scope.spans]
        return spans


def attributes(of: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in of.attributes}


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    for name in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_TRACES_SAMPLER", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    made = Collector()
    yield made
    made.go_on.set()
    made.server.shutdown()
    made.server.server_close()
    made.thread.join()


def sent(collector: Collector, *requests: RequestRecord) -> list[Any]:
    """Return the spans that the collector gets for requests: of each request its own span, then its stages."""
    traces = open_tracing(collector.url, "regnet-deploy")
    for finished in requests:
        traces.observe(finished)
    traces.close(20)
    spans = collector.spans()
    whole = [span for span in spans if span.kind == span.SPAN_KIND_SERVER]
    return [
        one for span in whole for one in (span, *(stage for stage in spans if stage.parent_span_id == span.span_id))
    ]


def test_a_request_is_a_span_with_a_span_for_each_stage_that_it_reached(collector: Collector):
    request, *stages = sent(collector, FINISHED)
    assert request.name == "POST /v2/models/{model}/infer"
    assert request.kind == request.SPAN_KIND_SERVER
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == ("ab" * 16, "cd" * 8)
    start = int(STARTED * 1e9)
    assert (request.start_time_unix_nano, request.end_time_unix_nano) == (start, start + 7_000_000)
    assert attributes(request) == {
        "http.request.method": "POST",
        "http.route": "/v2/models/{model}/infer",
        "http.response.status_code": 200,
        "regnet_deploy.operation": "infer",
        "regnet_deploy.request_id": "id-1",
        "regnet_deploy.images": 1,
        "regnet_deploy.batch": 8,
        "regnet_deploy.model": "regnet",
        "regnet_deploy.version": "1",
    }
    assert request.status.code == request.status.STATUS_CODE_UNSET
    assert [(stage.name, stage.start_time_unix_nano - start, stage.end_time_unix_nano - start) for stage in stages] == [
        ("read", 0, 1_000_000),
        ("queue", 1_000_000, 3_000_000),
        ("inference", 3_000_000, 6_000_000),
    ]
    assert {(stage.trace_id, stage.parent_span_id) for stage in stages} == {(request.trace_id, request.span_id)}
    assert len({span.span_id for span in (request, *stages)}) == 4
    assert collector.resource["service.name"] == "regnet-deploy"
    assert "service.version" in collector.resource


def test_a_request_without_a_parent_begins_a_trace(collector: Collector):
    first, second = sent(
        collector,
        FINISHED._replace(trace_parent=None, read_s=0.0, queue_s=0.0, inference_s=0.0),
        FINISHED._replace(trace_parent="nonsense", read_s=0.0, queue_s=0.0, inference_s=0.0),
    )
    assert first.parent_span_id == second.parent_span_id == b""
    assert first.trace_id != second.trace_id


def test_what_failed_is_an_error_and_a_refusal_is_none(collector: Collector):
    nothing = {"read_s": 0.0, "queue_s": 0.0, "inference_s": 0.0, "batch": 0}
    failed, refused, remote = sent(
        collector,
        FINISHED._replace(**nothing, status=503, error="try again"),
        FINISHED._replace(**nothing, status=404, error="no", model="", version="", operation="classify"),
        FINISHED._replace(**nothing, protocol="grpc"),
    )
    assert (failed.status.code, failed.status.message) == (failed.status.STATUS_CODE_ERROR, "try again")
    assert attributes(failed)["error.type"] == "503"
    assert refused.status.code == refused.status.STATUS_CODE_UNSET
    assert refused.name == "POST /classify"
    assert "regnet_deploy.model" not in attributes(refused)
    assert remote.name == attributes(remote)["rpc.method"] == "inference.GRPCInferenceService/ModelInfer"
    assert attributes(remote)["rpc.system.name"] == "grpc"


def test_what_is_sampled_is_for_the_caller_and_the_environment(collector: Collector, monkeypatch: pytest.MonkeyPatch):
    assert sent(collector, FINISHED._replace(trace_parent=PARENT[:-2] + "00")) == []
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    assert sent(collector, FINISHED) == []
    assert collector.requests == []
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_on")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "of the environment")
    assert len(sent(collector, FINISHED)) == 4
    assert collector.resource["service.name"] == "of the environment"


def test_many_requests_are_sent_in_few_batches(collector: Collector):
    spans = sent(collector, *[FINISHED._replace(request_id=str(number)) for number in range(200)])
    found = [attributes(span)["regnet_deploy.request_id"] for span in spans if span.attributes]
    assert found == [str(number) for number in range(200)]
    assert len(collector.requests) <= 3


def test_the_queue_of_spans_is_bounded_and_a_collector_that_does_not_answer_blocks_nobody(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "20")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "10")
    collector.go_on.clear()
    before = set(threading.enumerate())
    traces = open_tracing(collector.url, "x")
    (exporting,) = set(threading.enumerate()) - before
    for _ in range(1000):
        traces.observe(FINISHED)
    began = time.monotonic()
    traces.close(0.05)
    traces.close(0.05)
    traces.observe(FINISHED)
    assert time.monotonic() - began < 10
    assert exporting.daemon, "the interpreter does not wait for it"
    collector.go_on.set()
    exporting.join(20)
    assert len(collector.spans()) <= 20 + 2 * 10, "those that waited and those that were being sent"


def test_a_collector_that_is_not_there_costs_a_line(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tracing, "SEND_TIMEOUT_S", 0.05)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://user:secret@127.0.0.1:{free.getsockname()[1]}"
        traces = open_tracing(url, "x")
        for _ in range(3):
            traces.observe(FINISHED)
            traces._provider.force_flush()
        traces.close()
    (record,) = caplog.records
    assert record.name == "regnet_deploy.serving"
    assert f"did not reach {url.replace('user:secret@', '')}/v1/traces" in record.getMessage()
    assert "secret" not in record.getMessage()
    assert capfd.readouterr().err == ""


def test_loggers_of_the_library_are_left_as_they_were(collector: Collector):
    logger = logging.getLogger("opentelemetry")
    before = (list(logger.handlers), logger.propagate)
    sent(collector, FINISHED)
    assert (list(logger.handlers), logger.propagate) == before


def test_loggers_of_the_library_are_restored_after_a_start_that_fails(monkeypatch: pytest.MonkeyPatch):
    logger = logging.getLogger("opentelemetry")
    before = (list(logger.handlers), logger.propagate)
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "-1")
    with pytest.raises(ValueError, match="max_queue_size"):
        open_tracing("http://127.0.0.1:1")
    assert (list(logger.handlers), logger.propagate) == before


def test_loggers_of_the_library_are_restored_with_the_last_of_several(collector: Collector):
    logger = logging.getLogger("opentelemetry")
    before = (list(logger.handlers), logger.propagate)
    first, second = open_tracing(collector.url), open_tracing(collector.url)
    first.close()
    assert not logger.propagate
    second.close()
    assert (list(logger.handlers), logger.propagate) == before


@pytest.mark.parametrize(
    "url", ["localhost:4318", "", "ftp://x", "http://", "http://[", "http://a b/", "http://x:99999"]
)
def test_a_url_that_is_none_is_one_line(url: str):
    with pytest.raises(UsageError, match="a collector's URL looks like http://localhost:4318"):
        open_tracing(url)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "nonsense",
        PARENT + "-more",
        PARENT.upper(),
        "ff" + PARENT[2:],
        f"00-{'0' * 32}-{'cd' * 8}-01",
        f"00-{'ab' * 16}-{'0' * 16}-01",
        PARENT + "\n",
        " " + PARENT,
        "01" + PARENT[2:] + "-" + "x" * 10_000,
    ],
)
def test_a_header_that_is_not_valid_is_none(header: str | None):
    assert parse_trace_parent(header) is None


def test_a_newer_header_is_read_as_far_as_it_is_known():
    assert parse_trace_parent("01" + PARENT[2:] + "-more") == parse_trace_parent(PARENT)
