"""A refined space keeps the ranges of the best networks."""

from __future__ import annotations

import numpy as np
import pytest

from regnet_deploy.analysis.bootstrap import best_range
from regnet_deploy.analysis.refine import refined_ranges
from regnet_deploy.errors import UsageError
from regnet_deploy.populations.trials import Trials


def population(**columns):
    draw = np.random.default_rng(0)
    g = draw.choice([1.0, 2.0, 4.0, 8.0, 16.0], 100)
    error = 40 - np.log2(g) + draw.normal(0, 0.1, 100)
    return Trials("space", error, {"macs": np.ones(100), "g": g, **columns}, drawn=("w_m", "g"))


def test_ranges_are_those_of_the_bootstrap_for_drawn_columns_only():
    w_m = np.random.default_rng(1).uniform(1.5, 3, 100)
    trials = population(w_m=w_m)
    made = refined_ranges(trials, repeats=500, seed=4)
    assert list(made) == ["w_m", "g"]
    assert made["g"] == (16, 16, 16)
    expected = best_range("w_m", w_m, trials.error, repeats=500, seed=4)
    assert made["w_m"] == (expected.low, expected.median, expected.high)


def test_columns_that_the_source_does_not_know_are_left_out():
    assert list(refined_ranges(population(w_m=np.full(100, np.nan)))) == ["g"]
    assert list(refined_ranges(population())) == ["g"]


def test_nothing_drawn_is_nothing_to_refine():
    with pytest.raises(UsageError, match="space does not say which parameters were drawn"):
        refined_ranges(Trials("space", np.ones(3), {"macs": np.ones(3)}))
