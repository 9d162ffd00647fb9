"""Networks drawn from a space are networks of the space, each as likely as the space says."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regnet_deploy.errors import UsageError
from regnet_deploy.space.complexity import network_complexity
from regnet_deploy.space.known_spaces import known_spaces
from regnet_deploy.space.network import Network
from regnet_deploy.space.ranges import Range, Values
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
from regnet_deploy.space.spaces import AnyNetSpace, RegNetSpace, Stages, same

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
