import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from regnet_deploy.bundle.engine_options import EngineOptions
from regnet_deploy.bundle.variants import EngineIdentity
from regnet_deploy.engines import identity as module
from regnet_deploy.engines.identity import engine_unsupported_reason, identify, this_system
from regnet_deploy.engines.library import Library
from regnet_deploy.errors import BundleError, UsageError

TRT = Library(SimpleNamespace(__version__="11.4.0.106"), "tensorrt")
RTX = Library(SimpleNamespace(__version__="1.7.1.116"), "tensorrt-rtx")


def made(gpu, library=TRT, **options):
    return identify("ab" * 32, "fp16", None, library, gpu, EngineOptions(**options))


#: Another value of every ingredient.
OTHER = {
    "onnx_sha256": "cd" * 32,
    "precision": "int8",
    "calibration": "ef" * 32,
    "runtime": "tensorrt-rtx",
    "version": "11.4.0.107",
    "toolkit": "cu12",
    "gpu": "NVIDIA H200",
    "compute_capability": "9.1",
    "multiprocessors": 114,
    "driver": "580.95.06",
    "cuda": "13.1",
    "system": "linux-aarch64",
}
OTHER_OPTIONS = {
    "tuned_batch": 4,
    "max_batch": 33,
    "min_batch": 2,
    "workspace_bytes": 2**30,
    "optimization_level": 4,
    "tf32": True,
    "version_compatible": True,
    "hardware_compatible": "ampere+",
    "compute_capabilities": ("8.9",),
}


def test_the_other_values_are_of_every_ingredient():
    assert set(OTHER) == set(EngineIdentity.__struct_fields__) - {"options"}
    assert set(OTHER_OPTIONS) == set(EngineOptions.__struct_fields__)


@pytest.mark.parametrize("name", OTHER)
def test_each_ingredient_changes_the_key(h100, name):
    one = made(h100)
    other = one.replace(**{name: OTHER[name]})
    assert other.key != one.key


@pytest.mark.parametrize("name", OTHER_OPTIONS)
def test_each_option_changes_the_key(h100, name):
    one = made(h100)
    other = one.replace(options=one.options.replace(**{name: OTHER_OPTIONS[name]}))
    assert other.key != one.key


def test_the_same_ingredients_have_the_same_key_and_come_back_from_json(h100):
    one = made(h100)
    again = EngineIdentity.from_json(json.loads(json.dumps(one.to_json())))
    assert again == one
    assert again.key == one.key
    assert len(one.key) == 64


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"extra": 1}, "unknown field extra"),
        ({"runtime": "openvino"}, "runtime: invalid enum value 'openvino'"),
        ({"options": {"max_bach": 1}}, "options: object contains unknown field max_bach"),
        ({"options": 3}, "options: expected object, got int"),
    ],
)
def test_what_another_version_wrote_is_refused(h100, change, says):
    with pytest.raises(BundleError, match=says):
        EngineIdentity.from_json(made(h100).to_json() | change)


def test_an_engine_of_tensorrt_has_the_gpu_and_one_of_tensorrt_rtx_has_none(h100):
    assert made(h100).gpu == h100.name
    portable = made(h100, RTX)
    assert (portable.gpu, portable.compute_capability, portable.multiprocessors) == (None, None, None)
    assert (portable.driver, portable.cuda) == (None, None)
    assert portable == made(None, RTX)
    assert "12.0" in portable.built_for


def test_tensorrt_without_a_gpu_is_one_line():
    with pytest.raises(
        UsageError, match="builds on the GPU that will run the engine, and the NVIDIA driver shows none"
    ):
        made(None)


def test_an_engine_fits_where_it_was_built(h100):
    assert engine_unsupported_reason(made(h100), TRT, h100) is None


def test_an_update_of_the_driver_changes_the_key_and_not_the_fit(h100):
    later = replace(h100, driver="590.11", cuda="13.2")
    assert made(later).key != made(h100).key
    assert engine_unsupported_reason(made(h100), TRT, later) is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "NVIDIA H200"}, r"built for NVIDIA H100.*this machine has NVIDIA H200"),
        ({"compute_capability": "8.0"}, r"compute capability 9\.0, 132.*compute capability 8\.0, 132"),
        ({"multiprocessors": 114}, r"132 multiprocessors\) and this machine has NVIDIA H100 .*114 multiprocessors"),
    ],
)
def test_another_gpu_is_named_with_both_values(h100, change, says):
    assert_one_line(engine_unsupported_reason(made(h100), TRT, replace(h100, **change)), says)


def assert_one_line(reason, says):
    import re

    assert reason is not None
    assert "\n" not in reason
    assert re.search(says, reason), reason


def test_another_version_no_gpu_another_system_and_another_runtime_are_named(h100, monkeypatch):
    other = Library(SimpleNamespace(__version__="11.3.0.99"), "tensorrt")
    assert_one_line(
        engine_unsupported_reason(made(h100), other, h100),
        r"built by tensorrt 11\.4\.0\.106 .* has tensorrt 11\.3\.0\.99",
    )
    assert_one_line(
        engine_unsupported_reason(made(h100), TRT, None), "tensorrt engine and the NVIDIA driver shows no GPU"
    )
    assert_one_line(engine_unsupported_reason(made(h100), RTX, h100), "engine of tensorrt and not of tensorrt-rtx")
    elsewhere = made(h100).replace(system="linux-aarch64")
    assert_one_line(
        engine_unsupported_reason(elsewhere, TRT, h100), f"built on linux-aarch64 and this is {this_system()}"
    )


@pytest.mark.parametrize(
    ("level", "capability", "fits"),
    [
        ("ampere+", "8.0", True),
        ("ampere+", "12.0", True),
        ("ampere+", "7.5", False),
        ("same-compute-capability", "9.0", True),
        ("same-compute-capability", "8.9", False),
    ],
)
def test_hardware_compatible_engines_run_on_what_they_allow(h100, level, capability, fits):
    other = replace(h100, name="another", compute_capability=capability, multiprocessors=10)
    assert (engine_unsupported_reason(made(h100, hardware_compatible=level), TRT, other) is None) is fits


@pytest.mark.parametrize(("capability", "fits"), [("8.9", True), ("12.1", True), ("9.0", False), ("7.5", False)])
def test_engines_of_tensorrt_rtx_run_on_their_compute_capabilities(h100, capability, fits):
    here = replace(h100, compute_capability=capability)
    assert (engine_unsupported_reason(made(None, RTX), RTX, here) is None) is fits
    assert (
        engine_unsupported_reason(
            made(None, RTX, compute_capabilities=("7.5",)), RTX, replace(h100, compute_capability="7.5")
        )
        is None
    )


def test_a_version_compatible_engine_needs_a_later_version_and_its_own_lean_runtime(h100, monkeypatch, tmp_path):
    old = made(h100, version_compatible=True).replace(version="10.16.1.11", toolkit="cu13")
    assert_one_line(
        engine_unsupported_reason(old, TRT, h100), r"lean runtime.*pip install tensorrt-lean-cu13-libs==10\.16\.1\.11"
    )
    monkeypatch.setattr(module, "lean_runtime", lambda version: tmp_path if version == "10.16.1.11" else None)
    assert engine_unsupported_reason(old, TRT, h100) is None
    new = old.replace(version="11.5.0.1")
    assert_one_line(engine_unsupported_reason(new, TRT, h100), "runs on later versions, not on earlier ones")
