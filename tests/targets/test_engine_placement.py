"""Which engine goes to which GPU."""

from __future__ import annotations

import bundle_parts as parts
import pytest

from regnet_deploy.bundle.engine_options import EngineOptions
from regnet_deploy.bundle.variants import EngineIdentity
from regnet_deploy.engines.bundle_engines import StoredEngine
from regnet_deploy.errors import UsageError
from regnet_deploy.targets.triton import place_engines

IDENTITY = EngineIdentity(
    onnx_sha256="0" * 64,
    precision="fp16",
    calibration=None,
    runtime="tensorrt",
    version="11.4.0.106",
    toolkit="cu13",
    gpu="NVIDIA H100",
    compute_capability="9.0",
    multiprocessors=132,
    driver="580",
    cuda="13.0",
    system="linux-x86_64",
    options=EngineOptions(),
)


def engine(file: str, **changes: object) -> StoredEngine:
    options = {name: changes.pop(name) for name in list(changes) if hasattr(IDENTITY.options, name)}
    identity = IDENTITY.replace(options=IDENTITY.options.replace(**options), **changes)
    return StoredEngine(parts.engine(file=file, identity=identity), None)


def test_one_engine_is_the_default():
    plans = place_engines("trt-fp16", [engine("a")])
    assert {name: one.file for name, one in plans.files.items()} == {"model.plan": "a"}
    assert not plans.by_capability


def test_each_compute_capability_gets_its_latest_engine():
    plans = place_engines(
        "trt-fp16",
        [engine("old"), engine("a100", compute_capability="8.0", max_batch=16), engine("new", multiprocessors=114)],
    )
    assert {name: one.file for name, one in plans.files.items()} == {"model-9.0.plan": "new", "model-8.0.plan": "a100"}
    assert plans.by_capability == {"8.0": "model-8.0.plan", "9.0": "model-9.0.plan"}
    assert plans.max_batch == 16


def test_an_engine_for_several_kinds_serves_the_rest():
    any_gpu = engine("any", hardware_compatible="ampere+")
    plans = place_engines("trt-fp16", [engine("h100"), any_gpu])
    assert {name: one.file for name, one in plans.files.items()} == {"model-9.0.plan": "h100", "model.plan": "any"}


def test_engines_that_triton_does_not_run_are_refused():
    with pytest.raises(UsageError, match="tensorrt-rtx, which Triton does not run"):
        place_engines("rtx-fp16", [engine("a", runtime="tensorrt-rtx")])
    with pytest.raises(UsageError, match="batches of 4 images or more"):
        place_engines("trt-fp16", [engine("a", min_batch=4)])


def test_engines_of_two_versions_do_not_share_a_server():
    two = [engine("a"), engine("b", compute_capability="8.0", version="10.9.0.34")]
    with pytest.raises(UsageError, match=r"TensorRT 10.9.0.34, 11.4.0.106"):
        place_engines("trt-fp16", two)
    compatible = [engine("a", version_compatible=True)]
    compatible.append(engine("b", compute_capability="8.0", version="10.9.0.34", version_compatible=True))
    # Triton loads no lean runtime, which a later TensorRT needs for the engine of an earlier one.
    with pytest.raises(UsageError, match=r"TensorRT 10.9.0.34, 11.4.0.106"):
        place_engines("trt-fp16", compatible)
    assert place_engines("trt-fp16", compatible[:1]).version_compatible
