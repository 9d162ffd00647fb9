"""What HTTP and gRPC share: deadlines, statistics, errors."""

import asyncio
import io
import logging
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from regnet_deploy.errors import BundleError, DataError, ProofError
from regnet_deploy.serving.errors import RequestError
from regnet_deploy.serving.model_version import ModelVersion
from regnet_deploy.serving.protocol import InferRequest
from regnet_deploy.serving.service import Call, request_error_of
from tests.serving.conftest import Inside, Open


@pytest.fixture
def served(client: Inside) -> ModelVersion:
    return client.core.opened[0]


def request(count: int = 1, **fields: Any) -> InferRequest:
    return InferRequest(**{"images": images(count), "id": None, "binary": True, "top": 0, **fields})


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, 3, 24, 24)).astype(np.float32)


def call_made(seconds_ago: float = 0.0) -> Call:
    call = Call("grpc", "infer", "id")
    call.clock -= seconds_ago
    return call


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (30, 30)).save(stream, "PNG")
    return stream.getvalue()


def test_an_inference_is_the_sessions_and_is_noted(client: Inside, served: ModelVersion):
    call = call_made()
    logits = client.run(client.core.service.infer(call, served, request(3)))
    np.testing.assert_allclose(logits, served.session.run(images(3)), rtol=1e-5)
    assert (call.images, call.batch) == (3, 3)
    assert call.inference_s > 0


@pytest.mark.parametrize("ago", [31, 1e6])
def test_the_servers_deadline_counts_from_the_arrival(client: Inside, served: ModelVersion, ago: float):
    for timeout_s in (None, 3600.0):  # a client can ask for less, not for more
        with pytest.raises(RequestError) as error:
            client.run(client.core.service.infer(call_made(ago), served, request(timeout_s=timeout_s)))
        assert error.value.status == 504
    with pytest.raises(RequestError) as error:
        client.run(client.core.service.classify(call_made(ago), served, png(), 1))
    assert error.value.status == 504


def test_a_client_that_asks_for_less_gets_less(client: Inside, served: ModelVersion):
    service = client.core.service
    with pytest.raises(RequestError):
        client.run(service.infer(call_made(5), served, request(timeout_s=1.0)))
    assert client.run(service.infer(call_made(5), served, request(timeout_s=20.0))).shape == (1, 6)


def test_a_deadline_that_passes_while_an_image_waits_for_its_decoder_is_told(inside: Open):
    from tests.serving.conftest import LIMITS

    client = inside(limits=replace(LIMITS, deadline_s=0.05))
    pool, served = client.core.service.decoders, client.core.opened[0]

    async def ask() -> None:
        taken = await pool._take(ahead=False)  # somebody else's image
        try:
            await client.core.service.classify(call_made(), served, png(), 1)
        finally:
            pool._give(taken)

    with pytest.raises(RequestError, match="waiting to be decoded") as error:
        client.run(ask())
    assert error.value.status == 504
    assert pool.waiting == 0


def test_of_several_images_the_longest_stages_count(client: Inside, served: ModelVersion):
    call = call_made()

    async def several() -> None:
        service = client.core.service
        await asyncio.gather(*(service.classify(call, served, png(), 2) for _ in range(3)))

    client.run(several())
    assert call.images == 3
    assert 1 <= call.batch <= 3
    assert set(call.timing_ms()) == {"read", "decode", "queue", "inference", "total"}
    assert call.timing_ms()["total"] >= call.timing_ms()["decode"] > 0


def test_an_answer_that_is_not_finite_is_the_servers_error(
    client: Inside, served: ModelVersion, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(served.session, "run", lambda images: np.full((len(images), 6), np.nan, np.float32))
    with pytest.raises(RuntimeError, match="not finite"):
        client.run(client.core.service.classify(call_made(), served, png(), 1))


def test_statistics_count_successes_and_failures(inside: Open):
    client = inside()
    service, served = client.core.service, client.core.opened[0]
    for status in (200, 400, 499, 504):
        call = call_made()
        call.model = served
        if status == 200:
            client.run(service.infer(call, served, request(2)))
        client.call(service.finish, call, status, None)
    stats = served.stats()
    assert stats["inference_stats"]["success"]["count"] == 1
    assert stats["inference_stats"]["fail"]["count"] == 3
    assert (stats["inference_count"], stats["execution_count"]) == (2, 1)


def test_what_takes_time_runs_apart_one_at_a_time_and_its_error_comes_back(client: Inside):
    service = client.core.service
    inside: list[int] = []

    def work(value: int) -> int:
        inside.append(1)
        time.sleep(0.002)
        assert len(inside) == 1
        inside.pop()
        return value * 2

    async def several() -> list[int]:
        return list(await asyncio.gather(*(service.run_in_executor(work, i) for i in range(5))))

    assert client.run(several()) == [0, 2, 4, 6, 8]

    def fails() -> None:
        raise RequestError("no", 413)

    with pytest.raises(RequestError, match="no"):
        client.run(service.run_in_executor(fails))


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (RequestError("full", 503), 503, "full"),
        (DataError("not an image"), 400, "not an image"),
        (ProofError("/secret"), 500, "internal error"),
        (BundleError("/secret"), 500, "internal error"),
        (MemoryError("8 GB"), 500, "internal error"),
        (KeyError("secret"), 500, "internal error"),
    ],
)
def test_clients_are_told_of_their_own_mistakes_and_the_log_of_the_servers(
    caplog: pytest.LogCaptureFixture, error: Exception, status: int, says: str
):
    with caplog.at_level(logging.ERROR, "regnet_deploy.serving"):
        refusal = request_error_of(error)
    assert refusal.status == status
    assert says in str(refusal)
    assert "secret" not in str(refusal)
    assert len(caplog.records) == (status == 500)
