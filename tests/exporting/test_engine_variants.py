from dataclasses import replace

import numpy as np
import pytest

from regnet_deploy.engines.identity import EngineIdentity
from regnet_deploy.engines.options import EngineOptions
from regnet_deploy.errors import ProofError
from regnet_deploy.exporting.calibration_images import CalibrationSet
from regnet_deploy.exporting.engine_variants import make_engine_variant
from regnet_deploy.exporting.onnx_variants import LazyCalibration, make_onnx_variants
from regnet_deploy.exporting.precision import PRECISIONS
from regnet_deploy.runtimes.gates import GATES, Gate

FOUR = EngineOptions.up_to(4)


@pytest.fixture
def onnx_of(source, golden, judge, silent):
    calibration = LazyCalibration(lambda: CalibrationSet(golden.golden.images, {"digest": "abc"}), source, silent)

    def make(precision):
        (made,) = make_onnx_variants(source, PRECISIONS[precision], calibration, judge, "cpu", silent, pixels=False)
        return made

    return make


@pytest.fixture
def build(computer, source, silent):
    def build(onnx, judge, before=None):
        return make_engine_variant(computer.library, computer.gpu, onnx, source, FOUR, before, judge, silent)

    return build


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int8-1x1", "fp8-1x1"])
def test_an_engine_is_proved_where_there_is_a_gpu_and_says_in_which_types_it_computes(
    onnx_of, build, judge, source, precision
):
    onnx = onnx_of(precision)
    made = build(onnx, judge)
    assert made.name == f"trt-{precision}"
    entry = made.entry
    assert (entry["runtime"], entry["precision"], entry["source"]) == ("tensorrt", precision, f"onnx-{precision}")
    (engine,) = entry["engines"]
    assert (engine["file"], engine["bytes"]) == (made.file, len(made.plan))
    assert (engine["proof"]["passed"], engine["proof"]["standard"]) == (True, True)
    assert engine["proof"]["device"] == "cuda:0 (NVIDIA H100 80GB HBM3)"
    asked = list(source.convolutions(PRECISIONS[precision]).values())
    assert engine["types"] == {kind: asked.count(kind) for kind in set(asked)}
    identity = EngineIdentity.from_json(engine["identity"])
    assert identity.calibration == ("abc" if PRECISIONS[precision].needs_ranges else None)
    assert "accuracy" not in made.own_entry


def test_with_validation_images_it_has_its_accuracy(onnx_of, build, judge_with_labels):
    made = build(onnx_of("fp16"), judge_with_labels)
    assert made.entry["engines"][0]["accuracy"] == made.own_entry["accuracy"]
    assert made.own_entry["accuracy"]["images"] == 40


def test_an_engine_of_another_machine_stays(onnx_of, build, judge, computer, fake_machine):
    onnx = onnx_of("fp16")
    first = build(onnx, judge)
    computer.driver.gpu = fake_machine.A100
    second = build(onnx, judge, first.entry)
    assert [one["identity"]["gpu"] for one in second.entry["engines"]] == [
        fake_machine.H100.name,
        fake_machine.A100.name,
    ]
    again = build(onnx, judge, second.entry)
    assert len(again.entry["engines"]) == 2


def test_without_a_gpu_there_is_neither_proof_nor_session(onnx_of, source, judge, silent):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    from regnet_deploy.engines.library import load_library

    made = make_engine_variant(load_library("tensorrt-rtx"), None, onnx_of("fp16"), source, FOUR, None, judge, silent)
    assert (made.name, made.session, made.entry["engines"][0]["proof"]) == ("rtx-fp16", None, None)


class TestRefused:
    """Each gate refuses what was broken for it."""

    def test_an_engine_in_another_type_by_the_type_gate(self, onnx_of, build, judge, computer):
        computer.trt.convolutions = lambda name, kind: "Float" if name == "stem.conv" else kind
        with pytest.raises(
            ProofError, match=r"^1 of \d+ convolutions do not .* stem\.conv \(fp16 asked, fp32 built\)$"
        ):
            build(onnx_of("fp16"), judge)

    def test_int8_that_is_computed_in_fp16_by_the_type_gate(self, onnx_of, build, judge, computer):
        computer.trt.convolutions = lambda name, kind: "Half"
        with pytest.raises(ProofError, match=r"int8 asked, fp16 built"):
            build(onnx_of("int8"), judge)

    def test_a_convolution_that_no_layer_names_by_the_type_gate_unless_that_is_accepted(
        self, onnx_of, build, judge, computer, source, silent
    ):
        onnx = onnx_of("fp16")
        computer.trt.convolutions = lambda name, kind: None if name == "stem.conv" else kind
        with pytest.raises(
            ProofError, match=r"which type 1 of \d+ convolutions .*: stem\.conv; .*--accept-unaccounted"
        ):
            build(onnx, judge)
        made = make_engine_variant(
            computer.library, computer.gpu, onnx, source, FOUR, None, judge, silent, accept_unaccounted=True
        )
        assert made.entry["engines"][0]["unaccounted"] == ["stem.conv"]

    def test_wrong_logits_by_the_golden_gate(self, onnx_of, build, judge, computer, fake_machine, monkeypatch):
        onnx = onnx_of("fp16")
        fake_machine.shifted(computer, monkeypatch, lambda logits: logits * np.float32(1.2))
        with pytest.raises(ProofError, match=r"^trt-fp16 does not agree with the model.* mean \|error\| .*tensorrt 11"):
            build(onnx, judge)

    def test_an_answer_that_depends_on_the_batch_by_the_golden_gate(
        self, onnx_of, build, judge, computer, fake_machine, monkeypatch
    ):
        """What a graph that was captured with other shapes would do."""
        onnx = onnx_of("fp32")
        fake_machine.shifted(computer, monkeypatch, lambda logits: logits[:1] if len(logits) > 1 else logits)
        with pytest.raises(ProofError, match=r"trt-fp32 does not agree with the model"):
            build(onnx, judge)

    def test_too_many_wrong_answers_by_the_accuracy_gate(
        self, onnx_of, build, judge_with_labels, computer, fake_machine, monkeypatch
    ):
        onnx = onnx_of("fp16")
        fake_machine.shifted(computer, monkeypatch, lambda logits: np.roll(logits, 1, axis=1))
        lenient = replace(judge_with_labels, gates={**GATES, "fp16": Gate()})
        with pytest.raises(ProofError, match=r"^trt-fp16 loses 100\.00 points of top-1 on 40 validation images"):
            build(onnx, lenient)
