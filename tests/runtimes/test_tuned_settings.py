import json
import re
from pathlib import Path
from typing import Any

import pytest

from regnet_deploy.bundle import Bundle, open_bundle, update_bundle
from regnet_deploy.bundle.measurements import MachineSummary, ServerSetting, Serving
from regnet_deploy.cpu import available_cores
from regnet_deploy.engines.gpu import Gpu
from regnet_deploy.errors import BundleError, UsageError
from regnet_deploy.runtimes import tuned_settings as module
from regnet_deploy.runtimes.tuned_settings import machine_summary, tuned_settings

SETTINGS = {
    "runtime": "onnxruntime",
    "variant": "onnx-fp32",
    "executors": 2,
    "threads": 1,
    "batch": 8,
    "max_delay_ms": 0.5,
}


def tuned_bundle(path: Path, settings: dict[str, Any] | None = None, **part: Any) -> Bundle:
    whole = {"machine": machine_summary(), "p99_ms": 20.0, "rate": 250, "settings": settings or SETTINGS, "rows": []}
    return update_bundle(path, {"serving": {**whole, **part}})


def test_what_was_tuned_here_is_returned(exported_bundle: Path):
    bundle = tuned_bundle(exported_bundle)
    found = tuned_settings(bundle)
    assert isinstance(found, Serving)
    assert found.settings == ServerSetting("onnxruntime", "onnx-fp32", 2, 1, 8, 0.5)
    assert (found.p99_ms, found.rate) == (20.0, 250.0)
    assert tuned_settings(bundle, variant="onnx-fp32", runtime="onnxruntime", device="cpu") == found


def test_a_bundle_that_was_never_tuned_has_none(exported_bundle: Path):
    assert tuned_settings(open_bundle(exported_bundle)) is None


@pytest.mark.parametrize(
    ("fact", "there", "says"),
    [
        ("cores", 64, r"were tuned on another machine \(cores 64, here \d+\)$"),
        ("cpu", "Z80", r"\(cpu Z80, here "),
        ("gpu", "NVIDIA H100", r"\(gpu NVIDIA H100, here None\)$"),
        ("instructions", ("avx2", "sme"), r"\(instructions avx2 sme, here "),
    ],
)
def test_what_was_tuned_elsewhere_is_a_reason_with_what_differs(
    exported_bundle: Path, monkeypatch: pytest.MonkeyPatch, fact: str, there: Any, says: str
):
    here = machine_summary().replace(gpu=None)
    monkeypatch.setattr(module, "machine_summary", lambda: here)
    found = tuned_settings(tuned_bundle(exported_bundle, machine=here.replace(**{fact: there})))
    assert re.search(says, str(found)), found


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (
            {"variant": "onnx-fp32-uint8"},
            "tuned for onnx-fp32 by onnxruntime, and --variant onnx-fp32-uint8 was requested",
        ),
        ({"runtime": "openvino"}, "tuned for onnx-fp32 by onnxruntime, and --runtime openvino was requested"),
    ],
)
def test_what_was_tuned_for_something_else_is_a_reason(exported_bundle: Path, asked: dict[str, Any], says: str):
    assert says in str(tuned_settings(tuned_bundle(exported_bundle), **asked))


def test_settings_of_openvino_do_not_go_with_a_gpu(exported_bundle: Path):
    bundle = tuned_bundle(exported_bundle, {**SETTINGS, "runtime": "openvino"})
    assert "which cannot be served: --runtime openvino runs on the CPU" in str(tuned_settings(bundle, device="cuda"))


def test_a_variant_that_is_gone_or_unproved_is_a_reason(exported_bundle: Path):
    found = tuned_settings(tuned_bundle(exported_bundle, {**SETTINGS, "variant": "onnx-fp16"}))
    assert "which cannot be served: " in str(found)
    assert "has no variant 'onnx-fp16'" in str(found)
    bundle = tuned_bundle(exported_bundle)
    variants = bundle.parts["variants"]
    variants["onnx-fp32"]["proof"] = None
    assert "not proved" in str(tuned_settings(update_bundle(exported_bundle, {"variants": variants})))
    assert "export" in str(tuned_settings(update_bundle(exported_bundle, {}, drop=("variants",))))


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in SETTINGS.items() if key != name}


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ({"settings": ["threads", 1]}, "serving.settings: expected object, got array"),
        ({"machine": None}, "serving.machine: expected object, got null"),
        ({"rate": "fast"}, "serving.rate: expected float, got str"),
        ({"p99_ms": -1}, "serving.p99_ms: expected float >= 0.0"),
        ({"settings": {**SETTINGS, "threads": 0}}, "serving.settings.threads: expected int >= 1"),
        ({"settings": {**SETTINGS, "batch": 1.5}}, "serving.settings.batch: expected int, got float"),
        ({"settings": {**SETTINGS, "executors": True}}, "serving.settings.executors: expected int, got bool"),
        ({"settings": {**SETTINGS, "runtime": "auto"}}, "serving.settings.runtime: invalid enum value 'auto'"),
        ({"settings": without("variant")}, "serving.settings: object missing required field variant"),
    ],
)
def test_what_tune_does_not_write_is_one_line_that_names_it(exported_bundle: Path, part: dict[str, Any], says: str):
    with pytest.raises(BundleError, match=re.escape(says)):
        tuned_bundle(exported_bundle, **part)


def test_an_unknown_runtime_is_refused_whatever_was_tuned(exported_bundle: Path):
    with pytest.raises(UsageError, match=r"no runtime 'openvin' \(did you mean openvino\?\)"):
        tuned_settings(tuned_bundle(exported_bundle), runtime="openvin")


def test_it_is_json_that_stays_the_same():
    first = machine_summary()
    assert MachineSummary.from_json(json.loads(json.dumps(first.to_json()))) == first == machine_summary()
    assert first.cpu
    assert first.cores == available_cores()


def test_it_knows_the_instructions_that_matter(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "cpu_flags", lambda: frozenset({"fpu", "avx512_vnni", "avx2", "sse4_2"}))
    assert machine_summary().instructions == ("avx2", "avx512_vnni")


def test_it_names_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "find_gpu", lambda: None)
    assert machine_summary().gpu is None
    gpu = Gpu("NVIDIA H100 80GB HBM3", "9.0", 132, 80 * 2**30, "580.95.05", "13.0")
    monkeypatch.setattr(module, "find_gpu", lambda: gpu)
    assert machine_summary().gpu == "NVIDIA H100 80GB HBM3"
