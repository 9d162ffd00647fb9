"""The curve of random search is the mean over all ways to draw m networks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regnet_deploy.analysis.random_search import search_curve


@given(st.lists(st.integers(200, 600), min_size=1, max_size=8).map(lambda e: np.array(e) / 10))
def test_it_is_the_mean_and_deviation_over_every_draw(errors):
    curve = search_curve(errors)
    for m in range(1, len(errors) + 1):
        best = [min(draw) for draw in itertools.combinations(errors, m)]
        assert curve.expected[m - 1] == pytest.approx(np.mean(best))
        assert curve.deviation[m - 1] == pytest.approx(np.std(best), abs=1e-6)


def test_it_agrees_with_drawing():
    draw = np.random.default_rng(0)
    errors = draw.normal(40, 3, 300)
    curve = search_curve(errors)
    for m in (1, 5, 32):
        best = draw.permuted(np.tile(errors, (4000, 1)), axis=1)[:, :m].min(axis=1)
        assert abs(best.mean() - curve.expected[m - 1]) < 5 * curve.deviation[m - 1] / np.sqrt(4000)
        assert best.std() == pytest.approx(curve.deviation[m - 1], rel=0.1)


@given(st.integers(1, 200), st.integers(0, 50))
def test_it_falls_from_the_mean_to_the_minimum(n, seed):
    errors = np.random.default_rng(seed).uniform(20, 60, n)
    curve = search_curve(errors)
    assert curve.expected[0] == pytest.approx(errors.mean())
    assert curve.deviation[0] == pytest.approx(errors.std(), abs=1e-6)
    assert curve.expected[-1] == pytest.approx(errors.min())
    assert curve.deviation[-1] == pytest.approx(0, abs=1e-6)
    assert (np.diff(curve.expected) <= 1e-9).all()


def test_equal_errors_give_a_flat_line():
    curve = search_curve(np.full(50, 37.5))
    assert curve.expected.tolist() == [37.5] * 50
    assert curve.deviation.tolist() == [0] * 50
