"""The range of the best networks: Monte Carlo against the exact distribution."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import regnet_deploy.analysis.best_range as bootstrap
from regnet_deploy.analysis.best_range import best_of_samples, best_range, refined_ranges, refined_space, sample_size
from regnet_deploy.errors import UsageError
from regnet_deploy.populations.trials import Trials
from regnet_deploy.space.known_spaces import known_spaces


def exact_chances(n, m):
    """P(the network of rank i, from 0, is the best of m drawn with replacement), distinct errors."""
    i = np.arange(n)
    return ((n - i) / n) ** m - ((n - i - 1) / n) ** m


@pytest.mark.parametrize(("n", "share"), [(40, 0.25), (100, 0.05), (7, 1.0), (3, 0.25)])
def test_the_best_of_samples_follow_the_exact_distribution(n, share):
    errors = np.random.default_rng(5).permutation(n).astype(np.float64)
    repeats = 40_000
    kept = errors[best_of_samples(errors, share=share, repeats=repeats, seed=1)].astype(int)
    chances = exact_chances(n, sample_size(n, share))
    assert chances.sum() == pytest.approx(1)
    observed = np.bincount(kept, minlength=n)
    deviation = np.sqrt(repeats * chances * (1 - chances)) + 1
    assert (np.abs(observed - repeats * chances) < 5 * deviation).all()


def test_percentiles_are_those_of_the_exact_distribution():
    n, share = 200, 0.25
    errors = np.arange(n, dtype=np.float64)
    values = 1000 + 3.0 * np.arange(n)
    reached = np.cumsum(exact_chances(n, sample_size(n, share)))
    made = best_range("x", values, errors, share=share, repeats=100_000, seed=3)
    for got, share_of in ((made.low, 0.025), (made.median, 0.5), (made.high, 0.975)):
        exact = int(np.searchsorted(reached, share_of))
        assert abs((got - 1000) / 3 - exact) <= 1
    assert (made.least, made.most, made.n) == (1000, 1597, 200)


def test_of_equal_errors_each_wins_alike():
    kept = best_of_samples(np.full(4, 30.0), share=1, repeats=20_000, seed=0)
    assert (np.abs(np.bincount(kept, minlength=4) - 5000) < 5 * np.sqrt(20_000 * 3 / 16)).all()


@pytest.mark.parametrize(("n", "share", "drawn"), [(500, 0.25, 125), (100, 0.29, 29), (7, 0.25, 1), (2, 0.25, 1)])
def test_a_quarter_is_rounded_down_and_at_least_one(n, share, drawn):
    assert sample_size(n, share) == drawn


def test_percentiles_are_values_of_networks():
    draw = np.random.default_rng(0)
    b = draw.choice([1.0, 2.0, 4.0], 60)
    made = best_range("b", b, draw.normal(40, 3, 60), repeats=999)
    assert {made.low, made.median, made.high} <= {1.0, 2.0, 4.0}


def test_rows_of_unknown_value_are_left_out_before_drawing():
    errors = np.array([1.0, 2.0, 3.0, 4.0])
    values = np.array([np.nan, 20.0, np.nan, 40.0])
    made = best_range("x", values, errors, share=1, repeats=500, seed=7)
    assert made.n == 2
    assert made == best_range("x", values[[1, 3]], errors[[1, 3]], share=1, repeats=500, seed=7)


@given(st.integers(2, 60), st.integers(0, 100))
def test_the_interval_is_ordered_inside_the_population_and_repeats_with_its_seed(n, seed):
    draw = np.random.default_rng(seed)
    values, errors = draw.uniform(8, 64, n), draw.normal(40, 3, n)
    made = best_range("x", values, errors, repeats=200, seed=seed)
    assert made.least <= made.low <= made.median <= made.high <= made.most
    assert made == best_range("x", values, errors, repeats=200, seed=seed)


def test_blocks_of_draws_cover_all_repeats(monkeypatch):
    monkeypatch.setattr(bootstrap, "_MAX_ROWS", 100)
    kept = best_of_samples(np.arange(40.0), repeats=95, seed=2)
    assert len(kept) == 95
    assert kept.max() < 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0}, "bootstrap sample"),
        ({"share": 1.5}, "bootstrap sample"),
        ({"share": float("nan")}, "bootstrap sample"),
        ({"repeats": 0}, "at least 1 repeat"),
    ],
)
def test_impossible_draws_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        best_range("x", np.ones(3), np.ones(3), **options)


def test_a_column_without_values_is_refused():
    with pytest.raises(UsageError, match="g is not known"):
        best_range("g", np.full(3, np.nan), np.ones(3))


# A refined space keeps the ranges of the best networks.


REGNETX = known_spaces()["RegNetX"]


def population(**columns):
    draw = np.random.default_rng(0)
    g = draw.choice([1.0, 2.0, 4.0, 8.0, 16.0], 100)
    error = 40 - np.log2(g) + draw.normal(0, 0.1, 100)
    return Trials("space", error, {"macs": np.ones(100), "g": g, **columns}, drawn=("w_m", "g"))


def test_ranges_are_those_of_the_bootstrap_for_what_the_space_draws():
    w_m = np.random.default_rng(1).uniform(1.5, 3, 100)
    trials = population(w_m=w_m)
    made = refined_ranges(REGNETX, trials, repeats=500, seed=4)
    assert list(made) == ["w_m", "g"]
    assert made["g"] == (16, 16, 16)
    expected = best_range("w_m", w_m, trials.error, repeats=500, seed=4)
    assert made["w_m"] == (expected.low, expected.median, expected.high)


def test_columns_that_the_source_does_not_know_are_left_out():
    assert list(refined_ranges(REGNETX, population(w_m=np.full(100, np.nan)))) == ["g"]
    assert list(refined_ranges(REGNETX, population())) == ["g"]


def test_a_column_that_the_space_does_not_draw_is_left_alone():
    trials = population(d_9=np.ones(100))
    assert list(refined_ranges(REGNETX, trials)) == ["g"]


def test_a_population_of_another_space_is_refused():
    with pytest.raises(UsageError, match="space was not drawn from AnyNetX_A, which does not draw w_m, g"):
        refined_ranges(known_spaces()["AnyNetX_A"], population())


def test_nothing_drawn_is_nothing_to_refine():
    with pytest.raises(UsageError, match="none of the columns that RegNetX draws"):
        refined_ranges(REGNETX, Trials("space", np.ones(3), {"macs": np.ones(3)}))


def test_the_space_is_narrowed_to_the_ranges_and_stages_are_related():
    made = refined_space(REGNETX, population(), "next", repeats=200)
    assert made.name == "next"
    assert made.group_width.values == (16,)
    assert made.w_m == REGNETX.w_m
    columns = {f"b_{i}": np.tile([1.0, 2.0, 2.0, 4.0], 25) for i in range(1, 5)}
    table = replace(population(**columns), drawn=())
    a = refined_space(known_spaces()["AnyNetX_A"], table, "b", [("bottleneck", "same")], repeats=200)
    assert a.bottleneck.across == "same"
    assert a.degrees_of_freedom == 13
