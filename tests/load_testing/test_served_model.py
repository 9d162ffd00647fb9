"""A server is made sure of before the load: ready, the right model, the right network."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from regnet_deploy.bundle import open_bundle
from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.errors import ServerError, UsageError
from regnet_deploy.images.preprocessing import load_pixels
from regnet_deploy.load_testing.answer_check import log_softmax
from regnet_deploy.load_testing.load_runs import LoadPlan, choose_rates, run_closed_loop, run_open_loop
from regnet_deploy.load_testing.served_model import open_served_model
from regnet_deploy.progress import NoProgress
from regnet_deploy.runtimes.golden_set import load_golden

PLAN = LoadPlan(duration=0.3, warmup=0.1)


@pytest.fixture
def network(exported_bundle: Path, answer: Any) -> Callable[..., Any]:
    """A function that returns a server's answers: those of the bundle's network, changed by ``change``."""
    golden = load_golden(open_bundle(exported_bundle))
    preprocessing = Preprocessing.from_json(open_bundle(exported_bundle).parts["preprocessing"])
    logits = {image.tobytes(): row for image, row in zip(golden.images, golden.logits, strict=True)}
    metadata = {
        "inputs": [{"name": "images", "datatype": "UINT8", "shape": [-1, 24, 24, 3]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 6]}],
    }

    def make(change: Callable[[np.ndarray, int], np.ndarray] = lambda row, count: row, ready: int = 200) -> Any:
        count = 0

        def respond(head: bytes, body: bytes) -> bytes:
            nonlocal count
            path = head.split(b" ")[1].decode()
            if path == "/v2/health/ready":
                return bytes(answer(ready, b'{"error": "starting"}'))
            if path == "/v2/models/regnet":
                return bytes(answer(200, json.dumps(metadata).encode()))
            count += 1
            if path.startswith("/classify"):
                row = change(logits[load_pixels(body, preprocessing).tobytes()], count)
                probabilities = np.exp(log_softmax(row[None])[0])
                named = [{"index": int(i), "probability": float(probabilities[i])} for i in np.argsort(-row)[:5]]
                return bytes(answer(200, json.dumps({"predictions": named}).encode()))
            if path == "/v2/models/regnet/infer":
                raw = change(logits[body[-24 * 24 * 3 :]], count).astype("<f4").tobytes()
                return bytes(answer(200, b"{}" + raw, "inference-header-content-length: 2\r\n"))
            return bytes(answer(404, b'{"error": "unknown model"}'))

        return respond

    return make


@pytest.mark.parametrize("kind", ["tensor", "image"])
def test_a_server_of_the_bundles_network_answers_rightly_under_load(exported_bundle, fake, network, kind):
    with fake(network()) as (target, _):
        served = open_served_model(target, open_bundle(exported_bundle), kind=kind)
        report = run_open_loop(served, 100, PLAN)
        closed = run_closed_loop(served, 2, PLAN)
    assert (served.source, len(served.load.requests)) == ("16 golden images", 16)
    assert report.requests == report.ok > 0
    assert closed.requests == closed.ok > 0
    assert closed.concurrency == 2


@pytest.mark.parametrize("kind", ["tensor", "image"])
def test_answers_that_were_mixed_up_under_load_are_counted(exported_bundle, fake, network, kind):
    golden = load_golden(open_bundle(exported_bundle))

    def mixed(row: np.ndarray, count: int) -> np.ndarray:
        return row if count <= 20 else np.roll(golden.logits, 1, axis=0)[(golden.logits == row).all(axis=1)][0]

    with fake(network(mixed)) as (target, _):
        report = run_open_loop(
            open_served_model(target, open_bundle(exported_bundle), kind=kind), 100, replace(PLAN, warmup=0.0)
        )
    assert report.wrong >= report.requests - 4 > 0
    assert report.ok == report.requests - report.wrong


def test_a_quantised_network_is_known_and_another_is_one_line(exported_bundle, fake, network):
    golden = load_golden(open_bundle(exported_bundle)).logits
    noise = 0.01 * golden.std() * np.random.default_rng(0).normal(size=6).astype(np.float32)
    with fake(network(lambda row, count: row + noise)) as (target, _):
        open_served_model(target, open_bundle(exported_bundle))
    with fake(network(lambda row, count: row[::-1])) as (target, _), pytest.raises(UsageError, match="another network"):
        open_served_model(target, open_bundle(exported_bundle))


def test_ones_own_images_are_held_against_the_first_answer(exported_bundle, fake, network, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    golden = load_golden(open_bundle(exported_bundle))
    for i in range(3):
        Image.fromarray(golden.images[i]).save(folder / f"{i}.png")
    with fake(network()) as (target, _):
        for kind in ("image", "tensor"):
            served = open_served_model(target, open_bundle(exported_bundle), kind=kind, images=folder)
            assert (len(served.load.requests), served.source) == (3, f"3 images of {folder}")
            assert run_open_loop(served, 50, PLAN).bad == 0


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (503, r"is not ready \(status 503: starting\)"),
        (401, "requires a token"),
        (404, "does not speak the Open Inference Protocol"),
    ],
)
def test_a_server_that_is_not_ready_is_one_line(exported_bundle, fake, network, status, says):
    with fake(network(ready=status)) as (target, _), pytest.raises(ServerError, match=says):
        open_served_model(target, open_bundle(exported_bundle))


def test_a_model_that_is_not_there_is_one_line(exported_bundle, fake, network):
    with (
        fake(network()) as (target, _),
        pytest.raises(UsageError, match=r"no model 'other' at .*: unknown model"),
    ):
        open_served_model(target, open_bundle(exported_bundle), model="other")


def test_a_server_that_refuses_the_images_is_one_line(exported_bundle, fake, network, answer):
    good = network()

    def refuse(head: bytes, body: bytes) -> bytes:
        return bytes(answer(400, b'{"error": "no"}')) if b"/infer" in head else good(head, body)

    with fake(refuse) as (target, _), pytest.raises(ServerError, match="does not accept the images: status 400"):
        open_served_model(target, open_bundle(exported_bundle))


def test_an_interrupt_ends_a_load_and_is_told_with_what_was_measured(exported_bundle, fake, network):
    class Interrupt(NoProgress):
        def update(self, completed: float, total: float | None = None, note: str = "") -> None:
            if completed > 0.3:
                os.kill(os.getpid(), signal.SIGINT)

    with fake(network()) as (target, _):
        served = open_served_model(target, open_bundle(exported_bundle))
        report = run_open_loop(served, 50, LoadPlan(60.0, warmup=0.0), Interrupt())
    assert report.interrupted
    assert report.measured_s < 60
    assert 0 < report.requests == report.ok


def test_rates_go_from_a_tenth_of_the_capacity_to_half_as_much_again():
    rates = choose_rates(123.4)
    assert (len(rates), rates[0], rates[-1]) == (8, 12.3, 185)
    assert list(rates) == sorted(rates)
