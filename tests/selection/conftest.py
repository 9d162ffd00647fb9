"""Populations with a known truth: RegNets of a budget, spread over the space, with errors by a law or by chance."""

from __future__ import annotations

import numpy as np
import pytest

from regnet_deploy.populations.trials import Trials, stage_columns
from regnet_deploy.space.enumeration import ConstrainedSpace, regnets_between
from regnet_deploy.space.regnet import RegNet


@pytest.fixture(scope="session")
def population():
    """Return a function that makes trials: n RegNets at about some MACs, their errors by ``law(columns, noise)``."""

    def make(law, *, n=60, macs=0.4e9, family="x", seed=0):
        rows = regnets_between(0.97 * macs, 1.03 * macs, ConstrainedSpace(family), w_m_step=0.025)
        rows = rows.take(rows.distinct_rows(rows.w_a_low))
        draw = np.random.default_rng(seed)
        rows = rows.take(draw.choice(len(rows), n, replace=False))
        w_a = (rows.w_a_low + rows.w_a_high) / 2
        networks = tuple(
            RegNet(int(d), int(w_0), float(slope), float(w_m), int(g), family=family).network()
            for d, w_0, slope, w_m, g in zip(rows.d, rows.w_0, w_a, rows.w_m, rows.g, strict=True)
        )
        columns = {
            "macs": rows.macs,
            "parameters": rows.parameters,
            "activations": rows.activations,
            "w_0": rows.w_0,
            "w_a": w_a,
            "w_m": rows.w_m,
            "g": rows.g,
            **stage_columns(networks),
        }
        columns = {name: np.asarray(values, dtype=np.float64) for name, values in columns.items()}
        return Trials("made up", law(columns, draw.normal(size=n)), columns, networks)

    return make


def deeper_is_better(columns, noise):
    return 40 - 6 * np.log(columns["d"] / 20) + 0.1 * noise


def nothing_matters(columns, noise):
    return 40 + noise


def wide_groups_are_better(columns, noise):
    return 40 - np.log2(columns["g"]) + 0.1 * noise


@pytest.fixture
def laws():
    """Return the laws by name."""
    return {"deep": deeper_is_better, "noise": nothing_matters, "groups": wide_groups_are_better}
