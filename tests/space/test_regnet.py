"""The parameterization generates what the paper published and refuses what is no RegNet."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from regnet_deploy.errors import UsageError
from regnet_deploy.space.network import Network
from regnet_deploy.space.published import published_networks
from regnet_deploy.space.regnet import RegNet, block_levels, fit_groups, level_widths

GENERATED = [
    p for p in published_networks() if p.w_a is not None and ("pycls" in p.rounding or p.rounding == "timm round()")
]


@pytest.mark.parametrize("entry", GENERATED, ids=[f"{p.name}@{p.resolution}-{i}" for i, p in enumerate(GENERATED)])
def test_published_parameters_generate_the_published_stages(entry):
    network = RegNet(entry.d, entry.w_0, entry.w_a, entry.w_m, entry.g, family=entry.family).network()
    assert network == entry.network


def test_group_width_shrinks_to_a_narrower_stage():
    network = RegNet(23, 80, 49.56, 2.88, 120).network()  # RegNetX-8.0GF
    assert network.widths == (80, 240, 720, 1920)
    assert network.group_widths == (80, 120, 120, 120)


@given(
    widths=st.lists(st.integers(1, 512).map(lambda n: 8 * n), min_size=1, max_size=5),
    g=st.sampled_from([1, 2, 4, 8, 16, 24, 40, 64, 112]),
    b=st.sampled_from([0.25, 0.5, 1.0, 2.0, 4.0]),
)
def test_fitted_widths_are_divided_by_their_groups_and_stay_near(widths, g, b):
    fitted, groups = fit_groups(widths, g, b)
    inner = np.round(fitted / b).astype(int)
    assert (inner % groups == 0).all()
    assert (groups <= g).all()
    if b >= 1:
        assert (np.abs(inner - np.asarray(widths) / b) <= np.maximum(1, groups)).all()


@given(
    d=st.integers(4, 40),
    w_0=st.integers(1, 32).map(lambda n: 8 * n),
    w_a=st.floats(8, 256),
    w_m=st.floats(1.5, 3.0),
)
def test_levels_rise_from_zero_and_widths_with_them(d, w_0, w_a, w_m):
    levels = block_levels(d, w_0, w_a, w_m)
    assert levels[0] == 0
    assert (np.diff(levels) >= 0).all()
    assert (np.diff(level_widths(w_0, w_m, levels)) >= 0).all()
    try:
        network = RegNet(d, w_0, w_a, w_m, 8).network()
    except UsageError:
        assume(False)
    assert sum(network.depths) == d
    assert Network.from_json(network.to_json()) == network


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"w_0": 20}, "w_0 must be a positive multiple of 8, got 20"),
        ({"w_m": 1.0}, "w_m above 1"),
        ({"w_a": -1.0}, "w_a must be 0 or more"),
        ({"family": "z"}, "family must be x or y, got z"),
        ({"d": 0}, "d and g must be 1 or more"),
    ],
)
def test_parameters_outside_the_parameterization_are_refused(wrong, said):
    with pytest.raises(UsageError, match=said):
        RegNet(**{"d": 16, "w_0": 48, "w_a": 27.89, "w_m": 2.09, "g": 8, **wrong})


def test_a_line_that_skips_a_level_is_no_regnet():
    with pytest.raises(UsageError, match="skip a level"):
        RegNet(12, 8, 200.0, 2.0, 8).network()


def test_a_network_whose_groups_do_not_divide_is_refused():
    with pytest.raises(UsageError, match="bottleneck width 30 is not a multiple of its group width 8"):
        Network((1,), (30,), (8,), (1.0,))
