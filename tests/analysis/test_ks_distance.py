"""The distance of two populations is the greatest difference of their EDFs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regnet_deploy.analysis.edf import ks_distance, pairwise_distances

ERRORS = st.lists(st.integers(20, 60).map(float), min_size=1, max_size=25).map(np.array)


@given(ERRORS, ERRORS)
def test_statistic_is_the_greatest_difference_and_better_has_more_networks_there(one, other):
    d = ks_distance("one", one, "other", other)
    shares = {e: np.mean(one <= e) - np.mean(other <= e) for e in np.concatenate([one, other])}
    assert d.statistic == pytest.approx(max(map(abs, shares.values())))
    assert 0 <= d.p_value <= 1
    if d.statistic == 0:
        assert d.better is None
    else:
        assert abs(shares[d.error]) == pytest.approx(d.statistic)
        assert d.better == ("one" if shares[d.error] > 0 else "other")


def test_populations_apart_differ_wholly_with_the_exact_p_value():
    d = ks_distance("low", np.array([1.0, 2.0, 3.0]), "high", np.array([4.0, 5.0, 6.0]))
    assert (d.statistic, d.better) == (1, "low")
    assert d.p_value == pytest.approx(2 / 20)  # of the C(6, 3) orders two are wholly apart


def test_every_pair_is_compared_once():
    pairs = pairwise_distances(["a", "b", "c"], [np.array([1.0, 2.0])] * 3)
    assert [(d.first, d.second) for d in pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert all(d.statistic == 0 and d.p_value == 1 for d in pairs)
