"""The solver finds all networks of a budget and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regnet_deploy.errors import UsageError
from regnet_deploy.space.complexity import NetworkConfig, complexity
from regnet_deploy.space.enumeration import Bounds, ConstrainedSpace, regnets_between, regnets_nearest
from regnet_deploy.space.published import baselines
from regnet_deploy.space.regnet import RegNet


def stages(population, rows=None):
    rows = range(len(population)) if rows is None else rows
    return {
        (
            tuple(population.depths[i].tolist()),
            tuple(population.widths[i].tolist()),
            tuple(population.group_widths[i].tolist()),
        )
        for i in rows
    }


@pytest.mark.parametrize("family", ["x", "y"])
@pytest.mark.parametrize("gmacs", [0.2, 0.4, 1.6, 8.0, 12.0, 32.0])
def test_every_row_meets_budget_and_bounds_and_comes_from_its_parameters(family, gmacs):
    population = regnets_between(gmacs * 0.99e9, gmacs * 1.01e9, ConstrainedSpace(family))
    counts = complexity(
        population.depths,
        population.widths,
        population.group_widths,
        1,
        NetworkConfig(resolution=224, se_ratio=0.25 if family == "y" else 0.0),
    ).total
    np.testing.assert_array_equal(counts.macs, population.macs)
    np.testing.assert_array_equal(counts.parameters, population.parameters)
    np.testing.assert_array_equal(counts.activations, population.activations)
    giga = counts.macs / 1e9
    assert (np.abs(giga / gmacs - 1) <= 0.01 + 1e-12).all()
    assert (counts.parameters < (3 + 5.5 * giga) * 1e6).all()
    assert (counts.activations < 6.5 * np.sqrt(giga) * 1e6).all()
    assert ((population.d >= 12) & (population.d <= 28)).all()
    rows = population.distinct_rows(np.zeros(len(population)))
    assert len(rows) == len(stages(population))
    if gmacs >= 0.4:
        assert len(rows) >= 1000
    for i in np.random.default_rng(0).choice(len(population), 50):
        slope = (population.w_a_low[i] + population.w_a_high[i]) / 2
        regnet = RegNet(
            int(population.d[i]),
            int(population.w_0[i]),
            slope,
            float(population.w_m[i]),
            int(population.g[i]),
            family=family,
        )
        assert stages(population, [i]) == {
            (regnet.network().depths, regnet.network().widths, regnet.network().group_widths)
        }


@pytest.mark.parametrize("entry", [*baselines("x"), *baselines("y")], ids=lambda p: p.name)
def test_every_published_network_is_among_the_candidates_for_its_macs(entry):
    bounds = Bounds(activations=None) if entry.name == "RegNetY-6.4GF" else Bounds()  # its 16.41 M miss the 16.39 M
    population = regnets_between(entry.macs, entry.macs, ConstrainedSpace(entry.family, bounds=bounds))
    assert (entry.network.depths, entry.network.widths, entry.network.group_widths) in stages(population)


@settings(max_examples=40, deadline=None)
@given(
    d=st.integers(12, 28),
    w_0=st.integers(1, 16).map(lambda n: 8 * n),
    w_a=st.integers(80, 1200).map(lambda n: n / 10),
    w_m=st.integers(2000, 3000).map(lambda n: n / 1000),
    g=st.sampled_from([1, 2, 4, 8, 16, 24, 48, 120]),
    family=st.sampled_from(["x", "y"]),
)
def test_no_network_of_the_lattice_is_left_out(d, w_0, w_a, w_m, g, family):
    try:
        network = RegNet(d, w_0, w_a, w_m, g, family=family).network()
    except UsageError:
        return
    if len(network.depths) != 4:
        return
    macs = int(
        complexity(
            network.depths,
            network.widths,
            network.group_widths,
            1,
            NetworkConfig(resolution=224, se_ratio=network.se_ratio),
        ).total.macs
    )
    narrow = Bounds(w_0=(w_0, w_0), g=(g, g), w_m=(w_m, w_m), parameters=None, activations=None)
    found = regnets_between(macs, macs, ConstrainedSpace(family, bounds=narrow))
    assert (network.depths, network.widths, network.group_widths) in stages(found)


def test_bounds_hold_at_224_whatever_the_resolution():
    population = regnets_between(0.0158e9, 0.0162e9, ConstrainedSpace("y", resolution=32, stem_stride=1, classes=10))
    there = complexity(
        population.depths, population.widths, population.group_widths, 1, NetworkConfig(resolution=224, se_ratio=0.25)
    ).total
    np.testing.assert_array_equal(there.macs, population.reference_macs)
    assert (there.parameters < (3 + 5.5 * there.macs / 1e9) * 1e6).all()
    here = complexity(
        population.depths,
        population.widths,
        population.group_widths,
        1,
        NetworkConfig(resolution=32, se_ratio=0.25, stem_stride=1, classes=10),
    ).total
    np.testing.assert_array_equal(here.macs, population.macs)


def test_group_multiple_holds_in_every_stage():
    population = regnets_between(3.96e9, 4.04e9, ConstrainedSpace("x", bounds=Bounds(g_multiple=16)))
    assert len(population)
    assert (population.group_widths % 16 == 0).all()


def test_one_group_width_need_not_lie_on_the_lattice():
    population = regnets_between(3.9e9, 4.1e9, ConstrainedSpace("x", bounds=Bounds(g=(20, 20))))
    assert set(population.g) == {20}


@pytest.mark.parametrize("gmacs", [1e-6, 1e9])
def test_the_nearest_to_an_absurd_budget_is_the_end_of_the_space(gmacs):
    nearest = regnets_nearest(gmacs * 1e9, ConstrainedSpace("x"))
    beyond = nearest.macs[0] * (0.5 if gmacs < 1 else 1.2)
    span = sorted((beyond, nearest.macs[0] - 1 if gmacs < 1 else beyond * 1.5))
    assert not len(regnets_between(*span, ConstrainedSpace("x")))


def test_an_empty_space_has_no_nearest():
    assert not len(regnets_nearest(4e9, ConstrainedSpace("x", bounds=Bounds(activations=0.01, g=(8, 8)))))


def test_group_widths_that_cannot_be_are_refused():
    with pytest.raises(UsageError, match="no group width from 3 to 5 is 1, 2, 4 or a multiple of 8, and of 8"):
        Bounds(g=(3, 5), g_multiple=8)


@pytest.mark.parametrize(
    "wrong",
    [
        {"d": (28, 12)},
        {"d": (4, 64)},
        {"w_m": (0.5, 2.0)},
        {"g": (0, 8)},
        {"g_multiple": 0},
        {"activations": 0.0},
        {"parameters": (float("nan"), 1.0)},
    ],
)
def test_bounds_that_are_empty_or_impossible_are_refused(wrong):
    with pytest.raises(UsageError, match="must be"):
        Bounds(**wrong)


def test_w_m_off_its_lattice_is_refused():
    with pytest.raises(UsageError, match="w_m has three decimals at most"):
        Bounds(w_m=(2.0004, 2.0004))


def test_bounds_too_wide_to_be_searched_are_refused():
    wide = Bounds(d=(4, 48), w_m=(1.1, 4.0), parameters=None, activations=None)
    with pytest.raises(UsageError, match="more than 5,000,000 solutions: narrow the bounds"):
        regnets_between(7.92e9, 8.08e9, ConstrainedSpace("y", bounds=wide))
