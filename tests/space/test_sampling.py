"""Networks drawn from a space are networks of the space, each as likely as the space says."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from regnet_deploy.errors import UsageError
from regnet_deploy.space.complexity import network_complexity
from regnet_deploy.space.known_spaces import known_spaces
from regnet_deploy.space.network import Network
from regnet_deploy.space.ranges import Range, Values
from regnet_deploy.space.regnet import RegNet
from regnet_deploy.space.sampling import (
    CHUNK,
    MAX_DRAWS_WITHOUT_NEW,
    Band,
    chunks,
    draw_networks,
    known_columns,
    networks_in_band,
    networks_of,
    propose,
)
from regnet_deploy.space.spaces import DEPTHS, MAX_CHANNELS, WIDTHS, AnyNetSpace, RegNetSpace, Stages, same

KNOWN = known_spaces()
ANYNETS = {name: space for name, space in KNOWN.items() if isinstance(space, AnyNetSpace)}
REGNETS = {name: space for name, space in KNOWN.items() if isinstance(space, RegNetSpace)}
BAND = Band(360e6, 400e6)
SMALL = Band(10e6, 20e6, resolution=32, classes=10)


def proposed(space, seed=0, draws=CHUNK):
    return propose(space, np.random.default_rng(seed), draws)


@pytest.mark.parametrize("band", [BAND, SMALL], ids=["224", "32"])
@pytest.mark.parametrize("name", KNOWN)
def test_every_network_is_one_of_the_space_in_the_band_and_counted_to_the_unit(name, band):
    space = KNOWN[name]
    drawn = draw_networks(space, 60, band, seed=3)
    networks = networks_of(space, drawn, band.stride)  # Network refuses what cannot be built
    assert len(set(networks)) == len(drawn) == 60
    for row, network in enumerate(networks):
        total = network_complexity(network, band.resolution, band.classes).total
        counted = (drawn.macs[row], drawn.parameters[row], drawn.activations[row])
        assert counted == (int(total.macs), int(total.parameters), int(total.activations))
        assert network.stem_stride == band.stride
        assert len(network.depths) == space.stages
    assert (drawn.macs >= band.lowest).all()
    assert (drawn.macs <= band.highest).all()
    inner = np.round(drawn.widths / drawn.bottlenecks).astype(int)
    assert (inner % drawn.group_widths == 0).all()
    families = {"x": "x", "y": "y", "r": "x", "v": "v", "vr": "vr"}
    assert {network.family for network in networks} == {families[space.block]}
    if space.block == "r":
        assert (drawn.group_widths == inner).all()


def test_widths_and_depths_rise_as_drawn_before_widths_are_fitted_to_groups():
    drawn = draw_networks(KNOWN["AnyNetX_E"], 200, BAND)
    for symbol in "wd":
        columns = np.stack([drawn.columns[f"{symbol}_{i + 1}"] for i in range(4)], axis=1)
        assert (np.diff(columns, axis=1) >= 0).all()
    np.testing.assert_array_equal(columns, drawn.depths)
    asked = np.stack([drawn.columns[f"w_{i + 1}"] for i in range(4)], axis=1)
    assert (np.abs(drawn.widths - asked) <= np.maximum(drawn.columns["b"] * drawn.columns["g"], 1)[:, None]).all()


@pytest.mark.parametrize("name", KNOWN)
def test_columns_are_what_the_space_leaves_free(name):
    space = KNOWN[name]
    drawn = draw_networks(space, 20, SMALL)
    assert set(drawn.columns) == {symbol for symbol, free in space.symbols.items() if free}
    assert {column.dtype for column in drawn.columns.values()} == {np.dtype(np.float64)}
    assert set(known_columns(networks_in_band(space, proposed(space), SMALL))) <= set(space.columns)


def test_blocks_of_the_whole_network_are_what_is_drawn_where_all_stages_are_equally_deep():
    drawn = draw_networks(KNOWN["AnyNetX_D_same_depth"], 50, BAND)
    np.testing.assert_array_equal(drawn.columns["d"], drawn.depths.sum(axis=1))
    assert (drawn.depths == drawn.depths[:, :1]).all()


@pytest.mark.parametrize("name", ["AnyNetX_A", "AnyNetX_E", "RegNetX", "RegNetX_constrained"])
def test_more_networks_of_a_seed_are_the_same_ones_and_more(name):
    few, many, again, other = (
        draw_networks(KNOWN[name], n, SMALL, seed).keys() for n, seed in ((10, 1), (40, 1), (40, 1), (40, 2))
    )
    assert few == many[:10]
    assert many == again
    assert not set(many) & set(other)


def test_the_networks_of_a_seed_are_the_same_in_every_version():
    """What was swept can be gone on with: a change here is a change of what a seed means."""
    drawn = {name: draw_networks(KNOWN[name], 3, BAND) for name in ("AnyNetX_A", "AnyNetX_E", "RegNetX")}
    assert {name: each.macs.tolist() for name, each in drawn.items()} == {
        "AnyNetX_A": [372641720, 390977576, 365815096],
        "AnyNetX_E": [387317992, 395314392, 396205288],
        "RegNetX": [363229096, 360197096, 372198616],
    }


@pytest.mark.parametrize(
    ("name", "share_of_draws", "share_in_the_band"),
    [
        ("AnyNetX_A", 1.0, 0.0213),
        ("AnyNetX_D", 1.0, 0.0193),
        ("AnyNetX_E", 1.0, 0.0214),
        ("RegNetX", 0.134, 0.0024),
    ],
)
def test_as_many_draws_are_kept_as_were_measured(name, share_of_draws, share_in_the_band):
    draws = proposed(KNOWN[name], seed=4, draws=120_000)
    assert len(draws.depths) / 120_000 == pytest.approx(share_of_draws, rel=0.05)
    assert len(networks_in_band(KNOWN[name], draws, BAND)) / 120_000 == pytest.approx(share_in_the_band, rel=0.2)


def test_constraints_hold():
    space = replace(KNOWN["RegNetX"], where=("w_a >= w_0", "w_4 > 5 * w_1 or d < 12", "macs > 15e6"))
    drawn = draw_networks(space, 100, SMALL)
    columns = drawn.columns
    assert (columns["w_a"] >= columns["w_0"]).all()
    assert ((drawn.widths[:, 3] > 5 * drawn.widths[:, 0]) | (columns["d"] < 12)).all()
    assert (drawn.macs > 15e6).all()
    constrained = draw_networks(KNOWN["RegNetX_constrained"], 50, BAND)
    assert (constrained.parameters <= 3e6 + 5.5e-3 * constrained.macs).all()
    assert (constrained.activations <= 6.5e6 * np.sqrt(constrained.macs / 1e9)).all()


def test_what_is_fixed_can_be_constrained_and_is_no_column():
    drawn = draw_networks(replace(KNOWN["RegNetX_b_1"], where=("b == 1", "w_0 >= 8 * b")), 20, SMALL)
    assert "b" not in drawn.columns


def test_progress_is_reported(recorded_progress):
    draw_networks(KNOWN["AnyNetX_A"], 400, SMALL, progress=recorded_progress)
    assert recorded_progress.steps == [("drawing networks", 400)]
    found = [completed for _, completed, *_ in recorded_progress.updates]
    assert found == sorted(found)
    assert found[-1] == 400


FEW = AnyNetSpace(
    "few",
    depth=same(Values((1, 2))),
    width=same(Values((64,))),
    bottleneck=same(Values((1, 2, 4))),
    group_width=same(Values((1, 2))),
)


@pytest.mark.parametrize(
    ("space", "band", "said"),
    [
        (KNOWN["AnyNetX_A"], Band(1e6, 2e6), "AnyNetX_A has 0 different networks from 1 to 2 MMACs at 224 pixels in"),
        (
            KNOWN["RegNetX"],
            Band(360e6, 360e6),
            r"RegNetX has 0 different networks from 360 to 360 MMACs .* but 500 are",
        ),
        (FEW, Band(0, 1e12), "few has 12 different networks .* but 500 are requested: widen the band or the space"),
        (replace(KNOWN["AnyNetX_E"], where=("w_1 > w_2",)), Band(0, 1e12), "AnyNetX_E has 0 different networks"),
    ],
)
def test_a_space_with_too_few_networks_is_an_error_of_one_line_after_not_too_many_draws(space, band, said):
    with pytest.raises(UsageError, match=said) as caught:
        draw_networks(space, 500, band)
    assert "\n" not in str(caught.value)
    draws = int(re.search(r"in ([\d,]+) draws", str(caught.value))[1].replace(",", ""))
    assert draws <= 2 * MAX_DRAWS_WITHOUT_NEW  # seconds, not minutes


def test_all_networks_of_a_small_space_are_found():
    assert len(draw_networks(FEW, 12, Band(0, 1e12))) == 12


@pytest.mark.parametrize(
    ("space", "band"),
    [
        (replace(KNOWN["AnyNetX_A"], width=same(Values((1 << 17,))), depth=same(Values((1000,)))), BAND),
        (replace(KNOWN["RegNetX"], w_a=Range(1, 1 << 17), d=Range(1, 1000)), BAND),
        (KNOWN["RegNetX"], Band(1, 1e9, resolution=1_000_000)),
        (KNOWN["RegNetX"], Band(1, 1e9, classes=10**18)),
    ],
)
def test_what_64_bits_cannot_count_is_refused(space, band):
    with pytest.raises(UsageError, match="networks too large to count: narrow it"):
        draw_networks(space, 1, band)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), block=st.sampled_from(["x", "y", "r"]), stages=st.integers(1, 8))
def test_networks_of_any_space_can_be_built_and_are_counted_to_the_unit(data, block, stages):
    def stagewise(choices):
        return Stages((data.draw(choices),), data.draw(st.sampled_from(["free", "same", "rising", "falling"])))

    whole = st.integers(1, 900)
    ratios = st.sampled_from([1 / 32, 1 / 7, 0.25, 1 / 3, 1, 2, 2.5, 3, 7.3, 64]).map(lambda b: Values((b,)))
    one = same(Values((1,)))
    space = AnyNetSpace(
        "any",
        depth=stagewise(st.integers(1, 9).map(lambda d: Range(1, d))),
        width=stagewise(whole.map(lambda w: Range(8, 7 + w, 1, "log"))),
        bottleneck=stagewise(ratios),
        group_width=one
        if block == "r"
        else stagewise(st.lists(whole, min_size=1, max_size=4, unique=True).map(tuple).map(Values)),
        block=block,
        stages=stages,
    )
    band = Band(0, 1e18, data.draw(st.integers(8, 320)), data.draw(st.integers(1, 1000)))
    drawn = networks_in_band(space, proposed(space, draws=20), band)
    assert len(drawn) == 20
    for row, network in enumerate(networks_of(space, drawn, band.stride)):
        assert isinstance(network, Network)
        total = network_complexity(network, band.resolution, band.classes).total
        assert (drawn.macs[row], drawn.parameters[row], drawn.activations[row]) == tuple(int(each) for each in total)


def test_chunks_go_on_without_end_with_streams_of_their_own():
    stream = chunks(KNOWN["AnyNetX_A"], SMALL, 0)
    first, second = next(stream), next(stream)
    assert not set(first.keys()) & set(second.keys())


@pytest.mark.parametrize(
    ("band", "said"),
    [
        ((400e6, 360e6), "a band of MACs must go from low to high, got 400 to 360 million"),
        ((-1, 1), "a band of MACs must go from low to high"),
        ((0, math.inf), "a band of MACs must go from low to high"),
        ((math.nan, 1), "a band of MACs must go from low to high"),
        ((1, 2, 7), "resolution must be 8 or more and classes 1 or more"),
        ((1, 2, 8, 0), "resolution must be 8 or more and classes 1 or more"),
        ((1, 2, 8, 1, 3), "stem stride must be 1 or 2, got 3"),
    ],
)
def test_a_band_that_holds_nothing_is_refused(band, said):
    with pytest.raises(UsageError, match=said):
        Band(*band)


@pytest.mark.parametrize(("n", "seed"), [(0, 0), (1, -1)])
def test_how_many_and_the_seed_are_whole_numbers_from_one_and_from_zero(n, seed):
    with pytest.raises(UsageError, match=f"must be 1 or more and the seed 0 or more, got {n} and {seed}"):
        draw_networks(KNOWN["RegNetX"], n, SMALL, seed)


def test_published_bounds_are_about_224_pixels_whatever_the_networks_are_drawn_for():
    space = replace(
        known_spaces()["RegNetX"], where=("reference_activations <= 6.5e6 * (reference_macs / 1e9) ** 0.5",)
    )
    drawn = draw_networks(space, 30, Band(4e6, 8e6, resolution=32, classes=10))
    for network in networks_of(space, drawn, 1):
        cost = network_complexity(replace(network, stem_stride=2), 224, 1000).total
        assert cost.activations <= 6.5e6 * (cost.macs / 1e9) ** 0.5


# What is drawn, before anything is counted, is of the space and as likely as the space says.


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
