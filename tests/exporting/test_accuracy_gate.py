"""Every gate refuses a graph that was broken for it, and no other gate does."""

from dataclasses import replace

import numpy as np
import pytest

from regnet_deploy.bundle.variants import Gate
from regnet_deploy.errors import ProofError
from regnet_deploy.exporting.precision import PRECISIONS
from regnet_deploy.progress import NoProgress
from regnet_deploy.runtimes.gates import GATES
from regnet_deploy.runtimes.runtime import open_onnx


def session_of(source, precision="fp32"):
    return open_onnx(source.onnx(PRECISIONS[precision]))


def evaluated(gate, source, precision="fp32"):
    session = session_of(source, precision)
    return gate.evaluate(f"onnx-{precision}", session, PRECISIONS[precision], NoProgress())


def evaluated_as_fp16(gate, source):
    """Evaluate the FP32 file of a network with the limits of FP16, so that only what was broken is in the figures."""
    return gate.evaluate("onnx-fp16", session_of(source), PRECISIONS["fp16"], NoProgress())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_good_graph_passes_every_gate(gate, source, precision):
    proof = evaluated(gate, source, precision).proof
    assert (proof.passed, proof.standard, proof.images) == (True, True, 16)


def swapped(array):
    """Two classes in each other's place, which is what a wrong order of the labels does."""
    return array[[1, 0, 2, 3, 4]]


#: Figure -> what is broken in the head of the network, the limits that it leaves open, and what the line says.
BROKEN = {
    "atol": ({"head__fc__bias": lambda bias: bias + np.float32(2e-3)}, {}, r"\|error\| 0\.002 of a logit of"),
    "mean": (
        {"head__fc__weight": lambda w: w * np.float32(1.1), "head__fc__bias": lambda b: b * np.float32(1.1)},
        {"atol": np.inf, "worst": np.inf},
        r"mean \|error\| \d+\.\d+% of the spread \(at most 1\.00%\)",
    ),
    "worst": (
        {"head__fc__bias": lambda bias: bias + np.float32([2, -2, 2, -2, 2])},
        {"atol": np.inf, "mean": np.inf, "top1": 0.0},
        r"error of one image \d+\.\d+% of the spread \(at most 5\.00%\)",
    ),
    "top1": (
        {"head__fc__weight": swapped, "head__fc__bias": swapped},
        {"atol": np.inf, "mean": np.inf, "worst": np.inf},
        r"first class kept on \d+\.\d% of images \(at least 98\.0%\)",
    ),
}


@pytest.mark.parametrize("figure", BROKEN)
def test_the_right_gate_refuses_a_graph_that_is_broken_for_it(gate, with_weights, figure):
    changes, opened, says = BROKEN[figure]
    limits = GATES["fp16"].replace(atol=1e-4, rtol=1e-3) if figure == "atol" else GATES["fp16"]
    limits = limits.replace(**opened) if figure != "atol" else limits.replace(mean=np.inf)
    strict = replace(gate, gates={**GATES, "fp16": limits})
    with pytest.raises(ProofError, match=rf"^onnx-fp16 does not agree with the model.*?: {says}") as e:
        evaluated_as_fp16(strict, with_weights(**changes))
    assert "\n" not in str(e.value)
    assert ";" not in str(e.value).split(" - ")[0]  # no other gate
    without = {"atol": {"atol": np.inf}, "mean": {"mean": np.inf}, "worst": {"worst": np.inf}, "top1": {"top1": 0.0}}
    lenient = replace(gate, gates={**GATES, "fp16": limits.replace(**without[figure])})
    assert evaluated_as_fp16(lenient, with_weights(**changes)).proof.passed


def test_logits_that_are_not_finite_pass_no_gate(gate, with_weights):
    broken = with_weights(head__fc__bias=lambda bias: bias + np.float32(np.inf))
    with pytest.raises(ProofError, match="a logit is not finite"):
        evaluated(replace(gate, gates={**GATES, "fp32": Gate()}), broken)


def test_with_validation_images_the_accuracy_is_told(validating_gate, source):
    accuracy = evaluated(validating_gate, source, "fp16").accuracy
    assert (accuracy.images, accuracy.reference_top1) == (40, 1.0)
    assert accuracy.low <= accuracy.drop <= accuracy.high


def test_the_accuracy_gate_refuses_what_answers_wrongly(validating_gate, with_weights):
    """With gates on the golden set that let everything pass, so that it is this one that refuses."""
    broken = with_weights(head__fc__weight=lambda w: np.roll(w, 1, axis=0), head__fc__bias=lambda b: np.roll(b, 1))
    lenient = replace(validating_gate, gates={**GATES, "fp16": Gate()})
    with pytest.raises(
        ProofError,
        match=r"^onnx-fp16 loses 100\.00 points of top-1 on 40 validation images \(100\.00% to 0\.00%; 95 % interval "
        r"of the loss \d+\.\d+ to 100\.00\) and may lose 0\.5 \(--max-drop\)",
    ):
        evaluated_as_fp16(lenient, broken)
    assert evaluated_as_fp16(replace(lenient, max_drop=100.0), broken).accuracy.drop == 100


def test_a_drop_of_exactly_what_may_be_lost_passes(validating_gate, source):
    """One of 40 images is 2.5 points."""

    class Once:
        def __init__(self):
            self._session, self.lost = session_of(source), 0

        def __getattr__(self, name):
            return getattr(self._session, name)

        def run(self, images):
            logits = self._session.run(images)
            if len(images) == 16 and not self.lost:
                self.lost += 1
                logits[0] = np.roll(logits[0], 1)
            return logits

    lenient = replace(validating_gate, gates={**GATES, "fp16": Gate()})
    exact = replace(lenient, max_drop=2.5)
    assert exact.evaluate("onnx-fp16", Once(), PRECISIONS["fp16"], NoProgress()).accuracy.drop == 2.5
    with pytest.raises(ProofError, match=r"loses 2\.50 points"):
        replace(lenient, max_drop=2.49).evaluate("onnx-fp16", Once(), PRECISIONS["fp16"], NoProgress())


def test_an_answer_that_is_not_finite_on_a_validation_image_is_refused_whatever_may_be_lost(validating_gate, source):
    class Overflowing:
        def __init__(self):
            self._session = session_of(source)

        def __getattr__(self, name):
            return getattr(self._session, name)

        def run(self, images):
            logits = self._session.run(images)
            return np.where(len(images) == 16, np.nan, logits)  # batches of the validation; the golden set's are of 8

    lenient = replace(validating_gate, max_drop=100.0)
    with pytest.raises(ProofError, match="onnx-fp16 gives logits that are not finite on validation images"):
        lenient.evaluate("onnx-fp16", Overflowing(), PRECISIONS["fp16"], NoProgress())
