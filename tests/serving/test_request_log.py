import io
import json
import logging
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from regnet_deploy.errors import UsageError
from regnet_deploy.serving.request_log import LIBRARIES, RequestLog, request_id_of
from regnet_deploy.serving.request_record import RequestRecord, notify_all

FINISHED = RequestRecord(
    *("regnet", "1", "http", "infer", 200, 1, 8, 1_700_000_000.0),
    *(0.001, 0.0, 0.002, 0.003, 0.007, "id-1", f"00-{'ab' * 16}-{'cd' * 8}-01", None),
)
REFUSED = FINISHED._replace(status=503, batch=0, error="128 images are waiting already, try again")
HOSTILE = 'a\r\n{"level":"info"}\x1b[31m\0\x7f\x9b\u2028\ud800' + "x" * 10_240

Open = Callable[..., RequestLog]


class Log:
    """A log that was closed, and what it wrote."""

    def __init__(self, format: str = "json", every_request: bool = False) -> None:
        self.stream = io.StringIO()
        self.now = 0.0
        self.log = RequestLog(format, every_request, self.stream, lambda: self.now)

    def lines(self) -> list[str]:
        self.log.close(20)
        text = self.stream.getvalue()
        assert text.isascii()
        assert text.replace("\n", "").isprintable()
        assert text.endswith("\n") or not text
        return text.splitlines()

    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines()]


@pytest.fixture
def log() -> Iterator[Log]:
    made = Log()
    yield made
    made.log.close(20)


def test_an_answered_request_is_a_line_only_if_all_are(log: Log):
    log.log.observe(FINISHED)
    log.log.observe(FINISHED._replace(status=400, error="no"))
    assert log.objects() == []


def test_a_line_says_what_is_known_of_a_request():
    every = Log(every_request=True)
    every.log.observe(FINISHED)
    (line,) = every.objects()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {
        "level": "info",
        "event": "request",
        "request_id": "id-1",
        "trace_id": "ab" * 16,
        "model": "regnet",
        "version": "1",
        "protocol": "http",
        "operation": "infer",
        "status": 200,
        "images": 1,
        "batch": 8,
        "ms": {"read": 1.0, "decode": 0.0, "queue": 2.0, "inference": 3.0, "total": 7.0},
    }


def test_text_is_for_people():
    log = Log("text")
    log.log.observe(REFUSED)
    log.log.event("ready", url="http://127.0.0.1:8000", models=["regnet"])
    refused, ready = log.lines()
    assert re.match(r"\S+Z WARNING request request_id=id-1 ", refused)
    assert refused.endswith('ms.total=7.0 error="128 images are waiting already, try again"')
    assert ready.endswith('Z INFO    ready url=http://127.0.0.1:8000 models=["regnet"]')


@pytest.mark.parametrize("status", [500, 503, 504, 401, 408, 413, 429])
def test_what_the_server_refuses_or_fails_at_is_a_warning(log: Log, status: int):
    log.log.observe(REFUSED._replace(status=status))
    (line,) = log.objects()
    assert (line["level"], line["status"], line["error"]) == ("warning", status, REFUSED.error)


def test_a_storm_of_refusals_is_a_few_lines_and_a_count(log: Log):
    for _ in range(500):
        log.log.observe(REFUSED)
    log.log.observe(REFUSED._replace(status=413))
    log.log.event("draining")
    *refused, other, draining, suppressed = log.objects()
    assert [line["status"] for line in refused] == [503] * 10
    assert (other["status"], draining["event"]) == (413, "draining")
    assert (suppressed["event"], suppressed["lines"], suppressed["of"]) == ("suppressed", 490, ["request", 503])


def test_lines_that_were_kept_back_are_counted_without_another_line(log: Log):
    for _ in range(15):
        log.log.observe(REFUSED)
    log.now = 1.0
    for _ in range(1000):
        if "suppressed" in log.stream.getvalue():
            break
        log.log._handler.lines._thread.join(0.02)
    assert '"event":"suppressed","lines":5,' in log.stream.getvalue()


def test_all_requests_are_all_of_them():
    every = Log(every_request=True)
    for _ in range(50):
        every.log.observe(REFUSED)
    assert len(every.objects()) == 50


@pytest.mark.parametrize("format", ["text", "json"])
def test_checklist_30_nothing_that_a_client_sends_makes_a_line_of_its_own(format: str, monkeypatch: pytest.MonkeyPatch):
    # pytest-xdist fails to send a captured line with a lone surrogate.
    monkeypatch.setattr(logging.getLogger("uvicorn"), "propagate", False)
    log = Log(format, every_request=True)
    log.log.observe(REFUSED._replace(error=HOSTILE, request_id=HOSTILE, trace_parent=HOSTILE, model=HOSTILE))
    log.log.event(HOSTILE, why=HOSTILE, list=[HOSTILE])
    logging.getLogger("uvicorn.error").warning("bad request %s", HOSTILE)
    lines = log.lines()
    assert len(lines) == 3
    assert all(len(line) < 4000 for line in lines)


@pytest.mark.parametrize("format", ["text", "json"])
def test_an_exception_keeps_its_traceback_and_its_line(format: str):
    log = Log(format)

    def fails(finished: RequestRecord) -> None:
        raise ValueError(HOSTILE[:40])

    notify_all([fails, log.log.observe])(REFUSED)
    first, *rest = log.lines()
    if format == "json":
        line = json.loads(first)
        assert (line["level"], line["event"], line["logger"]) == ("error", "message", "regnet_deploy.serving")
        assert "ValueError: a\r\n" in line["exception"]
        assert len(rest) == 1
    else:
        assert 'message="an observer of requests failed' in first
        assert all(line.startswith("    ") for line in rest[:-1]), "no line of it looks like one of the log's"


def test_warnings_of_libraries_are_lines_of_the_log_and_limited(log: Log):
    for name in LIBRARIES:
        logging.getLogger(name + ".x").warning("of %s", name)
        logging.getLogger(name + ".x").info("not this")
    for _ in range(100):
        logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    *lines, suppressed = log.objects()
    assert [line["message"] for line in lines[:3]] == [f"of {name}" for name in LIBRARIES]
    assert [line["message"] for line in lines[3:]] == ["Invalid HTTP request received."] * 10
    assert (suppressed["lines"], suppressed["of"][0]) == (90, "uvicorn.error")


def test_other_loggers_are_left_alone():
    root = logging.getLogger()
    ours = logging.getLogger("regnet_deploy.serving")
    before = (list(root.handlers), root.level, ours.level, ours.propagate)
    log = Log()
    assert (list(root.handlers), root.level) == before[:2]
    log.lines()
    assert (list(root.handlers), root.level, ours.level, ours.propagate) == before
    assert not [
        h for name in (ours.name, *LIBRARIES) for h in logging.getLogger(name).handlers if h is log.log._handler
    ]


def test_loggers_are_restored_with_the_last_of_several_logs():
    ours = logging.getLogger("regnet_deploy.serving")
    before = (ours.level, ours.propagate)
    first, second = Log(), Log()
    first.lines()
    assert (ours.level, ours.propagate) == (logging.INFO, False)
    second.lines()
    second.lines()  # closed already
    assert (ours.level, ours.propagate) == before


def test_a_log_of_a_thread_has_the_lines_of_its_server_only():
    def serve(name: str) -> list[str]:
        log = Log()
        opened.wait(30)
        log.log.event(name)
        logging.getLogger("uvicorn.error").warning("uvicorn of %s", name)
        logging.getLogger("regnet_deploy.serving.service").warning("service of %s", name)
        written.wait(30)
        return [line.get("message", line["event"]) for line in log.objects()]

    opened, written = threading.Barrier(3), threading.Barrier(3)
    with ThreadPoolExecutor(2) as pool:
        logs = [pool.submit(serve, name) for name in ("first", "second")]
        opened.wait(30)
        logging.getLogger("asyncio").warning("the program around the servers")
        written.wait(30)
    for name, log in zip(("first", "second"), logs, strict=True):
        assert log.result() == [name, f"uvicorn of {name}", f"service of {name}"]


def test_an_unknown_format_is_one_line():
    with pytest.raises(
        UsageError, match=r"unknown log format 'jsn' \(did you mean json\?\); the formats are text, json"
    ):
        RequestLog("jsn", False, io.StringIO())


@pytest.mark.parametrize("given", ["a", "A-z_0.9:/+=", "x" * 128, b"of-grpc"])
def test_an_id_that_can_be_used_is_kept(given: Any):
    assert request_id_of(given) == (given.decode() if isinstance(given, bytes) else given)


@pytest.mark.parametrize(
    "given", [None, "", "x" * 129, "a\n", "a b", "a\r\nb", "ä", "²", "<script>", "\ud800", b"\xff"]
)
def test_an_id_that_cannot_be_used_is_replaced(given: Any):
    made = request_id_of(given)
    assert re.fullmatch("[0-9a-f]{24}", made)
    assert made != request_id_of(given)
