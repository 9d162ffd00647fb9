from dataclasses import replace

import numpy as np
import pytest

from regnet_deploy.bundle.engine_options import EngineOptions
from regnet_deploy.bundle.variants import Gate
from regnet_deploy.errors import ProofError
from regnet_deploy.exporting.precision import PRECISIONS
from regnet_deploy.exporting.state import EngineBuilder
from regnet_deploy.exporting.variants import export_engine, export_onnx
from regnet_deploy.runtimes.gates import GATES

FOUR = EngineOptions.up_to(4)


@pytest.fixture
def context(context, computer):
    """The context of an export that builds engines on the computer of the tests."""
    options = replace(context.options, engine=FOUR)
    return replace(context, options=options, builder=EngineBuilder(computer.library, computer.gpu))


@pytest.fixture
def onnx_of(context):
    def make(precision):
        (made,) = export_onnx(context, PRECISIONS[precision])
        return made

    return make


@pytest.fixture
def build(context, computer):
    def build(onnx, gate, stored=()):
        builder = EngineBuilder(computer.library, computer.gpu)
        return export_engine(replace(context, gate=gate, builder=builder), onnx, stored)

    return build


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int8-1x1", "fp8-1x1"])
def test_an_engine_is_proved_where_there_is_a_gpu_and_says_in_which_types_it_computes(
    onnx_of, build, gate, source, precision
):
    onnx = onnx_of(precision)
    made = build(onnx, gate)
    assert made.name == f"trt-{precision}"
    variant = made.variant
    assert (variant.runtime, variant.precision, variant.source) == ("tensorrt", precision, f"onnx-{precision}")
    (engine,) = variant.engines
    assert (engine.file, engine.bytes) == (made.file, len(made.data))
    assert (engine.proof.passed, engine.proof.standard) == (True, True)
    assert engine.proof.device == "cuda:0 (NVIDIA H100 80GB HBM3)"
    asked = list(source.convolution_types(PRECISIONS[precision]).values())
    assert engine.types == {kind: asked.count(kind) for kind in set(asked)}
    identity = engine.identity
    assert identity.calibration == ("abc" if PRECISIONS[precision].needs_ranges else None)
    assert made.accuracy is None


def test_with_validation_images_it_has_its_accuracy(onnx_of, build, validating_gate):
    made = build(onnx_of("fp16"), validating_gate)
    assert made.engine.accuracy == made.accuracy
    assert made.accuracy.images == 40


def test_an_engine_of_another_machine_stays(onnx_of, build, gate, computer, fake_machine):
    onnx = onnx_of("fp16")
    first = build(onnx, gate)
    computer.driver.gpu = fake_machine.A100
    second = build(onnx, gate, first.variant.engines)
    assert [one.identity.gpu for one in second.variant.engines] == [
        fake_machine.H100.name,
        fake_machine.A100.name,
    ]
    again = build(onnx, gate, second.variant.engines)
    assert len(again.variant.engines) == 2


def test_without_a_gpu_there_is_neither_proof_nor_session(onnx_of, context):
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX (extra [trt-rtx])")
    from regnet_deploy.engines.library import load_library

    builder = EngineBuilder(load_library("tensorrt-rtx"), None)
    made = export_engine(replace(context, builder=builder), onnx_of("fp16"))
    assert (made.name, made.session, made.engine.proof) == ("rtx-fp16", None, None)


class TestRefused:
    """Each gate refuses what was broken for it."""

    def test_an_engine_in_another_type_by_the_type_gate(self, onnx_of, build, gate, computer):
        computer.trt.convolutions = lambda name, kind: "Float" if name == "stem.conv" else kind
        with pytest.raises(
            ProofError, match=r"^1 of \d+ convolutions do not .* stem\.conv \(fp16 required, fp32 built\)$"
        ):
            build(onnx_of("fp16"), gate)

    def test_int8_that_is_computed_in_fp16_by_the_type_gate(self, onnx_of, build, gate, computer):
        computer.trt.convolutions = lambda name, kind: "Half"
        with pytest.raises(ProofError, match=r"int8 required, fp16 built"):
            build(onnx_of("int8"), gate)

    def test_a_convolution_that_no_layer_names_by_the_type_gate_unless_that_is_accepted(
        self, onnx_of, build, gate, computer, context
    ):
        onnx = onnx_of("fp16")
        computer.trt.convolutions = lambda name, kind: None if name == "stem.conv" else kind
        with pytest.raises(
            ProofError, match=r"which type 1 of \d+ convolutions .*: stem\.conv; .*--accept-unaccounted"
        ):
            build(onnx, gate)
        accepting = replace(context, options=replace(context.options, accept_unaccounted=True))
        made = export_engine(accepting, onnx)
        assert made.engine.unaccounted == ("stem.conv",)

    def test_wrong_logits_by_the_golden_gate(self, onnx_of, build, gate, computer, fake_machine, monkeypatch):
        onnx = onnx_of("fp16")
        fake_machine.shifted(computer, monkeypatch, lambda logits: logits * np.float32(1.2))
        with pytest.raises(ProofError, match=r"^trt-fp16 does not agree with the model.* mean \|error\| .*tensorrt 11"):
            build(onnx, gate)

    def test_an_answer_that_depends_on_the_batch_by_the_golden_gate(
        self, onnx_of, build, gate, computer, fake_machine, monkeypatch
    ):
        """What a graph that was captured with other shapes would do."""
        onnx = onnx_of("fp32")
        fake_machine.shifted(computer, monkeypatch, lambda logits: logits[:1] if len(logits) > 1 else logits)
        with pytest.raises(ProofError, match=r"trt-fp32 does not agree with the model"):
            build(onnx, gate)

    def test_too_many_wrong_answers_by_the_accuracy_gate(
        self, onnx_of, build, validating_gate, computer, fake_machine, monkeypatch
    ):
        onnx = onnx_of("fp16")
        fake_machine.shifted(computer, monkeypatch, lambda logits: np.roll(logits, 1, axis=1))
        lenient = replace(validating_gate, gates={**GATES, "fp16": Gate()})
        with pytest.raises(ProofError, match=r"^trt-fp16 loses 100\.00 points of top-1 on 40 validation images"):
            build(onnx, lenient)
