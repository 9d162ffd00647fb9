import asyncio
import gzip
import io
import json
import re
import zlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from regnet_deploy.errors import ProofError
from regnet_deploy.images.preprocessing import load_pixels
from regnet_deploy.runtimes.predictions import top_k
from regnet_deploy.runtimes.runtime import classify_pixels
from regnet_deploy.serving.admission import ServerState
from regnet_deploy.serving.model_version import ModelVersion
from tests.serving.conftest import LIMITS, Inside, Open

INFER = "/v2/models/regnet/infer"


@pytest.fixture
def served(client: Inside) -> ModelVersion:
    return client.core.opened[0]


def infer_body(images: np.ndarray, **fields: Any) -> bytes:
    tensor = {"name": "images", "shape": list(images.shape), "datatype": "FP32", "data": images.ravel().tolist()}
    return json.dumps({"inputs": [tensor], **fields}).encode()


def zeros(count: int = 1) -> np.ndarray:
    return np.zeros((count, 3, 24, 24), np.float32)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def gradient(width: int, height: int) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=2).astype(np.uint8))


def refusal(response: Any, status: int) -> str:
    assert response.status_code == status, response.text
    document = response.json()
    assert set(document) == {"error"}
    return str(document["error"])


def test_the_first_page_says_what_there_is(client: Inside):
    page = client.get("/").json()
    assert [model["name"] for model in page["models"]] == ["regnet"]
    assert "curl --data-binary @image.jpg" in page["example"]
    assert "POST /v2/models/regnet/infer" in page["endpoints"]


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
def test_server_metadata(client: Inside, path: str):
    assert client.get(path).json()["extensions"] == [
        "binary_tensor_data",
        "classification",
        "model_configuration",
        "model_repository",
        "schedule_policy",
        "statistics",
    ]


@pytest.mark.parametrize("path", ["/v2/models/regnet", "/v2/models/regnet/versions/1"])
def test_model_metadata_and_readiness(client: Inside, path: str):
    document = client.get(path).json()
    assert document["inputs"] == [{"name": "images", "datatype": "FP32", "shape": [-1, 3, 24, 24]}]
    assert document["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 6]}]
    assert document["versions"] == ["1"]
    assert client.get(path + "/ready").json() == {"name": "regnet", "ready": True}


def test_logits_are_those_of_the_session(client: Inside, served: ModelVersion):
    images = np.random.default_rng(0).normal(size=(3, 3, 24, 24)).astype(np.float32)
    answer = client.post(INFER, content=infer_body(images, id="7")).json()
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("7", "regnet", "1")
    np.testing.assert_allclose(
        np.reshape(answer["outputs"][0]["data"], (3, 6)), served.session.run(images), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nix", 404),
        ("GET", "/v2/models", 404),
        ("GET", "/v2/models/other", 404),
        ("POST", "/v2/models/other/infer", 404),
        ("GET", "/v2/models/regnet/versions/2", 404),
        ("POST", "/v2/models/regnet/versions/abc/infer", 404),
        ("GET", "/v2/models/other/ready", 400),
        ("GET", "/v2/models/regnet/versions/2/ready", 400),
        ("GET", "/v2/models/%2e%2e%2fregnet", 404),
        ("GET", "/v2/models/regnet%00", 404),
        ("GET", "/v2/models/" + "x" * 5000, 404),
        ("POST", "/v2/repository/models/regnet/unload", 503),
        ("GET", INFER, 405),
        ("POST", "/v2/health/live", 405),
        ("DELETE", "/classify", 405),
        ("PUT", "/", 405),
    ],
)
def test_what_there_is_not_is_an_error_in_json(client: Inside, method: str, path: str, status: int):
    text = refusal(client.request(method, path), status)
    assert len(text) < 300


def test_a_wrong_method_names_the_right_one(client: Inside):
    assert client.get("/classify").headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [("gzip", gzip.compress), ("deflate", zlib.compress), ("GZIP", gzip.compress), ("identity", bytes)],
)
def test_compressed_requests_are_unpacked(client: Inside, encoding: str, pack: Any):
    answer = client.post(INFER, content=pack(infer_body(zeros())), headers={"content-encoding": encoding})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("encoding", "data", "status"),
    [
        ("br", b"x", 415),
        ("gzip, gzip", gzip.compress(gzip.compress(b"{}", mtime=0), mtime=0), 415),
        ("gzip", b"not gzip", 400),
        ("gzip", gzip.compress(infer_body(zeros()))[:-9], 400),
        ("gzip", gzip.compress(infer_body(zeros())) + b"more", 400),
        ("deflate", gzip.compress(infer_body(zeros())), 400),
        ("gzip", gzip.compress(bytes(5_000_000)), 413),
        ("deflate", zlib.compress(bytes(LIMITS.max_body_bytes + 1)), 413),
    ],
    ids=["unknown", "twice", "none", "cut-off", "trailing", "wrong-name", "large-gzip", "large-deflate"],
)
def test_bad_compression_is_the_clients_mistake(client: Inside, encoding: str, data: bytes, status: int):
    refusal(client.post(INFER, content=data, headers={"content-encoding": encoding}), status)


@pytest.mark.parametrize("path", [INFER, "/classify"])
def test_a_body_over_the_limit_is_refused_by_its_length_and_by_counting(client: Inside, path: str):
    assert "200,000 bytes" in refusal(client.post(path, content=bytes(LIMITS.max_body_bytes + 1)), 413)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield bytes(1000)

    refused = client.post(path, content=chunks())
    assert "content-length" not in refused.request.headers
    refusal(refused, 413)
    assert refused.headers["connection"] == "close"
    assert client.get("/v2/health/ready").status_code == 200


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("jpeg", lambda image: encoded(image, "JPEG", quality=90)),
        ("png", lambda image: encoded(image, "PNG")),
        ("webp", lambda image: encoded(image, "WEBP", lossless=True)),
        ("grey", lambda image: encoded(image.convert("L"), "PNG")),
        ("palette", lambda image: encoded(image.convert("P"), "PNG")),
        ("cmyk", lambda image: encoded(image.convert("CMYK"), "JPEG")),
        ("rgba", lambda image: encoded(image.convert("RGBA"), "PNG")),
        ("progressive", lambda image: encoded(image, "JPEG", progressive=True)),
    ],
)
def test_an_image_is_classified_as_the_library_would(client: Inside, served: ModelVersion, name: str, make: Any):
    data = make(gradient(90, 60))
    answer = client.post("/classify?k=3", content=data)
    assert answer.status_code == 200, answer.text
    pixels = load_pixels(data, served.preprocessing)
    wanted = top_k(classify_pixels(served.session, pixels[None], served.preprocessing), served.interface.labels, 3)[0]
    got = answer.json()
    assert [p["label"] for p in got["predictions"]] == [p.label for p in wanted]
    assert [p["index"] for p in got["predictions"]] == [p.index for p in wanted]
    assert [p["probability"] for p in got["predictions"]] == pytest.approx([p.probability for p in wanted])
    assert set(got["timing_ms"]) == {"read", "decode", "queue", "inference", "total"}


def test_an_image_is_turned_as_its_exif_says(client: Inside):
    image = gradient(80, 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise to be upright
    turned = client.post("/classify", content=encoded(image, "PNG", exif=exif)).json()
    upright = client.post("/classify", content=encoded(image.transpose(Image.Transpose.ROTATE_270), "PNG")).json()
    assert turned["predictions"] == upright["predictions"]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"hello", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not an image"),
        (encoded(gradient(90, 60), "PNG")[:200], "broken"),
        (encoded(gradient(90, 60), "JPEG")[:500], "broken"),
        (encoded(Image.new("1", (501, 500)), "PNG"), "pixels"),
        # Formats of the library that the network does not get to.
        (encoded(gradient(90, 60), "BMP"), "not an image in a format that is read (JPEG, PNG, WEBP)"),
        (encoded(gradient(90, 60), "TIFF"), "not an image"),
        (encoded(gradient(90, 60), "GIF"), "not an image"),
        (encoded(gradient(90, 60), "PPM"), "not an image"),
    ],
)
def test_what_is_not_a_usable_image_is_the_clients_mistake(client: Inside, data: bytes, says: str):
    assert says in refusal(client.post("/classify", content=data), 400)


@pytest.mark.parametrize("k", ["0", "-1", "1.5", "x", "", "9" * 30, "٣", "1e3"])
def test_k_must_be_a_whole_number(client: Inside, k: str):
    assert "k must be" in refusal(client.post("/classify", params={"k": k}, content=b"x"), 400)


def test_k_beyond_the_classes_is_all_of_them(client: Inside):
    answer = client.post("/classify?k=1000", content=encoded(gradient(30, 30), "PNG")).json()
    assert sorted(p["index"] for p in answer["predictions"]) == list(range(6))
    assert sum(p["probability"] for p in answer["predictions"]) == pytest.approx(1)


def test_a_form_with_several_images_is_answered_for_each(client: Inside):
    files = [
        ("a", ("one.png", encoded(gradient(30, 30), "PNG"))),
        ("b", ("two.txt", b"hello")),
        ("c", ("three.jpg", encoded(gradient(90, 60), "JPEG"))),
    ]
    answer = client.post("/classify?k=2", files=files).json()
    one, two, three = answer["results"]
    assert [one["image"], two["image"], three["image"]] == ["one.png", "two.txt", "three.jpg"]
    assert len(one["predictions"]) == len(three["predictions"]) == 2
    assert "not an image" in two["error"]
    alone = client.post("/classify?k=2", content=files[2][1][1]).json()
    assert [p["index"] for p in alone["predictions"]] == [p["index"] for p in three["predictions"]]


@pytest.mark.parametrize("state", [ServerState.STARTING, ServerState.DRAINING])
def test_only_a_ready_server_answers(client: Inside, state: ServerState):
    admission = client.core.service.admission
    admission.state = state
    try:
        assert client.get("/v2/health/live").status_code == 200
        for path in ("/v2/health/ready", "/v2/models/regnet/ready"):
            answer = client.get(path)
            assert answer.status_code == 503
            assert answer.json()["ready"] is False
        for path in (INFER, "/classify"):
            answer = client.post(path, content=infer_body(zeros()))
            assert refusal(answer, 503) == state.value
            assert answer.headers["retry-after"] == "1"
    finally:
        admission.state = ServerState.READY


def test_more_requests_than_there_is_room_for_are_told_to_come_back(inside: Open):
    client = inside(limits=replace(LIMITS, max_in_flight=2))
    admission = client.core.service.admission
    with admission.enter(), admission.enter():
        answer = client.post(INFER, content=infer_body(zeros()))
        assert "2 requests are in flight" in refusal(answer, 503)
        assert answer.headers["retry-after"] == "1"
        assert client.get("/v2/health/ready").status_code == 200
    assert admission.in_flight == 0
    assert client.post(INFER, content=infer_body(zeros())).status_code == 200


def test_a_place_is_given_back_whatever_happens(client: Inside):
    for content in (b"", b"{}", bytes(LIMITS.max_body_bytes + 1), infer_body(zeros(9)), infer_body(zeros())):
        client.post(INFER, content=content)
        client.post("/classify", content=content)
    admission = client.core.service.admission
    assert (admission.in_flight, admission.bytes_in_flight) == (0, 0)
    assert client.core.opened[0].batcher.depth == 0


def test_a_runtime_that_fails_is_an_error_of_the_server_without_details(inside: Open, monkeypatch: Any):
    client = inside()

    def fail(images: np.ndarray) -> np.ndarray:
        raise ProofError("out of memory at /secret/path")

    monkeypatch.setattr(client.core.opened[0].session, "run", fail)
    assert "secret" not in refusal(client.post(INFER, content=infer_body(zeros())), 500)
    assert client.get("/v2/health/live").status_code == 200
    monkeypatch.undo()
    assert client.post(INFER, content=infer_body(zeros())).status_code == 200


def speak(client: Inside, path: str, messages: list[Any]) -> list[Any]:
    """Send an application these messages, then nothing until it has answered, then the end of the connection."""
    sent: list[Any] = []
    left = iter(messages)

    async def receive() -> Any:
        message = next(left, None)
        if message is None:
            while not sent:
                await asyncio.sleep(0.01)
            return {"type": "http.disconnect"}
        return message

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b"", "root_path": ""}
    client.run(client.app(scope, receive, send))
    return sent


def test_a_body_that_does_not_arrive_in_time_is_given_up(inside: Open):
    client = inside(limits=replace(LIMITS, read_timeout_s=0.05))
    sent = speak(client, INFER, [{"type": "http.request", "body": b"{", "more_body": True}])
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]


def test_a_client_that_goes_away_leaves_nothing_behind(client: Inside):
    gone = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]
    assert speak(client, "/classify", gone) == []
    assert client.core.service.admission.in_flight == 0


def test_the_app_can_be_mounted_in_another(inside: Open):
    from starlette.applications import Starlette
    from starlette.routing import Mount

    client = inside()
    client.app = Starlette(routes=[Mount("/vision", client.app)])
    assert client.get("/vision/v2/health/ready").status_code == 200
    assert client.post("/vision" + INFER, content=infer_body(zeros())).status_code == 200
    assert "curl --data-binary @image.jpg http://test/vision/classify" in client.get("/vision/").json()["example"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=6,
)
good = {
    "id": "x",
    "inputs": [
        {"name": "images", "shape": [1, 3, 24, 24], "datatype": "FP32", "parameters": {"binary_data_size": 6912}}
    ],
    "outputs": [{"name": "logits", "parameters": {"binary_data": True}}],
}


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A good request with one thing in it replaced, removed, or cut off."""
    document = json.loads(json.dumps(good))
    holders = [document, document["inputs"][0], document["inputs"][0]["parameters"], document["outputs"][0]]
    holder = draw(st.sampled_from(holders))
    key = draw(st.sampled_from([*holder, "data", "parameters"]))
    if draw(st.booleans()):
        holder.pop(key, None)
    else:
        holder[key] = draw(json_values)
    data = json.dumps(document).encode()
    return data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data


@settings(max_examples=1000, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    data=mutated() | st.binary(max_size=60),
    raw=st.sampled_from([b"", bytes(6912), bytes(6911), b"\xff" * 6912]),
    length=st.none() | st.integers(-2, 400) | st.text("0123456789abc-+. ", max_size=5) | st.just("exact"),
    encoding=st.sampled_from([None, None, None, "gzip", "deflate", "br", ""]),
    pack=st.booleans(),
    path=st.sampled_from([INFER, INFER, INFER, "/classify", "/classify?k=%00", "/v2/models/regnet/versions/1/infer"]),
)
def test_no_request_is_answered_with_an_error_of_the_server(client: Inside, data, raw, length, encoding, pack, path):
    headers = {}
    if length is not None:
        headers["Inference-Header-Content-Length"] = str(len(data)) if length == "exact" else str(length)
    if encoding is not None:
        headers["content-encoding"] = encoding
    content = data + raw
    if pack:
        content = {"gzip": gzip.compress, "deflate": zlib.compress}.get(encoding or "", bytes)(content)
    answer = client.post(path, content=content, headers=headers)  # an exception in the app would be raised here
    assert answer.status_code < 500
    if answer.status_code != 200:
        assert set(answer.json()) == {"error"}


def test_bodies_have_a_limit_together(inside: Open):
    client = inside(limits=replace(LIMITS, max_body_bytes=150_000, max_bodies_bytes=150_000))
    admission = client.core.service.admission
    with admission.enter() as other:
        assert other.take(130_000)
        answer = client.post(INFER, content=infer_body(np.full((1, 3, 24, 24), 0.25, np.float32)))
        assert answer.status_code == 200, answer.text
        answer = client.post("/classify", content=bytes(30_000))
        assert "use all the memory" in refusal(answer, 503)
        assert answer.headers["retry-after"] == "1"
    assert admission.bytes_in_flight == 0
    assert "not an image" in refusal(client.post("/classify", content=bytes(20_000)), 400)


@pytest.mark.parametrize(
    ("content", "states"),
    [
        (b"", ["READY", "UNAVAILABLE"]),
        (b"{}", ["READY", "UNAVAILABLE"]),
        (b'{"ready": false}', ["READY", "UNAVAILABLE"]),
        (b'{"ready": true, "other": 1}', ["READY"]),
    ],
)
def test_the_index_has_what_is_asked_for(inside: Open, content: bytes, states: list[str]):
    client = inside()
    client.call(client.core.service.models.refuse, "regnet", "2", "it is damaged")
    answer = client.post("/v2/repository/index", content=content)
    assert [entry["state"] for entry in answer.json()] == states
    packed = client.post("/v2/repository/index", content=gzip.compress(content), headers={"content-encoding": "gzip"})
    assert packed.json() == answer.json()


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b"null", 400),
        (b'{"ready": 1}', 400),
        (b'{"ready": null}', 400),
        (b"\xff", 400),
        (b"[" * 60_000, 400),
        (b'{"ready": true}' + b" " * 70_000, 413),
    ],
)
def test_an_index_that_is_asked_for_wrongly_is_the_clients_mistake(client: Inside, content: bytes, status: int):
    refusal(client.post("/v2/repository/index", content=content), status)
    admission = client.core.service.admission
    assert (admission.in_flight, admission.bytes_in_flight) == (0, 0)


def test_who_leaves_before_the_index_is_asked_for_leaves_nothing_behind(client: Inside):
    sent = speak(client, "/v2/repository/index", [{"type": "http.disconnect"}])
    assert sent[0]["status"] == 499


def test_configuration_and_statistics_are_those_of_the_protocol(client: Inside):
    for path in ("/v2/models/regnet", "/v2/models/regnet/versions/1"):
        assert client.get(path + "/config").json()["max_batch_size"] == LIMITS.max_batch
        (row,) = client.get(path + "/stats").json()["model_stats"]
        assert (row["name"], row["version"]) == ("regnet", "1")
    assert client.get("/v2/models/stats").json()["model_stats"][0]["name"] == "regnet"


def test_the_card_is_for_the_page(client: Inside):
    (card,) = client.get("/card").json()["models"]
    assert (card["name"], card["version"], card["default"], card["device"]) == ("regnet", "1", True, "cpu")


def test_browsers_get_the_page_and_others_json(client: Inside):
    page = client.get("/", headers={"accept": "text/html,application/xhtml+xml"})
    assert page.headers["content-type"].startswith("text/html")
    assert "content-security-policy" in page.headers
    assert client.get("/").headers["content-type"] == "application/json"


def test_metrics_are_there_where_they_are_asked_for(inside: Open, client: Inside):
    refusal(client.get("/metrics"), 404)
    with_metrics = inside()
    from regnet_deploy.serving.app import create_app

    with_metrics.app = create_app(with_metrics.core.service, metrics=with_metrics.core.metrics.scrape)
    answer = with_metrics.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert b"regnet_deploy_requests" in answer.content


def test_a_token_is_asked_of_everybody(inside: Open):
    client = inside(app={"token": "0123456789abcdef"})
    assert client.get("/v2/health/ready").status_code == 200
    assert "bearer token" in refusal(client.get("/v2/models/regnet"), 401)
    assert client.get("/v2/models/regnet", headers={"authorization": "Bearer 0123456789abcdef"}).status_code == 200
    unread = client.post("/classify", content=bytes(1000))
    assert (unread.status_code, unread.headers["connection"]) == (401, "close")


def test_an_executor_that_hangs_fails_liveness_and_nothing_else(inside: Open, monkeypatch: Any):
    client = inside(limits=replace(LIMITS, hung_s=1e-9))
    batcher = client.core.opened[0].batcher
    monkeypatch.setattr(batcher, "_busy_since", [0.0])
    answer = client.get("/v2/health/live")
    assert (answer.status_code, answer.json()["live"]) == (503, False)
    assert client.get("/v2/health/ready").status_code == 200


@pytest.mark.parametrize(
    "name",
    [
        *("host", "authorization", "content-type", "content-encoding", "inference-header-content-length"),
        *("transfer-encoding", "x-request-id", "traceparent"),
    ],
)
def test_two_values_of_a_header_of_which_there_is_one_are_refused(client: Inside, name: str):
    for path in ("/v2/models/regnet", "/classify", INFER):
        answer = client.post(path, content=b"", headers=[(name, "one"), (name, "two")])
        assert answer.status_code == 400
        assert answer.json() == {"error": f"the request has the header {name} twice, with two values"}
    assert "twice" not in client.post("/classify", content=b"", headers=[(name, "one"), (name, "one")]).text
    assert client.get("/v2/health/live", headers=[("accept", "a"), ("accept", "b")]).status_code == 200


def test_requests_that_are_refused_for_their_headers_are_counted(inside: Open):
    client = inside(app={"token": "0123456789abcdef"})
    twice = [("authorization", "one"), ("authorization", "two")]
    assert client.post(INFER, content=b"").status_code == 401
    for path in (INFER, "/classify"):
        assert client.post(path, content=b"", headers=twice).status_code == 400
    assert client.get("/v2", headers=twice).status_code == 400  # not a request for an inference
    text = client.run(client.core.metrics.scrape(""))[0].decode()
    lines = [line for line in text.splitlines() if line.startswith("regnet_deploy_requests_total{")]
    counts = {tuple(re.findall(r'(?:operation|status)="(\w+)"', line)): float(line.split()[-1]) for line in lines}
    assert counts == {("infer", "401"): 1, ("infer", "400"): 1, ("classify", "400"): 1}


def test_pages_without_parameters_refuse_them_but_probes_and_browsers_are_let_be(client: Inside):
    for path in ("/card?topk=3", "/?topk=3"):
        answer = client.get(path)
        assert answer.status_code == 400
        assert "unknown parameter 'topk' of the URL" in answer.json()["error"]
        assert answer.json()["error"].endswith("has none")
    assert client.get("/?topk=3", headers={"accept": "text/html"}).status_code == 200
    for path in ("/v2/health/ready?now", "/v2/models/regnet?api-version=1"):  # as Triton
        assert client.get(path).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        *("/v2/logging", "/v2/trace/setting", "/v2/models/regnet/trace/setting", "/v2/systemsharedmemory/status"),
        *("/v2/cudasharedmemory/region/a/register", "/v2/systemsharedmemory/unregister"),
    ],
)
def test_extensions_that_are_not_listed_are_not_there(client: Inside, path: str):
    listed = client.get("/v2").json()["extensions"]
    assert not {"logging", "trace", "system_shared_memory", "cuda_shared_memory", "sequence"} & set(listed)
    for answer in (client.get(path), client.post(path, content=b"{}")):
        assert answer.status_code == 404
