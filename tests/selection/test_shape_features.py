"""Shapes say how a network differs from the published ones of its MACs, whatever those are."""

from __future__ import annotations

import numpy as np
import pytest

from regnet_deploy.selection.shape_features import REGRESSORS, SHAPE, StageArrays, fit_baseline, regressors
from regnet_deploy.space.complexity import network_complexity
from regnet_deploy.space.enumeration import ConstrainedSpace, regnets_between
from regnet_deploy.space.network import Network
from regnet_deploy.space.published import baselines


@pytest.mark.parametrize("family", ["x", "y"])
def test_published_networks_are_the_baseline_on_average_and_at_every_size(family):
    networks = [entry.network for entry in baselines(family)]
    shapes = fit_baseline(family).shapes(StageArrays.of_networks(networks))
    assert shapes.mean(axis=0) == pytest.approx(np.zeros(len(SHAPE)), abs=1e-12)
    ln_f = np.log(StageArrays.of_networks(networks).body_cost(family).macs)
    follows = np.array(list(SHAPE.values()))
    assert (shapes[:, follows].T @ (ln_f - ln_f.mean())) == pytest.approx(np.zeros(follows.sum()), abs=1e-9)
    assert np.abs(shapes).max() < 0.8  # from 200 MMACs to 32 GMACs, within a factor of about 2


@pytest.mark.parametrize("family", ["x", "y"])
def test_the_body_is_the_network_without_its_head(family):
    network = baselines(family)[2].network
    counted = network_complexity(network, 224, 1000)
    body = StageArrays.of_networks([network]).body_cost(family)
    for whole, head, part in zip(counted.total, counted.head, body, strict=True):
        assert whole - head == part[0]


def test_what_each_number_is():
    network = Network((2, 2, 4, 8), (32, 64, 128, 256), (8, 8, 16, 16), (1.0, 1.0, 2.0, 2.0))
    baseline = fit_baseline("x")
    stages = StageArrays.of_networks([network])
    shape = dict(zip(SHAPE, baseline.shapes(stages)[0], strict=True))
    intercept = dict(zip(SHAPE, baseline.intercept, strict=True))
    assert shape["depth"] == pytest.approx(np.log(16) - intercept["depth"])
    assert shape["width growth"] == pytest.approx(np.log(2) - intercept["width growth"])
    assert shape["bottleneck"] == pytest.approx(12 / 16 * np.log(2))
    slope = dict(zip(SHAPE, baseline.slope, strict=True))
    ln_f = float(np.log(stages.body_cost("x").macs[0]))
    expected = (4 * np.log(8) + 12 * np.log(16)) / 16 - intercept["group width"] - slope["group width"] * ln_f
    assert shape["group width"] == pytest.approx(expected)


def test_candidates_have_the_shapes_of_their_networks():
    rows = regnets_between(0.398e9, 0.402e9, ConstrainedSpace("x"), w_m_step=0.1)
    ones = (1.0,) * 4
    networks = [
        Network(tuple(d), tuple(w), tuple(g), ones)
        for d, w, g in zip(rows.depths.tolist(), rows.widths.tolist(), rows.group_widths.tolist(), strict=True)
    ]
    baseline = fit_baseline("x")
    assert baseline.shapes(StageArrays.of_population(rows)) == pytest.approx(
        baseline.shapes(StageArrays.of_networks(networks))
    )


def test_regressors_are_the_shape_and_the_square_of_its_depth():
    shapes = np.arange(12.0).reshape(2, 6)
    made = dict(zip(REGRESSORS, regressors(shapes).T, strict=True))
    assert (made["depth squared"] == made["depth"] ** 2).all()
    assert list(made["activations"]) == [5, 11]
