"""The error EDF is the share of networks below an error, with or without the spread of complexity."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regnet_deploy.analysis.edf import error_distribution, ks_distance, normalized_distributions, pairwise_distances

ERRORS = st.lists(st.floats(0, 100, width=32), min_size=1, max_size=40).map(lambda e: np.array(e, dtype=np.float64))


def test_share_below_counts_only_smaller_errors():
    edf = error_distribution(np.array([40.0, 30.0, 30.0, 50.0]))
    assert edf.share_below([29, 30, 30.01, 40, 50, 51]).tolist() == [0, 0, 0.5, 0.5, 0.75, 1]
    assert (edf.n, edf.minimum, edf.mean, edf.median) == (4, 30, 37.5, 35)


@given(ERRORS, st.floats(0, 100))
def test_share_below_is_the_definition(errors, e):
    assert error_distribution(errors).share_below(e) == pytest.approx(np.mean(errors < e), abs=1e-12)


@given(ERRORS)
def test_mean_is_the_area_above_the_curve(errors):
    edf = error_distribution(errors)
    edges = np.concatenate([[0.0], edf.errors, [100.0]])
    middle = (edges[1:] + edges[:-1]) / 2
    area = float(np.diff(edges) @ (1 - edf.share_below(middle)))
    assert edf.mean == pytest.approx(area, abs=1e-9)


@given(ERRORS)
def test_median_of_equal_weights_is_the_usual_one(errors):
    assert error_distribution(errors).median == pytest.approx(np.median(errors), abs=1e-9)


def test_effective_n_of_equal_weights_is_n():
    assert error_distribution(np.arange(7.0)).effective_n == pytest.approx(7)


def test_every_shared_bin_has_the_same_mass():
    # Two bins: 0..5 with three networks, 5..10 with one.
    normalized = normalized_distributions([np.array([9.0, 6.0, 3.0, 1.0])], [np.array([0.0, 1.0, 2.0, 10.0])], bins=2)
    (weighed,) = normalized.distributions
    assert normalized.edges.tolist() == [0, 5, 10]
    assert weighed.errors.tolist() == [1, 3, 6, 9]
    assert weighed.weights == pytest.approx([1 / 2, 1 / 6, 1 / 6, 1 / 6])
    assert weighed.mean == pytest.approx((1 + 6) / 2)
    assert weighed.median == pytest.approx(2)
    assert weighed.effective_n == pytest.approx(3)


def test_bins_are_common_and_count_only_where_all_populations_are():
    first = (np.array([10.0, 20.0, 30.0]), np.array([0.0, 5.0, 10.0]))
    second = (np.array([12.0, 32.0, 99.0]), np.array([1.0, 9.0, 40.0]))
    normalized = normalized_distributions([first[0], second[0]], [first[1], second[1]], bins=3)
    # Shared range 1 .. 10, bins [1, 4), [4, 7), [7, 10]: the first population is in the 2nd and 3rd, the other in the
    # 1st and 3rd.
    assert normalized.edges == pytest.approx([1, 4, 7, 10])
    assert normalized.shared.tolist() == [False, False, True]
    one, other = normalized.distributions
    assert (one.errors.tolist(), one.weights.tolist()) == ([30], [1])
    assert (other.errors.tolist(), other.weights.tolist()) == ([32], [1])


def test_populations_without_a_shared_bin_have_none():
    errors = [np.array([1.0, 2.0])] * 2
    assert normalized_distributions(errors, [np.array([1.0, 2.0]), np.array([3.0, 4.0])]) is None
    assert normalized_distributions(errors, [np.array([1.0, 2.0]), np.array([np.nan, np.nan])]) is None


def test_networks_of_unknown_complexity_are_left_out():
    (weighed,) = normalized_distributions([np.array([5.0, 7.0, 9.0])], [np.array([1.0, np.nan, 2.0])]).distributions
    assert weighed.errors.tolist() == [5, 9]


def test_equal_complexities_weigh_equally():
    (weighed,) = normalized_distributions([np.array([5.0, 7.0])], [np.array([3.0, 3.0])]).distributions
    assert weighed.weights.tolist() == [0.5, 0.5]


@given(st.data())
def test_normalised_weights_sum_to_one_and_bins_to_the_same(data):
    sizes = data.draw(st.lists(st.integers(2, 30), min_size=1, max_size=3))
    seed = data.draw(st.integers(0, 1000))
    draw = np.random.default_rng(seed)
    errors = [draw.uniform(20, 60, n) for n in sizes]
    costs = [draw.uniform(1, 10, n) for n in sizes]
    normalized = normalized_distributions(errors, costs, bins=4)
    if normalized is None:
        return
    for error, cost, weighed in zip(errors, costs, normalized.distributions, strict=True):
        assert weighed.weights.sum() == pytest.approx(1)
        for low, high, shared in zip(normalized.edges, normalized.edges[1:], normalized.shared, strict=False):
            inside = error[(cost >= low) & ((cost < high) | ((cost == high) & (high == normalized.edges[-1])))]
            mass = weighed.weights[np.isin(weighed.errors, inside)].sum()
            assert mass == pytest.approx(1 / normalized.shared.sum() if shared else 0)


# The distance of two populations is the greatest difference of their EDFs.


MEASURED_ERRORS = st.lists(st.integers(20, 60).map(float), min_size=1, max_size=25).map(np.array)


@given(MEASURED_ERRORS, MEASURED_ERRORS)
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
