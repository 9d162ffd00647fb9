"""A refined space keeps the ranges of the best networks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from regnet_deploy.analysis.best_range import best_range, refined_ranges, refined_space
from regnet_deploy.errors import UsageError
from regnet_deploy.populations.trials import Trials
from regnet_deploy.space.known_spaces import known_spaces

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
