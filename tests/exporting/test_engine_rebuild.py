import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest

from regnet_deploy.bundle import find_damage, open_bundle, update_bundle
from regnet_deploy.engines.bundle_engines import fitting_engine
from regnet_deploy.errors import MissingPart, ProofError, RegnetDeployError, UsageError
from regnet_deploy.exporting import engine_rebuild as module
from regnet_deploy.exporting.engine_rebuild import rebuild_engines
from regnet_deploy.runtimes.default_variant import default_variant


@pytest.fixture
def rebuild(recorded_progress):
    """Return a function: rebuild engines and return the result and the steps."""

    def rebuild(path):
        rebuilt = rebuild_engines(path, recorded_progress)
        return rebuilt, [description for description, _ in recorded_progress.steps]

    return rebuild


def test_what_is_missing_for_this_gpu_is_built_proved_and_added(rebuild, without_engine, computer):
    rebuilt, steps = rebuild(without_engine)
    assert steps == ["trt-fp32: building", "trt-fp32: proving on cuda:0 (NVIDIA H100 80GB HBM3)"]
    assert rebuilt.rejected == {}
    bundle = open_bundle(without_engine)
    (engine,) = bundle.variants["trt-fp32"].engines
    assert rebuilt.built == {"trt-fp32": engine}
    assert (engine.proof.passed, engine.proof.standard) == (True, True)
    assert len(bundle.read(engine.file)) == engine.bytes
    assert fitting_engine(bundle, "trt-fp32", computer.library, computer.gpu).is_proved
    assert default_variant(bundle, "trt-fp32") == "trt-fp32"
    assert find_damage(bundle) == []


def test_what_is_there_already_is_left_alone(rebuild, with_h100_engine, snapshot):
    before = snapshot(with_h100_engine)
    rebuilt, steps = rebuild(with_h100_engine)
    assert (rebuilt.built, rebuilt.rejected, steps) == ({}, {}, [])
    assert snapshot(with_h100_engine) == before


def test_an_engine_of_another_machine_stays(rebuild, with_h100_engine, computer, fake_machine):
    computer.driver.gpu = fake_machine.A100
    rebuild(with_h100_engine)
    bundle = open_bundle(with_h100_engine)
    engines = bundle.parts["variants"]["trt-fp32"]["engines"]
    assert [one["identity"]["gpu"] for one in engines] == [fake_machine.H100.name, fake_machine.A100.name]
    assert all(one["file"] in bundle.files and one["proof"]["passed"] for one in engines)


def test_an_engine_without_proof_is_built_and_proved_again(rebuild, with_h100_engine):
    variants = open_bundle(with_h100_engine).parts["variants"]
    variants["trt-fp32"]["engines"][0]["proof"] = None
    update_bundle(with_h100_engine, {"variants": variants})
    rebuilt, _ = rebuild(with_h100_engine)
    assert list(rebuilt.built) == ["trt-fp32"]
    assert len(open_bundle(with_h100_engine).parts["variants"]["trt-fp32"]["engines"]) == 1


def test_plans_of_another_onnx_file_go(rebuild, with_h100_engine):
    bundle = open_bundle(with_h100_engine)
    old = bundle.parts["variants"]["trt-fp32"]["engines"][0]["file"]
    model = onnx.load_from_string(bundle.read("onnx-fp32.onnx"))
    model.doc_string = "other bytes, the same network"
    update_bundle(with_h100_engine, {}, {"onnx-fp32.onnx": model.SerializeToString()})
    rebuilt, _ = rebuild(with_h100_engine)
    assert rebuilt.rejected == {}
    assert old not in rebuilt.bundle.files
    assert find_damage(rebuilt.bundle) == []


def test_one_that_does_not_agree_is_refused_and_the_bundle_is_left(
    rebuild, without_engine, computer, fake_machine, monkeypatch, snapshot
):
    fake_machine.shifted(computer, monkeypatch, lambda logits: logits + np.float32(0.5))
    before = snapshot(without_engine)
    rebuilt, _ = rebuild(without_engine)
    assert rebuilt.built == {}
    assert isinstance(rebuilt.rejected["trt-fp32"], ProofError)
    assert "|error| 0.5 of a logit" in str(rebuilt.rejected["trt-fp32"])
    assert snapshot(without_engine) == before


def test_one_in_another_type_is_refused_and_the_others_are_added(rebuild, without_engine, computer):
    variants = open_bundle(without_engine).parts["variants"]
    variants["trt-fp16"] = {**variants["trt-fp32"], "precision": "fp16", "convolutions": {"stem.conv": "fp16"}}
    update_bundle(without_engine, {"variants": variants})
    rebuilt, _ = rebuild(without_engine)
    assert "fp16 required, fp32 built" in str(rebuilt.rejected["trt-fp16"])
    assert list(rebuilt.built) == ["trt-fp32"]
    assert rebuilt.bundle.parts["variants"]["trt-fp16"]["engines"] == []


def test_what_cannot_be_run_here_when_it_is_built_is_not_added(
    rebuild, without_engine, computer, monkeypatch, snapshot
):
    real = module.rebuild_engine

    def for_others(*arguments):
        made = real(*arguments)
        return replace(made, session=None, engine=made.engine.replace(note="not proved: it was built for others"))

    monkeypatch.setattr(module, "rebuild_engine", for_others)
    before = snapshot(without_engine)
    rebuilt, _ = rebuild(without_engine)
    assert isinstance(rebuilt.rejected["trt-fp32"], UsageError)
    assert "is not added: not proved: it was built for others" in str(rebuilt.rejected["trt-fp32"])
    assert snapshot(without_engine) == before


def test_a_build_that_fails_is_refused_with_the_reason(rebuild, without_engine, computer, snapshot):
    computer.trt.error = "Could not find any implementation for node stem.conv"
    before = snapshot(without_engine)
    rebuilt, _ = rebuild(without_engine)
    assert isinstance(rebuilt.rejected["trt-fp32"], RegnetDeployError)
    assert "Could not find any implementation" in str(rebuilt.rejected["trt-fp32"])
    assert snapshot(without_engine) == before


def test_ctrl_c_in_the_middle_of_a_build_leaves_the_bundle(without_engine, computer, snapshot, interrupting_progress):
    before = snapshot(without_engine)
    with pytest.raises(KeyboardInterrupt):
        rebuild_engines(without_engine, interrupting_progress)
    assert snapshot(without_engine) == before


def test_without_a_gpu_there_is_nothing_to_do(rebuild, without_engine, computer):
    computer.driver.gpu = None
    rebuilt, steps = rebuild(without_engine)
    assert (rebuilt.built, rebuilt.rejected, steps) == ({}, {}, [])


def test_without_a_golden_set_nothing_can_be_proved(rebuild, without_engine, computer):
    update_bundle(without_engine, {}, drop=("golden", "golden.safetensors"))
    with pytest.raises(MissingPart):
        rebuild(without_engine)


def test_it_needs_no_torch_and_no_onnx():
    code = (
        "import sys\nfor name in ('torch', 'onnx'): sys.modules[name] = None\n"
        "import regnet_deploy.exporting.engine_rebuild, regnet_deploy.engines.engine_builder"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
