"""A setting measured: what a load on a server says of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest

from regnet_deploy.bundle import open_bundle
from regnet_deploy.bundle.measurements import ServerSetting, TuningRow
from regnet_deploy.load_testing import bundle_tuning as module
from regnet_deploy.load_testing.bundle_tuning import ServerStarter, TuningOptions
from regnet_deploy.load_testing.generator import Load
from regnet_deploy.load_testing.served_model import ServedModel
from regnet_deploy.load_testing.settings import serve_options
from regnet_deploy.load_testing.target import parse_target, post

SETTING = ServerSetting("onnxruntime", "onnx-fp32", 1, 1)


@pytest.fixture
def start(exported_bundle: Any, fake: Any, answer: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that starts a setting on a server without a network, which refuses every so many requests."""

    def make(refuse_each: int) -> Any:
        seen: list[bytes] = []

        def respond(head: bytes, body: bytes) -> bytes:
            seen.append(body)
            return bytes(answer(503 if refuse_each and len(seen) % refuse_each == 0 else 200))

        @contextlib.contextmanager
        def server(bundle: Any, options: list[str]) -> Iterator[str]:
            assert options == [*serve_options(SETTING), "--device", "auto"]
            with fake(respond) as (target, _):
                yield target.url

        def open_served_model(target: Any, bundle: Any, **options: Any) -> ServedModel:
            load = Load(target, [post(parse_target(target.url), "/", b"x", {})], lambda number, reply: True)
            return ServedModel(load, "tensor", "regnet", "nothing")

        monkeypatch.setattr(module, "running_server", server)
        monkeypatch.setattr(module, "open_served_model", open_served_model)
        options = TuningOptions(limit_ms=1.0, duration=0.2)
        return ServerStarter(open_bundle(exported_bundle), options).start(SETTING)

    return make


def test_a_server_that_answers_has_a_rate_and_a_p99(start):
    with start(0) as running:
        trial = running.measure(50.0)
        assert running.capacity() > 0
    assert trial.bad <= 1  # where this machine was busy, it may have fallen behind
    assert 0 < trial.p99_ms < 60_000
    assert 0 < trial.achieved <= 50


def test_one_refusal_is_a_failure(start):
    with start(7) as running:
        trial = running.measure(50.0)
    assert trial.bad == 4  # of 30 requests: three times the 10 of the plan
    assert not trial.passes(5000.0)


@pytest.mark.skipif(find_spec("openvino") is None, reason="needs OpenVINO (extra [openvino])")
@pytest.mark.parametrize("reason", [None, "no BF16"])
def test_bf16_that_is_not_proved_yet_is_said_not_to_be_tried(exported_bundle, recorded_progress, monkeypatch, reason):
    row = TuningRow(SETTING, 10.0, 5.0, 3, "selected")
    monkeypatch.setattr(module, "tune", lambda *given: (row, [row]))
    monkeypatch.setattr(module, "bf16_unsupported_reason", lambda: reason)
    module.tune_bundle(open_bundle(exported_bundle), TuningOptions(), recorded_progress)
    told = [line for line in recorded_progress.messages if line.startswith("not tried: BF16 in OpenVINO")]
    assert len(told) == (reason is None)
    assert all("`regnet-deploy export --openvino " in line for line in told)
