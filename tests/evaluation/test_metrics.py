"""Metrics follow their definitions."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from regnet_deploy.evaluation.metrics import Share, expected_calibration_error, metrics, softmax


def test_a_small_example_by_hand() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.4, 0.35, 0.25]])
    made = metrics(np.array([0, 1, 1, 0]), probabilities, ("a", "b", "c"))
    assert made.images == 4
    assert made.top1.value == 0.75
    assert made.top5 is None
    assert made.baseline == (0.5, "a")
    assert made.confusion.tolist() == [[2, 0, 0], [1, 1, 0], [0, 0, 0]]
    a, b, c = made.classes
    assert (a.support, a.answers, a.precision, a.recall) == (2, 3, pytest.approx(2 / 3), 1.0)
    assert (b.precision, b.recall) == (1.0, 0.5)
    assert (c.support, c.answers, c.precision, c.recall) == (0, 0, None, None)
    data = json.loads(json.dumps(made.to_json(), allow_nan=False))
    assert data["confusion"] == [["a", "a", 2], ["b", "a", 1], ["b", "b", 1]]


@given(
    hnp.arrays(np.float64, st.tuples(st.integers(1, 40), st.integers(6, 9)), elements=st.floats(-5, 5)),
    st.randoms(use_true_random=False),
)
def test_top5_counts_the_images_whose_class_is_among_the_first_five(logits: np.ndarray, random: object) -> None:
    n, count = logits.shape
    labels = np.array([random.randrange(count) for _ in range(n)])  # type: ignore[attr-defined]
    made = metrics(labels, softmax(logits), tuple("abcdefghi"[:count]))
    order = np.argsort(-softmax(logits), axis=1, kind="stable")
    assert made.top5 is not None
    assert made.top5.value == (order[:, :5] == labels[:, None]).any(axis=1).mean()
    assert made.top1.value == (order[:, 0] == labels).mean()
    assert made.confusion.sum() == n
    assert made.top1.low <= made.top1.value <= made.top1.high


def test_the_calibration_error_of_a_calibrated_answer_is_0() -> None:
    right = np.array([True] * 7 + [False] * 3)
    assert expected_calibration_error(np.full(10, 0.7), right) == pytest.approx(0)
    assert expected_calibration_error(np.full(10, 1.0), right) == pytest.approx(0.3)
    two_bins = np.concatenate([np.full(10, 0.7), np.full(10, 0.99)])
    assert expected_calibration_error(two_bins, np.concatenate([right, right])) == pytest.approx(0.29 / 2)


def test_the_interval_is_wilsons() -> None:
    share = Share.of(50, 100)
    assert (share.low, share.high) == (pytest.approx(0.4038, abs=1e-4), pytest.approx(0.5962, abs=1e-4))
    assert Share.of(10, 10).high == 1
    assert Share.of(0, 10).low == 0


def test_large_logits_do_not_overflow() -> None:
    np.testing.assert_allclose(softmax(np.array([[1e4, 0.0, -1e4]])), [[1, 0, 0]])
