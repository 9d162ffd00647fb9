"""Trends are least squares, scores are log-densities, left-out networks rank far above chance; expected errors."""

from __future__ import annotations

import numpy as np
import pytest

from regnet_deploy.selection.trends import (
    PARAMETERS,
    expected_error,
    fit_error,
    fit_trends,
    leave_one_out_errors,
    score_population,
)
from regnet_deploy.space.enumeration import Bounds, ConstrainedSpace, regnets_between
from regnet_deploy.space.published import baselines
from regnet_deploy.space.regnet import RegNet


def parameters(entry):
    return np.array([entry.d, entry.w_0, entry.w_a, entry.w_m, entry.g], dtype=float)


@pytest.mark.parametrize("family", ["x", "y"])
def test_depth_and_multiplier_stay_and_the_others_grow_with_macs(family):
    trends = fit_trends(baselines(family))
    slopes = dict(zip(PARAMETERS, trends.slope, strict=True))
    assert slopes["d"] == slopes["w_m"] == 0
    assert min(slopes["w_0"], slopes["w_a"], slopes["g"]) > 0
    depth, multiplier = np.exp(trends.intercept[[0, 3]])
    assert 15 < depth < 22  # about 20 blocks at every budget, and w_m about 2.5, says the paper
    assert 2.1 < multiplier < 2.6


def test_the_score_is_the_sum_of_five_normal_log_densities():
    networks = baselines("x")
    trends = fit_trends(networks)
    entry = networks[3]
    z = (np.log(parameters(entry)) - trends.intercept - trends.slope * np.log(entry.macs / 1e9)) / trends.spread
    density = np.exp(-(z**2) / 2) / (trends.spread * np.sqrt(2 * np.pi))
    assert trends.log_likelihood(parameters(entry), entry.macs) == pytest.approx(np.log(density).sum())


def test_the_slope_that_is_reported_makes_the_network_that_is_scored():
    population = regnets_between(0.396e9, 0.404e9, ConstrainedSpace("y"))
    trends = fit_trends(baselines("y"))
    scores, w_a = score_population(trends, population)
    rows = population.distinct_rows(scores)
    assert (np.diff(scores[rows]) <= 0).all()
    for i in rows[:: len(rows) // 200]:
        network = RegNet(
            int(population.d[i]), int(population.w_0[i]), float(w_a[i]), float(population.w_m[i]), int(population.g[i])
        ).network()
        assert network.depths == tuple(population.depths[i])
        assert network.widths == tuple(population.widths[i])


def test_networks_left_out_of_the_fit_rank_far_above_chance():
    percentiles = []
    for family in "xy":
        networks = baselines(family)
        for left_out in networks[:6]:  # up to 3.2 GMACs; benchmarks/ranking.py does all
            trends = fit_trends([p for p in networks if p is not left_out])
            population = regnets_between(
                left_out.macs * 0.99, left_out.macs * 1.01, ConstrainedSpace(family, bounds=Bounds()), w_m_step=0.005
            )
            scores, _ = score_population(trends, population)
            scores = scores[population.distinct_rows(scores)]
            own = trends.log_likelihood(parameters(left_out), left_out.macs)
            percentiles.append(100 * float((scores > own).mean()))
    assert np.median(percentiles) < 25  # a random order puts half of them above 50


@pytest.mark.parametrize("family", ["x", "y"])
def test_the_curve_falls_towards_its_floor(family):
    curve = fit_error(baselines(family))
    errors = [curve.at(f * 1e9) for f in (0.2, 0.8, 4, 32)]
    assert errors == sorted(errors, reverse=True)
    assert 15 < curve.floor < errors[-1]


@pytest.mark.parametrize("family", ["x", "y"])
def test_left_out_errors_are_small_and_reported(family):
    misses = np.abs(leave_one_out_errors(baselines(family)))
    assert len(misses) == 12
    assert misses.mean() < 0.25
    assert expected_error(family, 4e9).leave_one_out_error == pytest.approx(misses.mean(), abs=0.005)


def test_beyond_the_published_sizes_is_called_extrapolated():
    assert not expected_error("x", 4e9).extrapolated
    assert not expected_error("y", 32.2e9).extrapolated
    assert expected_error("x", 100e9).extrapolated
    assert expected_error("x", 0.05e9).extrapolated
