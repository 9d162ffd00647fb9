"""e_fit tells quantized lines from other networks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regnet_deploy.analysis.line_fit import W_0, W_A, W_M, fit_line, fit_lines
from regnet_deploy.space.network import Network
from regnet_deploy.space.published import baselines
from regnet_deploy.space.regnet import block_levels, level_widths


def network(depths, widths):
    return Network(tuple(depths), tuple(widths), (1,) * len(depths), (1.0,) * len(depths))


def test_the_grid_is_the_one_that_is_documented():
    assert (W_0[0], W_0[-1], len(W_0)) == (8, 256, 32)
    assert W_A[[0, -1]] == pytest.approx([1, 256])
    assert len(W_A) == 64
    assert (W_M[0], W_M[-1], len(W_M)) == (1.5, 3.0, 31)


@pytest.mark.parametrize(("depths", "e_fit"), [((3, 4, 6, 3), 0.0825), ((3, 4, 23, 3), 0.1050)])
def test_resnets(depths, e_fit):
    assert fit_line(network(depths, (256, 512, 1024, 2048))).e_fit == pytest.approx(e_fit, abs=5e-5)


@pytest.mark.parametrize("family", ["x", "y"])
def test_published_regnets_are_near_to_lines(family):
    inside = [p for p in baselines(family) if p.w_0 <= W_0[-1]]
    assert len(inside) == {"x": 11, "y": 12}[family]
    assert all(0.005 < fit.e_fit < 0.085 for fit in fit_lines([p.network for p in inside]))


def test_a_published_regnet_beyond_the_grid_fits_less():
    (beyond,) = (p for p in baselines("x") if p.w_0 > W_0[-1])
    assert beyond.name == "RegNetX-32GF"
    assert fit_line(beyond.network).e_fit == pytest.approx(0.0927, abs=5e-5)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 30), st.integers(0, 31), st.integers(0, 63), st.integers(0, 30))
def test_a_line_of_the_grid_fits_exactly(d, i, j, k):
    w_0, w_a, w_m = int(W_0[i]), float(W_A[j]), float(W_M[k])
    widths = level_widths(w_0, w_m, block_levels(d, w_0, w_a, w_m)).tolist()
    stages = [(width, len(list(blocks))) for width, blocks in itertools.groupby(widths)]
    made = network([depth for _, depth in stages], [width for width, _ in stages])
    fit = fit_line(made)
    assert fit.e_fit == pytest.approx(0, abs=1e-12)
    again = level_widths(fit.w_0, fit.w_m, block_levels(d, fit.w_0, fit.w_a, fit.w_m))
    assert again.tolist() == widths


def test_e_fit_is_the_mean_log_ratio_of_the_fitted_line():
    made = network((2, 5, 4, 3), (128, 24, 400, 72))
    fit = fit_line(made)
    predicted = level_widths(fit.w_0, fit.w_m, block_levels(14, fit.w_0, fit.w_a, fit.w_m))
    assert fit.e_fit == pytest.approx(np.abs(np.log(predicted / np.array(made.block_widths()))).mean())
    assert fit.e_fit > 0.3


def test_no_point_of_the_grid_is_better():
    made = network((1, 2, 3), (40, 200, 88))
    observed = np.array(made.block_widths())
    least = min(
        np.abs(np.log(level_widths(w_0, w_m, block_levels(6, w_0, w_a, w_m)) / observed)).mean()
        for w_0 in W_0[::2].tolist()
        for w_a in W_A[::6].tolist()
        for w_m in W_M[::6].tolist()
    )
    assert fit_line(made).e_fit <= least + 1e-12


def test_beyond_the_grid_the_distance_is_what_is_missing():
    assert fit_line(network((1,), (512,))).e_fit == pytest.approx(np.log(2))


def test_networks_keep_their_order_and_one_shape_is_one_fit():
    wide, narrow = network((2, 2), (64, 128)), network((3,), (24,))
    fits = fit_lines([wide, narrow, wide])
    assert fits[0] == fits[2] == fit_line(wide)
    assert fits[1] == fit_line(narrow)
    assert fit_lines([]) == ()
