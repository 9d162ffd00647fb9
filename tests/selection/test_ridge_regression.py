"""Closed forms are what refitting gives, and left-out predictions never saw what they predict."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from regnet_deploy.selection import ridge_regression
from regnet_deploy.selection.ridge_regression import (
    NO_PENALTY,
    PENALTIES,
    fit_ridge,
    leave_one_out,
    rank_correlation,
)


def press_residuals(x, y, group, penalty):
    """The residuals in closed form by which the penalty is chosen."""
    return ridge_regression._Standardized.of(x, y, group).left_out_residuals((penalty,))[:, 0]


def rows(n=14, k=4, groups=2, seed=0):
    draw = np.random.default_rng(seed)
    x, group = draw.normal(3, [1, 2, 0.5, 5][:k], (n, k)), np.arange(n) % groups
    return x, 30 + 4 * group + x @ [0.5, -0.2, 0.0, 0.1][:k] + 0.3 * draw.normal(size=n), group


def standardized(x, group):
    z = x - np.stack([x[group == i].mean(axis=0) for i in range(group.max() + 1)])[group]
    return z / np.sqrt((z**2).mean(axis=0))


def refit(z, y, group, n, penalty):
    """Solve the normal equations with a column for each group's intercept, which is not penalized."""
    intercepts = (group[:, None] == np.arange(group.max() + 1)).astype(float)
    design = np.concatenate([intercepts, z], axis=1)
    weight = np.diag([0.0] * intercepts.shape[1] + [n * penalty] * z.shape[1])
    return np.linalg.solve(design.T @ design + weight, design.T @ y)


@pytest.mark.parametrize("penalty", [0.0, 0.01, 1.0, 100.0])
@pytest.mark.parametrize("groups", [1, 2])
def test_closed_form_residuals_are_those_of_refits_without_the_row(penalty, groups):
    x, y, group = rows(groups=groups)
    z = standardized(x, group)
    expected = []
    for i in range(len(y)):
        kept = np.arange(len(y)) != i
        coefficients = refit(z[kept], y[kept], group[kept], len(y), penalty)
        expected.append(y[i] - coefficients[group[i]] - z[i] @ coefficients[groups:])
    assert press_residuals(x, y, group, penalty) == pytest.approx(np.array(expected))


@pytest.mark.parametrize("groups", [1, 2])
def test_left_out_predictions_are_those_of_fits_that_never_saw_the_row(groups):
    x, y, group = rows(groups=groups)
    made = leave_one_out(x, y, group)
    for i in range(len(y)):
        kept = np.arange(len(y)) != i
        inner_x, inner_y, inner_group = x[kept], y[kept], group[kept]
        press = [(press_residuals(inner_x, inner_y, inner_group, p) ** 2).sum() for p in PENALTIES]
        z = standardized(inner_x, inner_group)
        coefficients = refit(z, inner_y, inner_group, len(inner_y), PENALTIES[int(np.argmin(press))])
        mine = inner_group == group[i]
        spread = np.sqrt(((inner_x - _means(inner_x, inner_group)) ** 2).mean(axis=0))
        away = (x[i] - inner_x[mine].mean(axis=0)) / spread
        assert made[i] == pytest.approx(inner_y[mine].mean() + away @ coefficients[groups:])


def _means(x, group):
    return np.stack([x[group == i].mean(axis=0) for i in range(group.max() + 1)])[group]


def test_a_row_has_no_part_in_its_own_prediction():
    x, y, group = rows()
    changed = y.copy()
    changed[3] += 1000
    assert leave_one_out(x, changed, group)[3] == leave_one_out(x, y, group)[3]


def test_without_regressors_the_prediction_is_the_mean_of_the_others():
    x, y, group = rows(groups=1)
    assert leave_one_out(x[:, :0], y, group, NO_PENALTY) == pytest.approx((y.sum() - y) / (len(y) - 1))


def test_without_a_penalty_it_is_least_squares():
    x, y, group = rows(groups=1)
    design = np.concatenate([np.ones((len(y), 1)), x], axis=1)
    expected = np.linalg.lstsq(design, y, rcond=None)[0]
    made = fit_ridge(x, y, group, NO_PENALTY)
    assert made.coefficients == pytest.approx(expected[1:])
    assert made.predict(x, group) == pytest.approx(design @ expected)


@pytest.mark.parametrize("penalties", [NO_PENALTY, PENALTIES])
def test_a_regressor_of_one_row_alone_says_nothing_of_that_row(penalties):
    x, y = np.zeros((12, 1)), np.arange(12.0)
    x[5] = 1
    assert leave_one_out(x, y, np.zeros(12, dtype=int), penalties)[5] == pytest.approx((y.sum() - 5) / 11)


def test_the_level_of_a_group_is_not_taken_for_an_effect():
    draw = np.random.default_rng(1)
    x, group = draw.normal(size=(40, 1)), np.repeat([0, 1], 20)
    x += 5 * group[:, None]  # the second sweep is elsewhere, and harder
    made = fit_ridge(x, 30 + 10 * group - x[:, 0], group, NO_PENALTY)
    assert made.coefficients == pytest.approx([-1])
    assert made.predict(np.array([[5.0]]), 1) - made.predict(np.array([[5.0]]), 0) == pytest.approx([10])


def test_noise_shrinks_to_the_mean():
    draw = np.random.default_rng(4)
    x, y = draw.normal(size=(40, 5)), draw.normal(size=40)
    made = fit_ridge(x, y, np.zeros(40, dtype=int))
    assert np.ptp(made.predict(x, 0)) < np.ptp(y) / 2


def test_a_regressor_that_does_not_vary_counts_for_nothing_and_bounds_what_is_known():
    x, y, group = rows(k=3)
    fixed = np.concatenate([x, np.full((len(y), 1), 0.7)], axis=1)
    made, without = fit_ridge(fixed, y, group), fit_ridge(x, y, group)
    assert made.coefficients[:3] == pytest.approx(without.coefficients)
    assert made.coefficients[3] == made.deviation[3] == 0
    assert made.covers(fixed).all()
    assert not made.covers(fixed + np.array([0, 0, 0, 0.1])).any()


@pytest.mark.parametrize("penalties", [NO_PENALTY, PENALTIES])
def test_rows_that_were_fitted_are_known_and_rows_far_from_all_are_not(penalties):
    x, y, group = rows(n=30)
    made = fit_ridge(x, y, group, penalties)
    assert made.covers(x).all()
    assert made.covers(made.center).all()
    assert not made.covers(x + 10 * x.std(axis=0)).any()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=20))
def test_the_rank_correlation_is_scipys(pairs):
    x, y = np.array(pairs, dtype=float).T
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert rank_correlation(x, y) == 0
    else:
        assert rank_correlation(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)


def test_of_many_rows_each_is_predicted_without_it():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(1200, 2))
    y = x @ np.array([1.0, -2.0]) + draw.normal(0, 0.1, 1200)
    changed = y.copy()
    changed[7] += 1000.0
    group = np.zeros(1200, dtype=np.int64)
    predicted = leave_one_out(x, y, group)
    assert np.sqrt(((predicted - y) ** 2).mean()) < 0.12
    assert leave_one_out(x, changed, group)[7] == predicted[7]
