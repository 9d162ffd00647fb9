"""Infer and classify from the request's head to its answer, and what observers are told of each."""

import asyncio
import gzip
import io
import json
import shutil
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from regnet_deploy.serving.admission import ServerState
from regnet_deploy.serving.batching import Batching
from regnet_deploy.serving.core_settings import CoreSettings
from regnet_deploy.serving.model_version import ServeOptions
from regnet_deploy.serving.request_record import RequestRecord
from regnet_deploy.serving.server_core import ServerCore
from tests.serving.conftest import LIMITS, Inside, Open

INFER = "/v2/models/regnet/infer"
_STREAM = io.BytesIO()
Image.new("RGB", (30, 30), (200, 30, 30)).save(_STREAM, "PNG")
PNG = _STREAM.getvalue()


class Watched(Inside):
    """An assembly of which each request that has ended is kept, and whose inferences wait while the gate is shut."""

    def __init__(self, core: ServerCore, finished: list[RequestRecord]) -> None:
        super().__init__(core)
        self.finished = finished
        self.gate, self.entered = threading.Event(), threading.Event()
        self.gate.set()
        self.session = core.opened[0].session
        self.batcher = core.opened[0].batcher
        run = self.session.run

        def gated(images: np.ndarray) -> np.ndarray:
            self.entered.set()
            assert self.gate.wait(30)
            if (images == 666).any():
                raise RuntimeError("cuda error at /secret/path")
            return run(images)

        self.session.run = gated

    def one(self) -> RequestRecord:
        """The one request that has ended since the last time."""
        (one,) = self.finished
        self.finished.clear()
        return one

    def shut(self) -> None:
        self.gate.clear()
        self.entered.clear()

    def is_empty(self) -> bool:
        admission = self.core.service.admission
        return (self.batcher.depth, self.batcher.running, admission.in_flight, admission.bytes_in_flight) == (0,) * 4


@pytest.fixture(scope="module")
def _watched(_exported: Any) -> Iterator[Watched]:
    finished: list[RequestRecord] = []
    limits = replace(LIMITS, max_queue=3)
    core = ServerCore(
        _exported,
        CoreSettings(
            options=ServeOptions(variant="onnx-fp32", batch=2, threads=1), limits=limits, decoders=1, poll_s=0
        ),
        observers=(finished.append,),
    )
    one = Watched(core, finished)
    one.request("GET", "/")
    yield one
    one.close()


@pytest.fixture
def client(_watched: Watched) -> Iterator[Watched]:
    """A watched assembly that must be empty after each test."""
    _watched.finished.clear()
    yield _watched
    _watched.gate.set()
    _watched.run(until(_watched.is_empty))


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(6000):
        if condition():
            return
        await asyncio.sleep(0.005)
    pytest.fail("it did not come to that")


def tensor(count: int = 1, value: float = 0.5) -> dict[str, Any]:
    """An infer request in binary, as httpx takes it."""
    images = np.full((count, 3, 24, 24), value, np.float32)
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "images",
                    "shape": list(images.shape),
                    "datatype": "FP32",
                    "parameters": {"binary_data_size": images.nbytes},
                }
            ]
        }
    ).encode()
    return {"content": head + images.tobytes(), "headers": {"inference-header-content-length": str(len(head))}}


def png(colour: tuple[int, int, int] = (200, 30, 30)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (30, 30), colour).save(stream, "PNG")
    return stream.getvalue()


class Hanging:
    """A request whose client is there until it leaves."""

    def __init__(self, client: Inside, path: str, content: bytes, headers: dict[str, str], query: str = "") -> None:
        self.sent: list[Any] = []
        self._gone: asyncio.Event
        self._client = client
        self._messages = [{"type": "http.request", "body": content, "more_body": False}]
        self._scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "root_path": "",
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }
        self.work = asyncio.run_coroutine_threadsafe(self._ask(), client.loop)

    async def _ask(self) -> None:
        self._gone = asyncio.Event()
        await self._client.app(self._scope, self._receive, self._send)

    async def _receive(self) -> Any:
        if self._messages:
            return self._messages.pop()
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)

    def leave(self) -> None:
        self._client.call(lambda: self._gone.set())


def hanging(client: Watched, count: int = 1) -> Hanging:
    sent = tensor(count)
    return Hanging(client, INFER, sent["content"], sent["headers"])


# What observers are told


def test_an_inference_is_told_with_its_stages(client: Watched):
    answer = client.post(INFER, content=tensor(2)["content"], headers={**tensor(2)["headers"], "x-request-id": "my:1"})
    one = client.one()
    assert answer.headers["x-request-id"] == one.request_id == "my:1"
    assert (one.model, one.version, one.protocol, one.operation) == ("regnet", "1", "http", "infer")
    assert (one.status, one.images, one.batch, one.error) == (200, 2, 2, None)
    assert one.total_s >= one.inference_s > 0
    assert one.total_s >= one.read_s > 0
    assert one.decode_s == 0
    assert one.started > 1_600_000_000


def test_a_classification_is_told_with_its_stages_and_its_trace(client: Watched):
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    answer = client.post("/classify", content=png(), headers={"traceparent": parent})
    one = client.one()
    assert (one.operation, one.status, one.images, one.batch) == ("classify", 200, 1, 1)
    assert one.trace_parent == parent
    assert one.decode_s > 0
    timing = answer.json()["timing_ms"]
    assert timing["decode"] == round(one.decode_s * 1000, 3)
    assert timing["total"] <= one.total_s * 1000


@pytest.mark.parametrize("given", [None, "", "ü", "x" * 129, "a b", 'a"b', "a\\b"])
def test_a_request_without_an_id_that_can_be_used_gets_one(client: Watched, given: str | None):
    headers = {} if given is None else {"x-request-id": given.encode("latin-1")}
    answer = client.post("/classify", content=b"", headers=headers)
    assert answer.headers["x-request-id"] == client.one().request_id
    assert len(answer.headers["x-request-id"]) == 24
    assert answer.headers["x-request-id"] != given


@pytest.mark.parametrize(
    ("path", "content", "headers", "status", "model"),
    [
        ("/v2/models/other/infer", b"", {}, 404, ""),
        ("/v2/models/regnet/versions/9/infer", b"", {}, 404, ""),
        (INFER, b"{}", {}, 400, "regnet"),
        (INFER, b"{", {"inference-header-content-length": "1"}, 400, "regnet"),
        (INFER, b"{}", {"inference-header-content-length": b"\xb2"}, 400, "regnet"),  # a digit of Unicode
        (INFER, bytes(LIMITS.max_body_bytes + 1), {}, 413, "regnet"),
        (INFER, b"{}", {"content-encoding": "br"}, 415, "regnet"),
        (INFER, *tensor(9).values(), 400, "regnet"),
        (INFER, *tensor(1, 666).values(), 500, "regnet"),
        ("/classify", b"no image", {}, 400, "regnet"),
        ("/classify?k=0", png(), {}, 400, ""),
        ("/classify?model=other", png(), {}, 404, ""),
        ("/classify?version=9", png(), {}, 404, ""),
        ("/classify?" + "a=1&" * 30, png(), {}, 400, ""),
        ("/classify", b"x", {"content-type": "multipart/mixed; boundary=X"}, 415, "regnet"),
    ],
)
def test_a_request_that_is_refused_is_told_once_with_the_line_that_the_client_got(
    client: Watched, path: str, content: bytes, headers: dict[str, Any], status: int, model: str
):
    answer = client.post(path, content=content, headers=headers)
    assert answer.status_code == status, answer.text
    one = client.one()
    assert (one.status, one.model, one.error) == (status, model, answer.json()["error"])
    assert one.batch == 0
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] == one.request_id


@pytest.mark.parametrize("state", [ServerState.STARTING, ServerState.DRAINING])
def test_a_server_that_is_not_ready_tells_it_as_well(client: Watched, state: ServerState):
    admission = client.core.service.admission
    admission.state = state
    try:
        assert client.post(INFER, **tensor()).status_code == 503
        assert client.one().error == state.value
    finally:
        admission.state = ServerState.READY


def test_a_form_of_nothing_that_can_be_decoded_is_answered_and_told_without_an_inference(client: Watched):
    files = [("a", ("one.txt", b"hello")), ("b", ("two.png", b""))]
    answer = client.post("/classify", files=files)
    assert answer.status_code == 400
    assert [set(result) for result in answer.json()["results"]] == [{"image", "error"}] * 2
    one = client.one()
    assert (one.status, one.images, one.batch) == (400, 0, 0)


def test_a_form_of_several_is_told_once_with_its_images(client: Watched):
    files = [(str(i), (f"{i}.png", png((i, i, i)))) for i in range(3)]
    assert client.post("/classify", files=files).status_code == 200
    one = client.one()
    assert (one.images, one.status) == (3, 200)


# The queue and the client


def test_a_full_queue_is_a_503_at_once_while_the_server_is_well(client: Watched):
    client.shut()
    first = hanging(client)
    client.entered.wait(30)
    others = [hanging(client), hanging(client, 2)]
    client.run(until(lambda: client.batcher.depth == 3))
    answer = client.post(INFER, **tensor())
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "3 images are waiting already" in answer.json()["error"]
    assert client.one().status == 503
    assert client.get("/v2/health/ready").status_code == client.get("/v2/health/live").status_code == 200
    client.gate.set()
    for one in (first, *others):
        one.work.result(30)
        assert one.sent[0]["status"] == 200
    assert sorted(one.images for one in client.finished) == [1, 1, 2]


def test_a_client_that_leaves_the_queue_frees_its_room_and_is_not_run(client: Watched):
    client.shut()
    first = hanging(client)
    client.entered.wait(30)
    gone = hanging(client, 3)
    client.run(until(lambda: client.batcher.depth == 3))
    assert client.post(INFER, **tensor()).status_code == 503
    client.finished.clear()
    gone.leave()
    gone.work.result(30)
    assert gone.sent == []
    one = client.one()
    assert (one.status, one.error, one.batch) == (499, "the client is gone", 0)
    assert client.batcher.depth == 0
    stays = hanging(client)
    client.run(until(lambda: client.batcher.depth == 1))
    client.gate.set()
    for request in (first, stays):
        request.work.result(30)
    assert sorted(one.status for one in client.finished) == [200, 200]


def test_a_client_that_leaves_while_it_is_run_is_told_once(client: Watched):
    client.shut()
    gone = hanging(client)
    client.entered.wait(30)
    gone.leave()
    gone.work.result(30)
    assert client.one().status == 499
    client.gate.set()
    client.run(until(client.is_empty))
    assert client.finished == []


def test_a_client_that_leaves_while_a_form_of_its_is_in_the_queue_frees_all_of_it(client: Watched):
    client.shut()
    first = hanging(client)
    client.entered.wait(30)
    boundary = b"--X\r\nContent-Disposition: form-data; name=a; filename=a.png\r\n\r\n" + png() + b"\r\n"
    headers = {"content-type": "multipart/form-data; boundary=X"}
    gone = Hanging(client, "/classify", boundary * 3 + b"--X--\r\n", headers)
    client.run(until(lambda: client.batcher.depth == 3))
    gone.leave()
    gone.work.result(30)
    client.run(until(lambda: client.batcher.depth == 0))
    assert client.one().status == 499
    client.gate.set()
    first.work.result(30)


def test_a_request_that_is_cancelled_by_the_server_is_told_and_leaves_the_queue(client: Watched):
    client.shut()
    first = hanging(client)
    client.entered.wait(30)
    cut = hanging(client)
    client.run(until(lambda: client.batcher.depth == 1))
    admission = client.core.service.admission
    admission.state = ServerState.DRAINING
    try:
        cut.work.cancel()
        client.run(until(lambda: client.batcher.depth == 0))
        client.run(until(lambda: len(cut.sent) == 2))
    finally:
        admission.state = ServerState.READY
    assert (client.one().status, cut.sent[0]["status"]) == (503, 503)
    assert b"cut off" in cut.sent[1]["body"]
    client.gate.set()
    first.work.result(30)


def test_a_request_that_is_cancelled_while_the_server_goes_on_is_one_whose_client_is_gone(client: Watched):
    client.shut()
    first = hanging(client)
    client.entered.wait(30)
    gone = hanging(client)
    client.run(until(lambda: client.batcher.depth == 1))
    gone.work.cancel()
    client.run(until(lambda: client.batcher.depth == 0))
    one = client.one()
    assert (one.status, one.error, gone.sent) == (499, "the client is gone", [])
    client.gate.set()
    first.work.result(30)


def test_a_timeout_of_the_request_is_a_504_while_the_executor_is_busy(client: Watched):
    client.shut()
    first = hanging(client)
    client.entered.wait(30)
    images = np.zeros((1, 3, 24, 24))
    data = {"name": "images", "shape": [1, 3, 24, 24], "datatype": "FP32", "data": images.ravel().tolist()}
    content = json.dumps({"inputs": [data], "parameters": {"timeout": 20_000}}).encode()
    answer = client.post(INFER, content=content)
    assert answer.status_code == 504
    assert answer.json()["error"] == "the request's deadline passed before its inference was done"
    assert client.one().status == 504
    assert client.batcher.depth == 0
    content = json.dumps({"inputs": [data], "parameters": {"timeout": 1}}).encode()  # over when it has been read
    assert client.post(INFER, content=content).status_code == 504
    client.finished.clear()
    client.gate.set()
    first.work.result(30)


def test_a_bad_request_of_a_batch_fails_alone(client: Watched):
    client.shut()
    first = hanging(client)
    client.entered.wait(30)
    bad = tensor(1, 666)
    together = [Hanging(client, INFER, bad["content"], bad["headers"]), hanging(client)]
    client.run(until(lambda: client.batcher.depth == 2))
    client.gate.set()
    for request in (first, *together):
        request.work.result(30)
    assert [request.sent[0]["status"] for request in (first, *together)] == [200, 500, 200]


# The answer


@pytest.mark.parametrize(
    ("accept", "encoding"),
    [
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("br, deflate;q=0.5, gzip;q=0.1", "gzip"),
        ("gzip;q=0, deflate", "deflate"),
        ("GZIP", "gzip"),
        ("gzip;q=0.000", None),
        ("identity", None),
        ("br", None),
        ("", None),
        (None, None),
    ],
)
@pytest.mark.parametrize("binary", [True, False])
def test_large_answers_are_compressed_as_the_client_takes_it(
    client: Watched, accept: str | None, encoding: str | None, binary: bool
):
    data = {"name": "images", "shape": [4, 3, 24, 24], "datatype": "FP32", "parameters": {"binary_data_size": 27648}}
    document = {"inputs": [data], "id": "x" * 2000, "parameters": {"binary_data_output": binary}}
    head = json.dumps(document).encode()
    answer = ask_raw(client, head + bytes(27648), len(head), accept)
    headers = dict(answer[0]["headers"])
    assert headers.get(b"content-encoding") == (encoding.encode() if encoding else None)
    assert headers.get(b"vary") == (b"accept-encoding" if accept is not None else None)
    content = b"".join(message.get("body", b"") for message in answer[1:])
    assert int(headers[b"content-length"]) == len(content)
    plain = {"gzip": gzip.decompress, "deflate": zlib.decompress, None: bytes}[encoding](content)
    if binary:
        split = int(headers[b"inference-header-content-length"])  # of what is unpacked
        assert json.loads(plain[:split])["id"] == "x" * 2000
        assert len(plain) - split == 4 * 6 * 4
    else:
        assert len(json.loads(plain)["outputs"][0]["data"]) == 24


def ask_raw(client: Watched, content: bytes, length: int, accept: str | None) -> list[Any]:
    """Ask with no other headers than these: httpx adds its own, and unpacks."""
    headers = {"inference-header-content-length": str(length)}
    if accept is not None:
        headers["accept-encoding"] = accept
    request = Hanging(client, INFER, content, headers)
    request.work.result(30)
    client.one()
    return request.sent


def test_small_answers_are_sent_as_they_are(client: Watched):
    answer = client.post("/classify?k=1", content=png(), headers={"accept-encoding": "gzip"})
    assert "content-encoding" not in answer.headers


def test_model_version_and_k_are_those_of_the_query(client: Watched):
    answer = client.post("/classify", params={"model": "regnet", "version": "1", "k": "2"}, content=png()).json()
    assert (answer["model"], answer["version"], len(answer["predictions"])) == ("regnet", "1", 2)
    assert "k 2 times" in client.post("/classify?k=1&k=3", content=png()).json()["error"]
    percent = client.post("/classify?model=%72egnet", content=png())
    assert percent.status_code == 200
    client.finished.clear()


def test_the_settings_of_the_queue_are_those_that_were_asked_for(client: Watched):
    assert client.batcher.settings == Batching(executors=1, batch=2, max_delay_s=0.0, max_queue=3)


def test_what_a_body_unpacks_to_counts_as_if_it_had_been_sent(inside: Open):
    client = inside(limits=replace(LIMITS, max_bodies_bytes=LIMITS.max_body_bytes))
    admission = client.core.service.admission
    admission.bytes_in_flight = 50_000  # of another request
    packed = gzip.compress(bytes(190_000))
    answer = client.post("/classify", content=packed, headers={"content-encoding": "gzip"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "use all the memory" in answer.json()["error"]
    assert admission.bytes_in_flight == 50_000
    small = gzip.compress(bytes(90_000))
    assert client.post("/classify", content=small, headers={"content-encoding": "gzip"}).status_code == 400


def test_a_deadline_that_passes_before_the_body_is_unpacked_is_told_at_once_and_the_work_is_dropped(inside: Open):
    client = inside(limits=replace(LIMITS, deadline_s=0.2))
    service, started, go_on = client.core.service, threading.Event(), threading.Event()

    async def occupy() -> Any:
        return asyncio.ensure_future(service.run_in_executor(lambda: (started.set(), go_on.wait(30))))

    held = client.run(occupy())
    assert started.wait(10)
    try:
        answer = client.post(INFER, content=gzip.compress(b"{}"), headers={"content-encoding": "gzip"})
        assert answer.status_code == 504
        assert "before it was read and unpacked" in answer.json()["error"]
    finally:
        go_on.set()
        client.run(held)


def test_a_form_of_more_images_than_may_wait_is_answered_where_nobody_else_is(inside: Open):
    client = inside(limits=replace(LIMITS, max_queue=1))
    files = [(f"f{i}", (f"{i}.png", PNG)) for i in range(4)]
    answer = client.post("/classify?k=1", files=files)
    assert answer.status_code == 200, answer.text
    assert [len(result["predictions"]) for result in answer.json()["results"]] == [1, 1, 1, 1]


def test_where_there_are_several_models_the_one_that_is_meant_is_named(
    inside: Open, exported_bundle: Path, tmp_path: Path
):
    for name in ("cats", "dogs"):
        shutil.copytree(exported_bundle, tmp_path / "models" / name / "1")
    client = inside(tmp_path / "models")
    answer = client.post("/classify", content=PNG)
    assert answer.status_code == 400
    assert answer.json()["error"] == "this server has cats, dogs: name one, such as ?model=cats"
    assert client.post("/classify?model=dogs", content=PNG).json()["model"] == "dogs"
    assert client.post("/classify?model=dogs&model=cats", content=PNG).status_code == 400


def test_a_form_without_one_image_is_the_clients_mistake_and_says_what_is_wrong_with_each(inside: Open):
    answer = inside().post("/classify", files=[("a", ("a.txt", b"x")), ("b", ("b.txt", b""))])
    assert answer.status_code == 400
    assert answer.json()["error"] == "none of the 2 files is a usable image"
    assert ["error" in result for result in answer.json()["results"]] == [True, True]


def test_a_full_queue_refuses_before_the_body_is_read_or_decoded(client: Watched):
    client.shut()
    image = np.zeros((1, 3, 24, 24), np.float32)
    running = client.call(client.batcher.run, image)
    assert client.entered.wait(10)
    queued = [client.call(client.batcher.run, image) for _ in range(client.core.opened[0].batching.max_queue)]
    try:
        answer = client.post("/classify", content=b"not looked at")
        assert answer.status_code == 503
        assert "waiting already" in answer.json()["error"]
    finally:
        client.gate.set()
    for future in (running, *queued):
        client.run(future)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("topk=3", "unknown parameter 'topk' of the URL; /classify has k, model, version"),
        ("k=1&versoin=1", "unknown parameter 'versoin' of the URL (did you mean version?); /classify has k, model,"),
        ("K=1", "unknown parameter 'K' of the URL"),
        ("=1", "unknown parameter '' of the URL"),
    ],
)
def test_a_parameter_that_there_is_not_is_refused(client: Watched, query: str, said: str):
    answer = client.post(f"/classify?{query}", content=png())
    assert answer.status_code == 400
    assert said in answer.json()["error"]


def test_what_curl_sends_with_the_wrong_option_gets_a_hint(client: Watched):
    sent = {"content-type": "application/x-www-form-urlencoded"}
    assert client.post("/classify", content=png(), headers=sent).status_code == 200  # --data-binary sends it as well
    for mangled in (png().replace(b"\n", b"").replace(b"\r", b""), b"image.jpg"):
        answer = client.post("/classify", content=mangled, headers=sent)
        assert answer.status_code == 400
        assert "send it by --data-binary @FILE" in answer.json()["error"]
        assert "--data-binary" not in client.post("/classify", content=mangled).json()["error"]


def test_what_curl_sends_rightly_and_is_not_accepted_gets_no_hint(client: Watched):
    sent = {"content-type": "application/x-www-form-urlencoded"}
    large, gif = png(), io.BytesIO()
    large = large[:16] + (60_000).to_bytes(4, "big") * 2 + large[24:29]
    large += zlib.crc32(large[12:29]).to_bytes(4, "big") + png()[33:]
    Image.new("RGB", (9, 9)).save(gif, "GIF")
    for content, said in (
        (large, "more than 250,000 pixels"),
        (gif.getvalue(), "not an image in a format that is read"),
    ):
        answer = client.post("/classify", content=content, headers=sent)
        assert answer.status_code == 400
        assert said in answer.json()["error"]
        assert "--data-binary" not in answer.json()["error"]
