"""A server without doors: started, stopped, and what is left of it."""

import asyncio
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regnet_deploy.bundle import MANIFEST, open_bundle, update_bundle
from regnet_deploy.bundle.reading import serialize
from regnet_deploy.errors import BundleError, MissingPart, UsageError
from regnet_deploy.runtimes.tuned_settings import machine_summary
from regnet_deploy.serving.admission import ServerState
from regnet_deploy.serving.core_settings import CoreSettings
from regnet_deploy.serving.model_version import ServeOptions
from regnet_deploy.serving.server_core import ServerCore
from tests.serving.conftest import LIMITS, Open

FP32 = ServeOptions(variant="onnx-fp32")


def tuned(bundle: Path, **changes: Any) -> None:
    """Have a bundle say what ``tune`` found on this machine."""
    settings = {
        "runtime": "onnxruntime",
        "variant": "onnx-fp32-uint8",
        "executors": 2,
        "threads": 1,
        "batch": 3,
        "max_delay_ms": 1.5,
    }
    part = {"machine": machine_summary(), "p99_ms": 20, "rate": 123.4, "settings": settings, "rows": [], **changes}
    update_bundle(bundle, {"serving": part})


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_it_starts_proves_answers_and_leaves_no_thread_and_no_process_behind(exported_bundle: Path):
    before = threading.active_count()
    pids: tuple[int, ...] = ()

    async def life() -> None:
        nonlocal pids
        core = ServerCore(exported_bundle, CoreSettings(options=FP32, limits=LIMITS, decoders=2))
        assert core.service.admission.state is ServerState.STARTING
        assert core.service.models.index()[0]["state"] == "LOADING"
        assert not core.service.models.ready()
        await core.start()
        ((model, agreement),) = core.service.models.served()
        assert (model.name, agreement.passed) == ("regnet", True)
        assert core.service.models.ready()
        pids = core.service.decoders.pids
        assert len(pids) == 2
        ran = await core.opened[0].batcher.run(np.zeros((1, 3, 24, 24), np.float32))
        assert ran.logits.shape == (1, 6)
        await core.stop()

    asyncio.run(life())
    until(lambda: threading.active_count() <= before)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)
    assert multiprocessing.active_children() == []


def test_whatever_the_following_ended_in_stopping_ends_the_rest(exported_bundle: Path):
    before = threading.active_count()

    async def life() -> None:
        core = ServerCore(exported_bundle, CoreSettings(options=FP32, limits=LIMITS, decoders=1, poll_s=0.001))
        await core.start()

        async def fails(every_s: float) -> None:
            raise SystemError("never")

        assert core._watching is not None
        core._watching.cancel()
        core._watching = asyncio.ensure_future(fails(0))
        await asyncio.wait([core._watching])
        await core.stop()
        assert core.service.decoders.pids == ()

    asyncio.run(life())
    until(lambda: threading.active_count() <= before)


def test_it_can_be_stopped_before_it_was_started(exported_bundle: Path):
    asyncio.run(ServerCore(exported_bundle, CoreSettings(options=FP32, limits=LIMITS, decoders=1)).stop())


def test_a_model_is_called_as_is_asked(inside: Open):
    client = inside(name="cats")
    assert client.get("/v2/models/cats").json()["name"] == "cats"
    assert client.get("/v2/models/regnet").status_code == 404


def test_what_was_tuned_here_is_taken_and_said(inside: Open, exported_bundle: Path):
    tuned(exported_bundle)
    served = inside(options=ServeOptions()).core.opened[0]
    assert (served.variant, served.threads) == ("onnx-fp32-uint8", 1)
    batching = served.batching
    assert (batching.executors, batching.batch, batching.max_delay_s) == (2, 3, 0.0015)
    assert served.note == "as tuned here for p99 20 ms: 123.4 images/s"
    assert len(served.sessions) == 1  # of one thread: it is called by both executors
    assert len(served.batcher._threads) == 2


@pytest.mark.parametrize(
    "options", [{"threads": 1}, {"executors": 1}, {"batch": 5}, {"max_delay_s": 0.0}, {"threads": 2, "executors": 2}]
)
def test_settings_that_are_asked_for_are_not_mixed_with_those_that_were_found_together(
    exported_bundle: Path, options: dict[str, Any]
):
    tuned(exported_bundle)
    (served,) = ServerCore(exported_bundle, CoreSettings(options=ServeOptions(**options), decoders=1)).opened
    assert served.variant == "onnx-fp32-uint8"  # which was found fastest all the same
    assert served.batching.max_delay_s == 0
    assert served.batching.batch == options.get("batch", 8)
    assert served.batching.executors == options.get("executors", 1)
    assert served.note is None


def test_what_was_tuned_elsewhere_or_for_another_variant_is_left_alone_and_that_is_said(exported_bundle: Path):
    tuned(exported_bundle)
    (served,) = ServerCore(exported_bundle, CoreSettings(options=FP32, decoders=1)).opened
    assert served.batching.batch == 8
    assert served.note is not None
    assert "were tuned for onnx-fp32-uint8" in served.note
    tuned(exported_bundle, machine=machine_summary().replace(cpu="another"))
    (served,) = ServerCore(exported_bundle, CoreSettings(decoders=1)).opened
    assert served.batching.executors == 1
    assert served.note is not None
    assert "tuned on another machine" in served.note


def test_a_part_of_tune_that_is_none_is_one_line(exported_bundle: Path):
    tuned(exported_bundle)
    bundle = open_bundle(exported_bundle)
    serving = {**bundle.parts["serving"], "settings": {"runtime": "onnxruntime"}}
    (exported_bundle / MANIFEST).write_bytes(serialize({**bundle.parts, "serving": serving}, bundle.files))
    with pytest.raises(BundleError, match=r"serving\.settings: object missing required field variant") as error:
        ServerCore(exported_bundle)
    assert "\n" not in str(error.value)


def test_several_executors_have_sessions_of_their_own_where_each_has_several_threads(inside: Open):
    served = inside(options=ServeOptions(variant="onnx-fp32", executors=2, threads=2)).core.opened[0]
    assert len(set(map(id, served.sessions))) == 2
    assert served.prove().passed


def test_a_largest_batch_beyond_the_largest_request_is_run_before_there_are_clients(inside: Open):
    from dataclasses import replace

    client = inside(options=ServeOptions(variant="onnx-fp32", batch=9), limits=replace(LIMITS, max_batch=2))
    assert client.core.opened[0].batching.batch == 9


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        (ServeOptions(variant="onnx-fp16"), UsageError, "did you mean onnx-fp32"),
        (ServeOptions(runtime="tensorrt"), UsageError, "tensorrt"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    exported_bundle: Path, options: ServeOptions, error: type[Exception], says: str
):
    with pytest.raises(error, match=says) as caught:
        ServerCore(exported_bundle, CoreSettings(options=options))
    assert "\n" not in str(caught.value)


def test_a_bundle_without_an_export_names_the_command(exported_bundle: Path, tmp_path: Path):
    update_bundle(exported_bundle, {}, drop=("variants", "onnx-fp32.onnx", "onnx-fp32-uint8.onnx"))
    with pytest.raises(MissingPart, match="export --onnx"):
        ServerCore(exported_bundle)
    shutil.copytree(exported_bundle, tmp_path / "models" / "cats" / "1")
    with pytest.raises(MissingPart, match="export --onnx"):
        ServerCore(tmp_path / "models")


def test_metrics_of_a_version_go_with_it(inside: Open, exported_bundle: Path):
    client = inside()
    assert b'model="regnet",version="1"' in client.run(client.core.metrics.scrape())[0]
    update_bundle(exported_bundle, {"labels": open_bundle(exported_bundle).parts["labels"][::-1]})
    for _ in range(2):
        client.run(client.core._watcher.look())
    text = client.run(client.core.metrics.scrape())[0]
    assert b'version="1"' not in text
    assert b'version="2"' in text
