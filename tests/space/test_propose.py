"""What is drawn, before anything is counted, is of the space and as likely as the space says."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from regnet_deploy.errors import UsageError
from regnet_deploy.space.known_spaces import known_spaces
from regnet_deploy.space.ranges import Range, Values
from regnet_deploy.space.regnet import RegNet
from regnet_deploy.space.sampling import CHUNK, Band, networks_in_band, networks_of, propose
from regnet_deploy.space.spaces import DEPTHS, MAX_CHANNELS, WIDTHS, AnyNetSpace, RegNetSpace, Stages

KNOWN = known_spaces()
ANYNETS = {name: space for name, space in KNOWN.items() if isinstance(space, AnyNetSpace)}
REGNETS = {name: space for name, space in KNOWN.items() if isinstance(space, RegNetSpace)}
BAND = Band(360e6, 400e6)
SMALL = Band(10e6, 20e6, resolution=32, classes=10)


def proposed(space, seed=0, draws=CHUNK):
    return propose(space, np.random.default_rng(seed), draws)


def in_range(choice, values):
    if isinstance(choice, Values):
        return np.isin(values, choice.values).all()
    steps = values / choice.step
    return ((values >= choice.low) & (values <= choice.high) & (np.abs(steps - np.round(steps)) < 1e-6)).all()


@pytest.mark.parametrize("name", ANYNETS)
def test_stages_of_anynets_are_in_range_and_relate_as_the_space_says(name):
    space = ANYNETS[name]
    draws = proposed(space)
    drawn = {"depth": draws.depths, "width": draws.widths, "bottleneck": draws.bottlenecks}
    drawn["group_width"] = draws.group_widths
    for what, part in space.parts().items():
        rises = np.diff(drawn[what], axis=1)
        holds = {"free": rises == rises, "same": rises == 0, "rising": rises >= 0, "falling": rises <= 0}
        assert holds[part.across].all()
        assert in_range(part.choice(0), drawn[what])
        if part.across == "free" and part.degrees_of_freedom(space.stages):
            assert (rises > 0).any()
            assert (rises < 0).any()
    assert (draws.widths % 8 == 0).all()


@pytest.mark.parametrize("name", REGNETS)
def test_parameters_of_regnets_are_in_range(name):
    space = REGNETS[name]
    draws = proposed(space)
    for symbol, choice in space.parts().items():
        assert in_range(choice, draws.columns[symbol])
    if space.w_a == "w_0":
        np.testing.assert_array_equal(draws.columns["w_a"], draws.columns["w_0"])
    assert (draws.depths.sum(axis=1) == draws.columns["d"]).all()
    assert (np.diff(draws.widths, axis=1) > 0).all()


def steps_of(choice):
    """Values of a range and how likely values up to each are, by the continuous log-uniform distribution."""
    values = np.arange(round(choice.low / choice.step), round(choice.high / choice.step) + 1) * choice.step
    start = choice.low - min(choice.step, choice.low / 2)
    return values, np.log(values / start) / np.log(choice.high / start)


@pytest.mark.parametrize("stage", range(4))
def test_every_stage_of_anynetx_a_is_log_uniform(stage):
    draws = proposed(KNOWN["AnyNetX_A"], seed=11, draws=100_000)
    for part, drawn in ((DEPTHS, draws.depths), (WIDTHS, draws.widths)):
        values, expected = steps_of(part.choices[0])
        found = np.searchsorted(np.sort(drawn[:, stage]), values, side="right") / len(drawn)
        assert np.abs(found - expected).max() < 1.95 / math.sqrt(len(drawn))  # Kolmogorov-Smirnov, p = 0.001
    for values, drawn in (((1, 2, 4), draws.bottlenecks), ((1, 2, 4, 8, 16, 32), draws.group_widths)):
        shares = np.array([(drawn[:, stage] == value).mean() for value in values])
        assert np.abs(shares * len(values) - 1).max() < 0.05


@pytest.mark.parametrize("across", ["rising", "falling"])
@pytest.mark.parametrize("part", ["depth", "width"])
def test_stages_in_order_are_distributed_as_free_draws_that_happen_to_be_in_order(part, across):
    free = KNOWN["AnyNetX_C"]
    name = f"{part}s"
    ordered = replace(free, **{part: Stages(free.parts()[part].choices, across)})
    drawn = getattr(proposed(ordered, seed=6, draws=30_000), name)
    rows = getattr(proposed(free, seed=5, draws=300_000), name)
    rises = np.diff(rows, axis=1)
    rejected = rows[(rises >= 0 if across == "rising" else rises <= 0).all(axis=1)]
    limit = 1.95 * math.sqrt(1 / len(drawn) + 1 / len(rejected))  # two-sample Kolmogorov-Smirnov, p = 0.001
    for found in (lambda r: r[:, 0], lambda r: r[:, 1], lambda r: r[:, 2], lambda r: r[:, 3], np.ptp, np.sum):
        one, other = (found(r) if found not in (np.ptp, np.sum) else found(r, axis=1) for r in (drawn, rejected))
        assert _distance(one, other) < limit


def test_stages_of_few_values_in_order_come_exactly_as_often_as_they_should():
    """Of three stages of 1 or 2, four of the eight combinations rise, each as likely as the others."""
    space = AnyNetSpace("few", depth=Stages((Values((2, 1)),), "rising"), stages=3)
    rows, counts = np.unique(proposed(space, draws=40_000).depths, axis=0, return_counts=True)
    assert rows.tolist() == [[1, 1, 1], [1, 1, 2], [1, 2, 2], [2, 2, 2]]
    assert np.abs(counts / 10_000 - 1).max() < 0.05


def _distance(a, b):
    values = np.unique(np.concatenate([a, b]))
    shares = [np.searchsorted(np.sort(x), values, side="right") / len(x) for x in (a, b)]
    return np.abs(shares[0] - shares[1]).max()


def test_stages_with_ranges_of_their_own_are_in_order_too():
    parts = tuple(Range(8 * low, 8 * high, 8) for low, high in ((1, 9), (4, 12), (1, 20), (6, 40)))
    draws = proposed(AnyNetSpace("own", width=Stages(parts, "rising")))
    assert 0 < len(draws.widths) < CHUNK
    assert (np.diff(draws.widths, axis=1) >= 0).all()
    assert all(in_range(part, draws.widths[:, i]) for i, part in enumerate(parts))


def exact(d, w_0, w_a, w_m, b, g, stages=4):
    """Return the network of the parameters by the slow path of RegNet, or None if it is no RegNet of so many stages."""
    try:
        network = RegNet(int(d), int(w_0), float(w_a), float(w_m), int(g), float(b)).network()
    except UsageError:
        return None
    return network if len(network.depths) == stages else None


def as_regnet(draws, row):
    """Return the network of a proposed row, fitted to groups."""
    band = Band(0, 1e15)
    one = replace(
        draws,
        **{n: getattr(draws, n)[row : row + 1] for n in ("depths", "widths", "group_widths", "bottlenecks")},
        columns={name: column[row : row + 1] for name, column in draws.columns.items()},
    )
    (network,) = networks_of(KNOWN["RegNetX"], networks_in_band(KNOWN["RegNetX"], one, band), 2)
    return network


@pytest.mark.parametrize("stages", [4, 3, 5])
@pytest.mark.parametrize("name", ["RegNetX", "RegNetX_w_m_2", "RegNetX_w_0_is_w_a"])
def test_lines_become_the_networks_of_the_exact_path_draw_for_draw_and_the_same_ones_are_rejected(name, stages):
    space = replace(KNOWN[name], stages=stages)
    draws = 1500
    # The same stream gives the parameters that were drawn, of what was rejected too.
    rng = np.random.default_rng(8)
    d, w_0 = space.d.draw(rng, (draws,)), space.w_0.draw(rng, (draws,))
    w_a = w_0 if space.w_a == "w_0" else space.w_a.draw(rng, (draws,))
    w_m, b, g = (choice.draw(rng, (draws,)) for choice in (space.w_m, space.bottleneck, space.group_width))
    found = [exact(*row, stages=stages) for row in zip(d, w_0, w_a, w_m, b, g, strict=True)]
    made = propose(space, np.random.default_rng(8), draws)
    all_of_them = networks_in_band(space, made, Band(0, 1e15))
    assert networks_of(space, all_of_them, 2) == [network for network in found if network is not None]
    assert 0 < len(all_of_them) < draws


@settings(max_examples=300)
@given(
    d=st.integers(1, 63),
    w_0=st.integers(1, 31).map(lambda n: 8 * n),
    w_m=st.sampled_from([1.5, 1.5625, 2.0, 2.25, 2.5, 2.56, 3.0, 4.0, 6.25, 9.0]) | st.floats(1.5, 3),
    block=st.integers(1, 30),
    level=st.integers(1, 4),
    nudge=st.sampled_from([0.0, 0.0, 1e-15, -1e-15, 1e-12, -1e-12, 1e-9, -1e-9, 1e-7]),
)
def test_near_ties_of_rounding_the_levels_are_those_of_the_exact_path(d, w_0, w_m, block, level, nudge):
    """w_a is chosen so that a level begins at a whole block, or a hair beside it."""
    w_a = (math.sqrt(w_m) * w_m ** (level - 1) - 1) * w_0 / block * (1 + nudge)
    assume(w_a <= MAX_CHANNELS)
    space = RegNetSpace("tie", *(Values((value,)) for value in (d, w_0, w_a, w_m, 1, 8)))
    for stages in range(1, 6):
        draws = propose(replace(space, stages=stages), np.random.default_rng(0), 1)
        expected = exact(d, w_0, w_a, w_m, 1, 8, stages)
        assert len(draws.depths) == (expected is not None)
        if expected is not None:
            assert as_regnet(draws, 0) == expected


def test_a_flat_line_is_a_network_of_one_stage():
    flat = replace(KNOWN["RegNetX"], w_a=Values((0,)))
    assert len(proposed(flat).depths) == 0
    assert len(proposed(replace(flat, stages=1)).depths) == CHUNK
