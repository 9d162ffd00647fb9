import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from regnet_deploy.bundle import open_bundle, update_bundle
from regnet_deploy.bundle.variants import Gate
from regnet_deploy.errors import BundleError, MissingPart, ProofError
from regnet_deploy.images.preprocessing import default_preprocessing
from regnet_deploy.runtimes.gates import GATES
from regnet_deploy.runtimes.golden_set import GoldenSet, compare, golden_to_bytes, load_golden, replay

REFERENCE = np.array([[1.0, 2.0, -3.0], [0.5, 0.25, 0.0]], np.float32)
GATE = Gate(atol=1e-3, rtol=1e-2, top1=1.0)
logits = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 5), st.integers(1, 6)), elements=st.floats(-100, 100, width=32)
)


@given(logits)
def test_logits_agree_with_themselves(values: np.ndarray):
    agreement = compare(values, values.copy(), GATE)
    assert agreement.passed
    assert agreement.max_abs_error == agreement.mean_abs_error == 0
    assert agreement.cosine == pytest.approx(1.0)


@given(logits, st.data())
def test_one_logit_beyond_its_limit_fails(values: np.ndarray, data: st.DataObject):
    i = data.draw(st.integers(0, values.shape[0] - 1))
    j = data.draw(st.integers(0, values.shape[1] - 1))
    changed = values.copy()
    changed[i, j] += 2 * (GATE.atol + GATE.rtol * abs(values[i, j]))
    assert not compare(values, changed, GATE).passed


def test_figures_are_those_of_the_definition():
    other = REFERENCE + np.array([[0.01, 0, 0.02], [0, 0, 0]], np.float32)
    agreement = compare(REFERENCE, other, GATE)
    assert agreement.images == 2
    assert agreement.max_abs_error == pytest.approx(0.02, rel=1e-4)
    assert agreement.mean_abs_error == pytest.approx(0.03 / 6, rel=1e-4)
    a, b = REFERENCE[0].astype(float), other[0].astype(float)
    assert agreement.cosine == pytest.approx(a @ b / math.sqrt((a @ a) * (b @ b)))
    assert agreement.top1_agreement == 1.0
    assert agreement.passed  # 0.02 <= 1e-3 + 1e-2 * 3
    assert not compare(REFERENCE, other, Gate(1e-3, 1e-3)).passed


def test_another_first_class_fails_even_inside_its_limits():
    agreement = compare(np.array([[1.0, 1.0005]], np.float32), np.array([[1.0, 0.9995]], np.float32), GATE)
    assert agreement.max_abs_error < GATE.atol + GATE.rtol
    assert agreement.top1_agreement == 0.0
    assert not agreement.passed


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_not_finite_fails_and_is_still_json(value: float):
    broken = REFERENCE.copy()
    broken[1, 2] = value
    agreement = compare(REFERENCE, broken, GATE)
    assert agreement.failures == ("a logit is not finite",)
    assert not compare(REFERENCE, broken, Gate()).passed
    assert json.loads(json.dumps(agreement.to_json(), allow_nan=False))["max_abs_error"] is None
    assert not compare(broken, broken, GATE).passed


def test_shapes_that_differ_are_an_error():
    with pytest.raises(ProofError, match=r"\(2, 2\)"):
        compare(REFERENCE, REFERENCE[:, :2], GATE)


def test_rows_of_zeros_have_a_cosine():
    zeros = np.zeros((2, 3), np.float32)
    assert compare(zeros, zeros, GATE).cosine == 1.0
    assert compare(zeros, REFERENCE, GATE).cosine == 0.0


def test_equal_golden_sets_are_equal_bytes_and_read_back_equal(exported_bundle: Path):
    golden = load_golden(open_bundle(exported_bundle))
    assert golden_to_bytes(golden) == golden_to_bytes(GoldenSet(golden.images.copy(), golden.logits.copy()))
    assert golden_to_bytes(golden) == open_bundle(exported_bundle).read("golden.safetensors")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not safetensors at all",
        golden_to_bytes(GoldenSet(np.zeros((0, 4, 4, 3), np.uint8), np.zeros((0, 3), np.float32))),
        golden_to_bytes(GoldenSet(np.zeros((2, 4, 4, 3), np.uint8), np.zeros((3, 3), np.float32))),
        golden_to_bytes(GoldenSet(np.zeros((2, 3, 4, 4), np.uint8), np.zeros((2, 3), np.float32))),
    ],
)
def test_a_file_that_is_not_a_golden_set_is_an_error(exported_bundle: Path, data: bytes):
    bundle = update_bundle(exported_bundle, {}, {"golden.safetensors": data})
    with pytest.raises(BundleError, match="not a golden set"):
        load_golden(bundle)


def test_a_bundle_without_one_names_the_command(exported_bundle: Path):
    bundle = update_bundle(exported_bundle, {}, drop=("golden", "golden.safetensors"))
    with pytest.raises(MissingPart, match="export --onnx"):
        load_golden(bundle)


@dataclass
class Fake:
    """Gives the mean of each colour, plus what ``wrong`` says for a batch of that size."""

    wrong: dict[int, float]
    runtime: str = "fake 1"
    device: str = "cpu"
    input: str = "uint8"
    input_name: str = "images"
    output_name: str = "logits"

    def run(self, images: np.ndarray) -> np.ndarray:
        return (images.mean(axis=(1, 2)) + self.wrong.get(len(images), 0)).astype(np.float32)


@pytest.mark.parametrize(("wrong", "passed"), [({}, True), ({1: 1.0}, False), ({8: 1.0}, False), ({3: 1.0}, False)])
def test_replay_runs_every_image_alone_and_in_batches(wrong: dict[int, float], passed: bool):
    images = np.random.default_rng(0).integers(0, 256, (11, 6, 6, 3)).astype(np.uint8)
    golden = GoldenSet(images, Fake({}).run(images))
    agreement = replay(Fake(wrong), golden, default_preprocessing(6), GATES["fp32"])  # 8 + 3, and 11 times 1
    assert agreement.passed is passed
    assert agreement.images == 11
    assert agreement.max_abs_error == pytest.approx(1.0 if wrong else 0.0, abs=1e-4)


@pytest.mark.parametrize(("wrong", "passed"), [({}, True), ({1: 1.0}, False), ({2: 1.0}, False)])
def test_one_image_is_run_alone_and_in_a_batch_of_itself(wrong: dict[int, float], passed: bool):
    images = np.zeros((1, 6, 6, 3), np.uint8)
    golden = GoldenSet(images, Fake({}).run(images))
    agreement = replay(Fake(wrong), golden, default_preprocessing(6), GATES["fp32"])
    assert (agreement.images, agreement.passed) == (1, passed)


def test_a_batch_of_one_leaves_batches_out():
    images = np.zeros((3, 6, 6, 3), np.uint8)
    golden = GoldenSet(images, Fake({}).run(images))
    assert replay(Fake({2: 1.0, 3: 1.0}), golden, default_preprocessing(6), GATES["fp32"], batch=1).passed


def test_replay_holds_to_the_scaled_gate_and_says_so():
    images = np.repeat(np.arange(100, 104, dtype=np.uint8), 6 * 6 * 3).reshape(4, 6, 6, 3)
    golden = GoldenSet(images, Fake({}).run(images))
    agreement = replay(Fake({}), golden, default_preprocessing(6), Gate(atol=0.1))
    assert agreement.gate.atol == pytest.approx(0.01118, rel=1e-3)


# Sixteen images of four classes, the first of which is ahead by 1 to 4 spreads.
WANTED = np.concatenate(
    [np.random.default_rng(0).normal(size=(16, 1)) + 5, np.random.default_rng(1).normal(size=(16, 3))], axis=1
).astype(np.float32)
SPREAD = WANTED.astype(np.float64).std(axis=0).mean()


def test_the_mean_error_is_told_as_a_share_of_the_spread():
    agreement = compare(WANTED, WANTED + np.float32(0.1), Gate())
    assert agreement.relative_error == pytest.approx(0.1 / SPREAD, rel=1e-4)
    assert agreement.passed


def test_of_images_with_the_same_logits_the_classes_give_the_spread():
    one = np.array([[1.0, 2.0, 3.0]], np.float32)
    for reference in (one, np.repeat(one, 3, axis=0)):
        assert compare(reference, reference + np.float32(0.5), Gate()).relative_error == pytest.approx(
            0.5 / one.std(), rel=1e-6
        )
    zeros = np.zeros((2, 3), np.float32)
    assert compare(zeros, zeros, Gate()).relative_error == 0
    assert compare(zeros, zeros + 1, Gate()).to_json()["relative_error"] is None


BROKEN = {
    "atol": (
        Gate(atol=1e-2),
        lambda x: x + np.float32(0.011),
        r"\|error\| 0.011 of a logit of -?\d.* \(at most 0.01\)",
    ),
    "rtol": (Gate(atol=0, rtol=1e-2), lambda x: x * np.float32(1.011), r"\|error\| 0.0\d+ of a logit"),
    "mean": (Gate(mean=0.02), lambda x: x + np.float32(0.03), r"mean \|error\| \d.* of the spread \(at most 2.00%\)"),
    "worst": (
        Gate(worst=0.3),
        lambda x: np.concatenate([x[:1] + np.float32(0.6), x[1:]]),
        r"error of one image \d\d\.\d\d% of the spread \(at most 30.00%\)",
    ),
    "cosine": (Gate(cosine=0.999), lambda x: x[:, ::-1].copy(), r"cosine -?0\.\d+ \(at least 0.999\)"),
    "top1": (Gate(top1=0.9), lambda x: np.roll(x, 1, axis=1), r"first class kept on 0.0% of images \(at least 90.0%\)"),
}


@pytest.mark.parametrize("figure", BROKEN)
def test_each_figure_is_refused_by_its_own_limit_and_by_no_other(figure: str):
    gate, spoil, phrase = BROKEN[figure]
    agreement = compare(WANTED, spoil(WANTED), gate)
    (failure,) = agreement.failures
    assert re.fullmatch(phrase, failure) or re.match(phrase, failure)
    assert str(agreement).startswith(f"{failure} - max |error| ")
    assert agreement.to_json()["passed"] is False
    assert compare(WANTED, spoil(WANTED), Gate()).passed


def test_all_that_failed_is_said():
    agreement = compare(WANTED, -WANTED, GATES["int8"])
    assert [failure.split()[0] for failure in agreement.failures] == ["mean", "error", "first"]


@pytest.mark.parametrize(("lead", "kept"), [(0.0, 1.0), (0.005, 1.0), (0.02, 15 / 16)])
def test_a_first_class_that_the_reference_does_not_decide_may_change(lead: float, kept: float):
    wanted = WANTED.copy()
    wanted[3, 1] = wanted[3, 0] - np.float32(lead * wanted.astype(np.float64).std(axis=0).mean())
    got = wanted.copy()
    got[3, 1] = wanted[3, 0] + np.float32(0.001)
    agreement = compare(wanted, got, Gate(top1=1.0))
    assert agreement.top1_agreement == 15 / 16
    assert agreement.top1_decided == kept
    assert agreement.passed is (kept == 1)


@pytest.mark.parametrize(
    ("precision", "changed", "passed"), [("fp16", 1, False), ("int8", 1, True), ("int8", 2, False)]
)
def test_of_few_images_a_share_of_98_percent_is_all(precision: str, changed: int, passed: bool):
    got = WANTED.copy()
    got[:changed] = got[:changed, [1, 0, 2, 3]]
    gate = Gate(top1=GATES[precision].top1)
    assert compare(WANTED, got, gate).passed is passed


def test_json_has_figures_gate_and_whether_it_passed():
    data = compare(WANTED, WANTED, GATES["int8"]).to_json()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert set(data) == {
        "images",
        "max_abs_error",
        "mean_abs_error",
        "relative_error",
        "cosine",
        "top1_agreement",
        "top1_decided",
        "worst_error",
        "gate",
        "passed",
    }
    assert data["gate"] == {"atol": None, "rtol": None, "mean": 0.15, "cosine": None, "top1": 0.9, "worst": 0.5}


def two_classes(*, errors: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits of two classes of 32 images, 8 of them near the border, and the same with errors, which are shares of the
    spread."""
    draw = np.random.default_rng(0)
    distance = np.concatenate([draw.normal(size=24), draw.uniform(-0.02, 0.02, 8)])
    wanted = np.stack([distance, -distance], axis=1)
    return wanted.astype(np.float32), (wanted + errors * wanted.std() * draw.normal(size=(32, 2))).astype(np.float32)


def test_images_near_the_border_of_two_classes_do_not_refuse_a_small_error():
    wanted, got = two_classes(errors=0.03)
    agreement = compare(wanted, got, GATES["int8-cpu"])
    assert agreement.passed
    assert agreement.top1_agreement < 1
    assert "cosine" in compare(wanted, got, Gate(cosine=0.95)).failures[0]  # the measure of earlier versions


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_images_near_the_border_of_two_classes_do_not_refuse_a_rounded_file_either(precision: str):
    wanted, got = two_classes(errors=0.3 * GATES[precision].mean)
    assert compare(wanted, got, GATES[precision]).passed


def test_an_image_with_large_logits_may_have_a_larger_error():
    wanted, _ = two_classes(errors=0.0)
    wanted[0] *= 8 / np.abs(wanted[0]).max()
    got = wanted.copy()
    got[0] *= np.float32(0.8)  # saturated: an error of more than a spread, which changes no answer
    agreement = compare(wanted, got, GATES["int8-cpu"])
    assert agreement.max_abs_error > wanted.std(axis=0).mean()
    assert agreement.passed
    got[0] *= np.float32(0.25)
    assert not compare(wanted, got, GATES["int8-cpu"]).passed


def test_two_classes_with_large_errors_are_refused():
    wanted, got = two_classes(errors=0.4)
    assert not compare(wanted, got, GATES["int8-cpu"]).passed


@pytest.mark.parametrize("classes", [2, 4, 10, 100, 1000])
def test_one_image_with_the_logits_of_another_is_found_whatever_the_number_of_classes(classes: int):
    wanted = np.random.default_rng(classes).normal(size=(16, classes)).astype(np.float32)
    got = wanted.copy()
    got[3] = -wanted[3]  # as far away as the logits of another image
    got[3, 0] += np.float32(1.0) - np.float32(0.0)
    agreement = compare(wanted, got, GATES["int8-cpu"])
    assert any("error of one image" in failure for failure in agreement.failures)


def test_a_logit_that_is_not_finite_is_told_without_figures_that_mean_nothing():
    broken = REFERENCE.copy()
    broken[0, 0] = np.inf
    assert str(compare(REFERENCE, broken, GATES["fp16"])) == "a logit is not finite, of 2 images"


def test_an_error_where_all_reference_logits_are_equal_is_no_infinite_share():
    zeros = np.zeros((2, 3), np.float32)
    assert "inf" not in str(compare(zeros, zeros + 1, GATES["int8"]))
