"""Export on a machine with a GPU and TensorRT, neither of them real."""

import numpy as np
import pytest
from bundle_parts import latency
from PIL import Image

from regnet_deploy.bundle import find_damage, open_bundle
from regnet_deploy.bundle.variants import Gate
from regnet_deploy.errors import ProofError
from regnet_deploy.exporting import export as export_module
from regnet_deploy.exporting import variant_choice, variants
from regnet_deploy.exporting.export import export
from regnet_deploy.exporting.options import ExportOptions
from regnet_deploy.exporting.precision import PRECISIONS
from regnet_deploy.runtimes.default_variant import default_variant, proof_of
from regnet_deploy.runtimes.gates import GATES
from regnet_deploy.runtimes.runtime import open_variant

pytestmark = pytest.mark.usefixtures("computer")


@pytest.fixture(autouse=True)
def no_openvino(monkeypatch):
    """Leave the choice to the runtimes of the GPU and ONNX Runtime: OpenVINO has tests of its own."""
    monkeypatch.setattr(variants, "makes_openvino_variants", lambda context, state: False)


@pytest.fixture
def run(trained):
    def run(*names, **changes):
        return export(trained, ExportOptions(precisions=tuple(PRECISIONS[name] for name in names), **changes))

    return run


@pytest.fixture
def speeds(monkeypatch):
    """Have variants measured at these ms, or 10: what is fast on a machine that is not there."""
    given = {}

    def measure(runners, batches, seconds, progress):
        return [
            latency(
                one.variant,
                batch,
                batch * given.get(one.variant, 10.0),
                runtime=one.runtime,
                device=one.device,
                precision=one.precision,
            )
            for one in runners
            for batch in batches
        ]

    monkeypatch.setattr(variant_choice, "measure_latency", measure)
    return given


def plans(bundle):
    return sorted(name for name in bundle.files if name.endswith(".plan"))


def test_engines_are_proved_and_have_types_and_accuracy(trained, run, data):
    exported = run("fp16", engines=True, data=data, max_drop=100.0)
    assert exported.rejected == {}
    bundle = open_bundle(trained)
    assert set(bundle.parts["variants"]) == {"onnx-fp32", "onnx-fp16", "trt-fp32", "trt-fp16"}
    for name in ("trt-fp32", "trt-fp16"):
        (engine,) = bundle.parts["variants"][name]["engines"]
        assert engine["proof"]["passed"]
        assert engine["proof"]["runtime"] == "tensorrt 11.4.0.106"
        assert set(engine["types"]) == {name[4:]}
        assert not engine["unaccounted"]
        assert engine["accuracy"]["images"] == 40
        assert proof_of(bundle, name).to_json() == engine["proof"]
        assert open_variant(bundle, name).device.startswith("cuda:0")
    assert find_damage(bundle) == []


def test_auto_keeps_a_winner_of_each_runtime_and_the_file_of_a_winning_engine(trained, run, data, speeds):
    speeds.update({"onnx-int8-cpu": 5.0, "trt-int8": 1.0})
    exported = run(auto=True, data=data, max_drop=100.0)
    bundle = open_bundle(trained)
    assert set(bundle.parts["variants"]) == {"onnx-fp32", "onnx-int8-cpu", "onnx-int8", "trt-int8"}
    results = {one["variant"]: one["result"] for one in bundle.parts["choice"]["candidates"]}
    assert results == {
        "onnx-fp32": "slower",
        "onnx-fp16": "slower",
        "onnx-int8-cpu": "kept",
        "trt-fp32": "slower",
        "trt-fp16": "slower",
        "trt-int8": "kept",
        "trt-int8-1x1": "slower",
    }
    assert exported.rejected == {}
    assert plans(bundle) == [bundle.parts["variants"]["trt-int8"]["engines"][0]["file"]]
    onnx = {name for name in bundle.files if name.endswith(".onnx")}
    assert onnx == {"onnx-fp32.onnx", "onnx-int8-cpu.onnx", "onnx-int8.onnx"}
    assert find_damage(bundle) == []
    assert default_variant(bundle) == "trt-int8"
    assert default_variant(bundle, device="cpu") == "onnx-int8-cpu"


def test_auto_drops_what_an_earlier_export_left_and_lost_now(trained, run, data, speeds):
    run("fp16", engines=True, uint8=True)
    assert len(plans(open_bundle(trained))) == 2
    speeds.update({"trt-int8": 1.0})
    run(auto=True, data=data, max_drop=100.0)
    bundle = open_bundle(trained)
    assert set(bundle.parts["variants"]) == {"onnx-fp32", "onnx-fp32-uint8", "onnx-int8", "trt-int8"}
    assert len(plans(bundle)) == 1
    assert find_damage(bundle) == []


def test_auto_leaves_the_engines_of_another_machine(trained, run, data, speeds, computer, fake_machine):
    run("fp16", engines=True)
    computer.driver.gpu = fake_machine.A100
    speeds.update({"trt-int8": 1.0})
    run(auto=True, data=data, max_drop=100.0)
    variants = open_bundle(trained).parts["variants"]
    assert {one["identity"]["gpu"] for one in variants["trt-fp16"]["engines"]} == {fake_machine.H100.name}
    assert {one["identity"]["gpu"] for one in variants["trt-int8"]["engines"]} == {fake_machine.A100.name}
    assert "onnx-fp16" in variants  # which that machine's engine is of
    assert default_variant(open_bundle(trained)) == "trt-int8"
    computer.driver.gpu = fake_machine.H100
    assert default_variant(open_bundle(trained), "trt-fp16") == "trt-fp16"


def test_auto_says_of_engines_that_are_not_good_enough_why(trained, run, data, speeds, computer):
    computer.trt.convolutions = lambda name, kind: "Half" if kind == "Int8" else kind
    exported = run(auto=True, data=data, max_drop=100.0)
    results = {one.variant: one for one in exported.choice.candidates}
    assert results["trt-int8"].result == "refused"
    assert "int8 required, fp16 built" in results["trt-int8"].reason
    assert results["trt-fp32"].result == "kept"
    assert set(open_bundle(trained).parts["variants"]) == {"onnx-fp32", "trt-fp32"}


def test_engines_of_other_machines_stay_in_the_bundle(trained, run, computer, fake_machine):
    run(engines=True)
    computer.driver.gpu = fake_machine.A100
    run(engines=True)
    bundle = open_bundle(trained)
    engines = bundle.parts["variants"]["trt-fp32"]["engines"]
    assert [one["identity"]["gpu"] for one in engines] == [fake_machine.H100.name, fake_machine.A100.name]
    assert plans(bundle) == sorted(one["file"] for one in engines)
    for gpu in (fake_machine.H100, fake_machine.A100):
        computer.driver.gpu = gpu
        assert gpu.name in open_variant(bundle, "trt-fp32").device


def test_a_new_golden_set_takes_the_proofs_of_other_machines_engines(trained, run, computer, fake_machine, tmp_path):
    run(engines=True)
    computer.driver.gpu = fake_machine.A100
    Image.new("RGB", (32, 32)).save(tmp_path / "mine.png")
    run(engines=True, images=(tmp_path / "mine.png",))
    first, second = open_bundle(trained).parts["variants"]["trt-fp32"]["engines"]
    assert first["proof"] is None
    assert "golden set" in first["note"]
    assert second["proof"]["passed"]


def test_an_engine_in_another_type_is_refused_and_the_rest_is_written(trained, run, computer):
    computer.trt.convolutions = lambda name, kind: "Float"
    exported = run("fp16", engines=True)
    assert list(exported.rejected) == ["trt-fp16"]
    assert isinstance(exported.rejected["trt-fp16"], ProofError)
    assert "fp16 required, fp32 built" in str(exported.rejected["trt-fp16"])
    assert set(open_bundle(trained).parts["variants"]) == {"onnx-fp32", "onnx-fp16", "trt-fp32"}


def test_an_engine_that_answers_wrongly_is_refused_by_the_golden_set(trained, run, computer, fake_machine, monkeypatch):
    fake_machine.shifted(computer, monkeypatch, lambda logits: logits + np.float32(0.5))
    exported = run(engines=True)
    assert "trt-fp32 does not agree with the model" in str(exported.rejected["trt-fp32"])
    assert set(open_bundle(trained).parts["variants"]) == {"onnx-fp32"}
    assert plans(open_bundle(trained)) == []


def test_an_engine_that_loses_too_many_answers_is_refused_by_the_accuracy(
    trained, run, validating_gate, tmp_path, computer, fake_machine, monkeypatch
):
    """Classes in each other's place, and a gate on the golden set that lets it pass."""
    monkeypatch.setattr(export_module, "load_training_dataset", lambda *given: object())
    monkeypatch.setattr(export_module, "load_validation_set", lambda *given: validating_gate.validation)
    fake_machine.shifted(computer, monkeypatch, lambda logits: np.roll(logits, 1, axis=1))
    exported = run("fp16", engines=True, data=tmp_path, gates={**GATES, "fp16": Gate()})
    assert isinstance(exported.rejected["trt-fp16"], ProofError)
    assert "loses 100.00 points of top-1 on 40 validation images" in str(exported.rejected["trt-fp16"])
    assert set(open_bundle(trained).parts["variants"]) == {"onnx-fp32", "onnx-fp16"}
    allowed = run("fp16", engines=True, data=tmp_path, gates={**GATES, "fp16": Gate()}, max_drop=100.0)
    assert allowed.variants["trt-fp16"].engines[0].accuracy.drop == 100


def test_a_build_that_fails_leaves_the_onnx_and_says_why(trained, run, computer):
    computer.trt.error = "Could not find any implementation for node stem.conv"
    exported = run(engines=True)
    assert "Could not find any implementation" in str(exported.rejected["trt-fp32"])
    assert set(open_bundle(trained).parts["variants"]) == {"onnx-fp32"}


@pytest.mark.parametrize("before", [False, True])
def test_ctrl_c_in_the_middle_of_a_build_leaves_the_bundle(
    trained, run, computer, snapshot, before, interrupting_progress
):
    if before:
        run(engines=True)

    left = snapshot(trained)
    with pytest.raises(KeyboardInterrupt):
        export(trained, ExportOptions(precisions=(PRECISIONS["fp16"],), engines=True), interrupting_progress)
    assert snapshot(trained) == left
    assert len(computer.trt.built) == (2 if before else 1)  # nothing was built behind it


def test_auto_keeps_engines_that_were_asked_for_and_that_nothing_runs_here(trained, run, data, speeds, computer):
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX (extra [trt-rtx])")
    computer.driver.gpu = None
    speeds["onnx-fp16"] = 1.0
    exported = run(auto=True, engines=True, data=data, max_drop=100.0)
    results = {one.variant: one.result for one in exported.choice.candidates}
    assert (results["rtx-fp32"], results["rtx-fp16"]) == ("unmeasured", "unmeasured")
    bundle = open_bundle(trained)
    assert set(bundle.parts["variants"]) == {"onnx-fp32", "onnx-fp16", "rtx-fp32", "rtx-fp16"}
    assert bundle.parts["variants"]["rtx-fp16"]["engines"][0]["proof"] is None
    assert default_variant(bundle) == "onnx-fp16"
