"""Checklist 38-39: those who come at the same time do not learn of each other."""

import io
import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regnet_deploy.bundle import open_bundle
from regnet_deploy.runtimes.runtime import open_variant

INFER = "/v2/models/regnet/infer"


def logits(reply: Any) -> np.ndarray:
    assert reply.status == 200, reply
    length = int(reply.headers["inference-header-content-length"])
    return np.frombuffer(reply.body[length:], np.float32).reshape(-1, 6)


def ask(server: Any, tools: Any, images: np.ndarray, **more: Any) -> Any:
    body, headers = tools.binary(images, parameters={"binary_data_output": True}, **more)
    return server.ask("POST", INFER, body, headers)


def test_38a_an_answer_is_the_same_alone_and_in_a_batch(server: Any, tools: Any):
    images = tools.tensor(8, seed=5)
    together = logits(ask(server, tools, images))
    for i in range(8):
        alone = logits(ask(server, tools, images[i : i + 1]))
        np.testing.assert_allclose(together[i : i + 1], alone, rtol=1e-5, atol=1e-5)
        backwards = logits(ask(server, tools, images[::-1]))
        np.testing.assert_allclose(backwards[7 - i], together[i], rtol=1e-5, atol=1e-5)


def test_38b_what_stands_beside_an_image_does_not_change_a_bit_of_its_answer(server: Any, tools: Any):
    image = tools.tensor(1, seed=6)
    answers = set()
    for seed in range(10):
        neighbours = tools.tensor(7, seed) * 10.0 ** (seed - 3)
        answers.add(logits(ask(server, tools, np.concatenate([image, neighbours])))[0].tobytes())
    assert len(answers) == 1


def test_38c_nor_does_a_neighbour_that_overflows(gated: Any, tools: Any):
    """Requests that wait for each other run together; nothing of the absurd one comes to the others."""
    absurd = np.copysign(np.float32(3e38), tools.tensor(1, 9))
    before = gated.stats()["execution_count"]
    gated.gate("")
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(ask, gated, tools, tools.tensor(1))]
        tools.wait_until(lambda: images_that(gated, "running") == 1)
        futures += [pool.submit(ask, gated, tools, one) for one in (tools.tensor(1, 1), absurd, tools.tensor(1, 2))]
        tools.wait_until(lambda: images_that(gated, "queue") == 3)
        gated.gate(None)
        replies = [future.result() for future in futures]
    assert [reply.status for reply in replies] == [200, 200, 200, 200]
    assert not np.isfinite(logits(replies[2])).any()  # which JSON could not say
    assert gated.stats()["execution_count"] - before < 4  # they did run together
    for reply, seed in ((replies[1], 1), (replies[3], 2)):
        alone = logits(ask(gated, tools, tools.tensor(1, seed)))
        np.testing.assert_allclose(logits(reply), alone, rtol=1e-5, atol=1e-5)


def images_that(server: Any, do: str) -> float:
    lines = server.get("/metrics").body.decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"regnet_deploy_{do}_images"))


def test_38d_a_thousand_at_once_get_each_their_own(server: Any, tools: Any, exported_bundle: Path):
    """Shuffled, of different sizes, by HTTP and by gRPC, with tensors and with images."""
    import tritonclient.grpc as triton

    session = open_variant(open_bundle(exported_bundle), "onnx-fp32", threads=1)
    inputs = [tools.tensor(1 + seed % 3, seed) for seed in range(40)]
    wanted = [session.run(images) for images in inputs]
    pictures = [tools.image("PNG", (24 + i, 30), (i * 20, 255 - i * 20, i * 7)) for i in range(10)]
    said = [server.post("/classify?k=6", picture).json["predictions"] for picture in pictures]

    def by_http(number: int) -> None:
        reply = ask(server, tools, inputs[number % 40], id=f"id {number}")
        length = int(reply.headers["inference-header-content-length"])
        assert json.loads(reply.body[:length])["id"] == f"id {number}"
        np.testing.assert_allclose(logits(reply), wanted[number % 40], rtol=1e-4, atol=1e-4)

    def by_image(number: int) -> None:
        reply = server.post("/classify?k=6", pictures[number % 10], X_Request_Id=f"n-{number}")
        assert reply.headers["x-request-id"] == f"n-{number}"
        for one, other in zip(reply.json["predictions"], said[number % 10], strict=True):
            assert one["label"] == other["label"]
            assert one["probability"] == pytest.approx(other["probability"], rel=1e-4)

    with triton.InferenceServerClient(server.grpc) as client:

        def by_grpc(number: int) -> None:
            images = inputs[number % 40]
            tensor = triton.InferInput("images", list(images.shape), "FP32")
            tensor.set_data_from_numpy(images)
            answer = client.infer("regnet", [tensor], request_id=f"id {number}")
            assert answer.get_response().id == f"id {number}"
            np.testing.assert_allclose(answer.as_numpy("logits"), wanted[number % 40], rtol=1e-4, atol=1e-4)

        work = (
            [(by_http, n) for n in range(500)]
            + [(by_grpc, n) for n in range(300)]
            + [(by_image, n) for n in range(200)]
        )
        random.Random(0).shuffle(work)
        with ThreadPoolExecutor(32) as pool:
            for done in [pool.submit(function, number) for function, number in work]:
                done.result()


def form(parts: list[tuple[str, bytes]]) -> tuple[bytes, dict[str, str]]:
    stream = io.BytesIO()
    for name, data in parts:
        stream.write(f'--b\r\nContent-Disposition: form-data; name="f"; filename="{name}"\r\n\r\n'.encode())
        stream.write(data + b"\r\n")
    stream.write(b"--b--\r\n")
    return stream.getvalue(), {"Content-Type": "multipart/form-data; boundary=b"}


def test_39a_a_bad_image_of_a_form_fails_alone(server: Any, tools: Any):
    good = tools.image()
    alone = server.post("/classify", good).json["predictions"]
    bad = [b"", b"no image", good[:200], good[:2] + bytes(300), tools.image("PNG", (900, 900)), tools.image("BMP")]
    parts = [("good.jpg", good)] + [(f"bad {i}", data) for i, data in enumerate(bad)] + [("again.jpg", good)]
    body, headers = form(parts)
    reply = server.ask("POST", "/classify", body, headers)
    assert reply.status == 200
    first, *refused, last = reply.json["results"]
    for one, name in ((first, "good.jpg"), (last, "again.jpg")):
        assert one["image"] == name if "image" in one else True
        assert [(p["label"], p["probability"]) for p in one["predictions"]] == [
            (p["label"], pytest.approx(p["probability"], rel=1e-4)) for p in alone
        ]
    for number, one in enumerate(refused):
        assert one["image"] == f"bad {number}"
        assert one["error"].startswith("image")
        assert "predictions" not in one


def test_39b_a_bad_request_in_a_crowd_fails_alone(server: Any, tools: Any):
    def one(number: int) -> int:
        if number % 3:
            return int(server.infer().status)
        return int(server.post("/classify", b"no image").status)

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(one, range(60))) == [200 if number % 3 else 400 for number in range(60)]
