"""Rank correlations are scipy's, on the population and on every bootstrap sample."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from regnet_deploy.analysis.rank_correlation import _resampled, has_rank_columns, rank_correlations
from regnet_deploy.errors import UsageError


@settings(deadline=None, max_examples=25)
@given(st.integers(3, 12), st.integers(0, 10_000))
def test_bootstrap_coefficients_are_those_of_the_drawn_networks(n, seed):
    draw = np.random.default_rng(seed)
    x, y = draw.integers(0, 5, n).astype(float), draw.integers(0, 5, n).astype(float)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=6)
    expected = []
    for count in counts:
        drawn_x, drawn_y = np.repeat(x, count), np.repeat(y, count)
        if np.ptp(drawn_x) > 0 and np.ptp(drawn_y) > 0:
            rho, tau = stats.spearmanr(drawn_x, drawn_y).statistic, stats.kendalltau(drawn_x, drawn_y).statistic
            expected.append((rho, tau))
    made = _resampled(x, y, 6, seed)
    assert pytest.approx(np.array(expected).reshape(-1, 2), abs=1e-9) == made.T


def test_coefficients_and_p_values_are_scipys():
    draw = np.random.default_rng(3)
    error = draw.normal(40, 3, 80)
    score = -error + draw.normal(0, 3, 80)
    made = rank_correlations("score", score, error)
    assert made.spearman.value == pytest.approx(stats.spearmanr(score, error).statistic)
    assert made.spearman.p_value == pytest.approx(stats.spearmanr(score, error).pvalue)
    assert made.kendall.value == pytest.approx(stats.kendalltau(score, error).statistic)
    assert made.kendall.p_value == pytest.approx(stats.kendalltau(score, error).pvalue)
    for coefficient in (made.spearman, made.kendall):
        assert -1 <= coefficient.low < coefficient.value < coefficient.high < 0
    assert made == rank_correlations("score", score, error)


def test_a_perfect_score_is_minus_one_without_doubt():
    made = rank_correlations("score", np.arange(20.0), 50 - np.arange(20.0))
    for coefficient in (made.spearman, made.kendall):
        assert (coefficient.value, coefficient.low, coefficient.high) == pytest.approx((-1, -1, -1))


def test_the_interval_of_unrelated_numbers_holds_zero():
    draw = np.random.default_rng(0)
    made = rank_correlations("noise", draw.normal(size=200), draw.normal(size=200))
    assert made.spearman.low < 0 < made.spearman.high
    assert made.kendall.low < 0 < made.kendall.high


def test_networks_without_a_score_are_left_out():
    score, error = np.array([1.0, np.nan, 3.0, 2.0]), np.array([5.0, 0.0, 3.0, 4.0])
    made = rank_correlations("score", score, error)
    assert (made.n, made.spearman.value) == (3, pytest.approx(-1))


@pytest.mark.parametrize(
    ("score", "error"),
    [([1, 2], [1, 2]), ([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [4, 4, 4]), ([1, np.nan, np.nan], [1, 2, 3]), ([], [])],
)
def test_what_ranks_nothing_is_refused(score, error):
    score, error = np.array(score, dtype=float), np.array(error, dtype=float)
    assert not has_rank_columns(score, error)
    with pytest.raises(UsageError, match="no rank correlation of score"):
        rank_correlations("score", score, error)
