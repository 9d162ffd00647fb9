import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from regnet_deploy.bundle import open_bundle, update_bundle
from regnet_deploy.errors import BundleError, MissingPart, ProofError
from regnet_deploy.images.preprocess import default_preprocessing
from regnet_deploy.serving.golden import (
    TOLERANCES,
    Golden,
    Tolerance,
    compare,
    golden_to_bytes,
    is_standard,
    load_golden,
    replay,
    scaled,
    tolerance_of,
    tolerance_to_serve,
)

REFERENCE = np.array([[1.0, 2.0, -3.0], [0.5, 0.25, 0.0]], np.float32)
TOLERANCE = Tolerance(atol=1e-3, rtol=1e-2)
logits = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 5), st.integers(1, 6)), elements=st.floats(-100, 100, width=32)
)


@given(logits)
def test_logits_agree_with_themselves(values: np.ndarray):
    agreement = compare(values, values.copy(), TOLERANCE)
    assert agreement.passed
    assert agreement.max_abs_error == agreement.mean_abs_error == 0
    assert agreement.cosine == pytest.approx(1.0)


@given(logits, st.data())
def test_one_logit_out_of_tolerance_fails(values: np.ndarray, data: st.DataObject):
    i = data.draw(st.integers(0, values.shape[0] - 1))
    j = data.draw(st.integers(0, values.shape[1] - 1))
    changed = values.copy()
    changed[i, j] += 2 * (TOLERANCE.atol + TOLERANCE.rtol * abs(values[i, j]))
    assert not compare(values, changed, TOLERANCE).passed


def test_figures_are_those_of_the_definition():
    other = REFERENCE + np.array([[0.01, 0, 0.02], [0, 0, 0]], np.float32)
    agreement = compare(REFERENCE, other, TOLERANCE)
    assert agreement.images == 2
    assert agreement.max_abs_error == pytest.approx(0.02, rel=1e-4)
    assert agreement.mean_abs_error == pytest.approx(0.03 / 6, rel=1e-4)
    a, b = REFERENCE[0].astype(float), other[0].astype(float)
    assert agreement.cosine == pytest.approx(a @ b / math.sqrt((a @ a) * (b @ b)))
    assert agreement.top1_agreement == 1.0
    assert agreement.passed  # 0.02 <= 1e-3 + 1e-2 * 3
    assert not compare(REFERENCE, other, Tolerance(1e-3, 1e-3)).passed


def test_another_first_class_fails_even_inside_the_tolerance():
    agreement = compare(np.array([[1.0, 1.0005]], np.float32), np.array([[1.0, 0.9995]], np.float32), TOLERANCE)
    assert agreement.max_abs_error < TOLERANCE.atol + TOLERANCE.rtol
    assert agreement.top1_agreement == 0.0
    assert not agreement.passed


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_not_finite_fails_and_is_still_json(value: float):
    broken = REFERENCE.copy()
    broken[1, 2] = value
    agreement = compare(REFERENCE, broken, TOLERANCE)
    assert not agreement.passed
    assert json.loads(json.dumps(agreement.to_json(), allow_nan=False))["max_abs_error"] is None
    assert not compare(broken, broken, TOLERANCE).passed


def test_shapes_that_differ_are_an_error():
    with pytest.raises(ProofError, match=r"\(2, 2\)"):
        compare(REFERENCE, REFERENCE[:, :2], TOLERANCE)


def test_rows_of_zeros_have_a_cosine():
    zeros = np.zeros((2, 3), np.float32)
    assert compare(zeros, zeros, TOLERANCE).cosine == 1.0
    assert compare(zeros, REFERENCE, TOLERANCE).cosine == 0.0


def test_only_known_precisions_have_a_tolerance():
    assert tolerance_of("fp32") == Tolerance(1e-4, 1e-3) == TOLERANCES["fp32"]
    with pytest.raises(BundleError, match="int4"):
        tolerance_of("int4")


def test_equal_golden_sets_are_equal_bytes_and_read_back_equal(exported_bundle: Path):
    golden = load_golden(open_bundle(exported_bundle))
    assert golden_to_bytes(golden) == golden_to_bytes(Golden(golden.images.copy(), golden.logits.copy()))
    assert golden_to_bytes(golden) == open_bundle(exported_bundle).read("golden.safetensors")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not safetensors at all",
        golden_to_bytes(Golden(np.zeros((0, 4, 4, 3), np.uint8), np.zeros((0, 3), np.float32))),
        golden_to_bytes(Golden(np.zeros((2, 4, 4, 3), np.uint8), np.zeros((3, 3), np.float32))),
        golden_to_bytes(Golden(np.zeros((2, 3, 4, 4), np.uint8), np.zeros((2, 3), np.float32))),
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
    golden = Golden(images, Fake({}).run(images))
    agreement = replay(Fake(wrong), golden, default_preprocessing(6), TOLERANCES["fp32"])  # 8 + 3, and 11 times 1
    assert agreement.passed is passed
    assert agreement.images == 11
    assert agreement.max_abs_error == pytest.approx(1.0 if wrong else 0.0, abs=1e-4)


@pytest.mark.parametrize(("wrong", "passed"), [({}, True), ({1: 1.0}, False), ({2: 1.0}, False)])
def test_one_image_is_run_alone_and_in_a_batch_of_itself(wrong: dict[int, float], passed: bool):
    images = np.zeros((1, 6, 6, 3), np.uint8)
    golden = Golden(images, Fake({}).run(images))
    agreement = replay(Fake(wrong), golden, default_preprocessing(6), TOLERANCES["fp32"])
    assert (agreement.images, agreement.passed) == (1, passed)


def test_a_batch_of_one_leaves_batches_out():
    images = np.zeros((3, 6, 6, 3), np.uint8)
    golden = Golden(images, Fake({}).run(images))
    assert replay(Fake({2: 1.0, 3: 1.0}), golden, default_preprocessing(6), TOLERANCES["fp32"], batch=1).passed


def untrained_logits(spread: float) -> np.ndarray:
    """Logits of 16 images and 10 classes that differ by ``spread``, the first class far ahead."""
    values = np.random.default_rng(0).normal(size=(16, 10)) * spread
    values[:, 0] += 0.1 + 10 * spread
    return values.astype(np.float32)


def test_a_network_that_ignores_the_image_is_found_where_the_logits_hardly_vary():
    logits = untrained_logits(3e-5)
    ignoring = np.tile(logits.mean(axis=0), (16, 1))
    assert compare(logits, ignoring, TOLERANCES["fp32"]).passed  # not found by the absolute tolerance
    assert not compare(logits, ignoring, scaled(TOLERANCES["fp32"], logits)).passed


@pytest.mark.parametrize("spread", [0.0, 1e-6, 2e-3, 1.0, 10.0])
def test_what_fp32_does_in_another_order_passes_whatever_the_spread(spread: float):
    logits = untrained_logits(spread)
    noise = np.random.default_rng(1).uniform(-1, 1, logits.shape) * 1e-6 * np.abs(logits).max()
    assert compare(logits, (logits + noise).astype(np.float32), scaled(TOLERANCES["fp32"], logits)).passed


@given(logits, st.floats(1e-9, 1e3), st.floats(0, 1))
def test_a_scaled_tolerance_is_never_looser_than_asked(values: np.ndarray, atol: float, rtol: float):
    tighter = scaled(Tolerance(atol, rtol), values)
    assert tighter.atol <= atol
    assert tighter.rtol == rtol
    assert scaled(tighter, values) == tighter


def test_one_image_and_logits_that_vary_leave_the_tolerance_as_it_is():
    assert scaled(TOLERANCE, REFERENCE[:1]) == TOLERANCE
    assert scaled(TOLERANCES["fp32"], untrained_logits(1.0)) == TOLERANCES["fp32"]


def test_replay_holds_to_the_scaled_tolerance_and_says_so():
    images = np.repeat(np.arange(100, 104, dtype=np.uint8), 6 * 6 * 3).reshape(4, 6, 6, 3)
    golden = Golden(images, Fake({}).run(images))
    assert replay(Fake({}), golden, default_preprocessing(6), Tolerance(0.1, 0)).atol == pytest.approx(
        0.01118, rel=1e-3
    )


def test_a_variant_is_served_to_its_precisions_tolerance_or_the_looser_one_of_its_proof():
    def of(atol: float, rtol: float) -> Tolerance:
        return tolerance_to_serve({"precision": "fp32", "proof": {"atol": atol, "rtol": rtol}})

    assert of(1e-7, 1e-9) == Tolerance(1e-4, 1e-3)
    assert of(0.5, 1e-9) == Tolerance(0.5, 1e-3)
    assert is_standard({"atol": 1e-5, "rtol": 1e-3}, "fp32")
    assert not is_standard({"atol": 2e-4, "rtol": 0}, "fp32")
    assert not is_standard({"atol": 0, "rtol": 2e-3}, "fp32")
