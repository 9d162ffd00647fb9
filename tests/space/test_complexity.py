"""The closed form is exact: against every published network, and against sums over blocks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regnet_deploy.errors import UsageError
from regnet_deploy.space.complexity import (
    NetworkConfig,
    block_cost,
    complexity,
    network_complexity,
    plain_block_cost,
    stage_resolutions,
)
from regnet_deploy.space.network import Network
from regnet_deploy.space.published import published_networks

PUBLISHED = published_networks()


@pytest.mark.parametrize("entry", PUBLISHED, ids=[f"{p.name}@{p.resolution}-{i}" for i, p in enumerate(PUBLISHED)])
def test_every_published_network_has_its_exact_counts(entry):
    total = network_complexity(entry.network, entry.resolution, 1000).total
    assert (total.macs, total.parameters, total.activations) == (entry.macs, entry.parameters, entry.activations)


def test_a_population_counts_like_its_networks_one_by_one():
    entries = [p for p in PUBLISHED if p.family == "y" and len(p.network.depths) == 4][:12]
    together = complexity(
        [p.network.depths for p in entries],
        [p.network.widths for p in entries],
        [p.network.group_widths for p in entries],
        1,
        NetworkConfig(resolution=160, se_ratio=0.25, classes=10),
    ).total
    alone = [network_complexity(p.network, 160, 10).total for p in entries]
    np.testing.assert_array_equal(together.macs, [c.macs for c in alone])
    np.testing.assert_array_equal(together.parameters, [c.parameters for c in alone])
    np.testing.assert_array_equal(together.activations, [c.activations for c in alone])


def test_the_parts_sum_to_the_whole():
    network = PUBLISHED[0].network
    parts = network_complexity(network, 224, 1000)
    assert parts.total.macs == parts.stem.macs + sum(stage.macs for stage in parts.stages) + parts.head.macs


@given(resolution=st.integers(16, 600), stride=st.sampled_from([1, 2]))
def test_sides_are_those_of_convolutions_with_stride_two(resolution, stride):
    side = (resolution + 2 - 3) // stride + 1  # kernel 3, padding 1
    assert stage_resolutions(resolution, stride, 2) == [side, (side - 1) // 2 + 1, ((side - 1) // 2) // 2 + 1]


def test_a_block_costs_what_its_convolutions_cost():
    cost = block_cost(64, 64, 64, 16, sides=(14, 14), first=False, se_ratio=0.0)
    assert cost.macs == 14 * 14 * (64 * 64 + 9 * 64 * 16 + 64 * 64)
    assert cost.parameters == 64 * 64 + 9 * 64 * 16 + 64 * 64 + 3 * 2 * 64
    assert cost.activations == 3 * 64 * 14 * 14


def test_squeezed_width_is_a_quarter_of_the_input_rounded_half_to_even():
    without = block_cost(10, 40, 40, 8, sides=(14, 7), first=True, se_ratio=0.0)
    with_se = block_cost(10, 40, 40, 8, sides=(14, 7), first=True, se_ratio=0.25)
    squeezed = 2  # 0.25 * 10 = 2.5 goes to the even neighbour
    assert with_se.parameters - without.parameters == 2 * 40 * squeezed + squeezed + 40
    assert with_se.activations - without.activations == squeezed + 40


def test_bottleneck_ratio_narrows_the_inside():
    network = Network((1, 1), (64, 128), (8, 8), (2.0, 4.0))
    assert network.bottleneck_widths == (32, 32)
    assert (
        network_complexity(network, 64, 10).total.macs
        < network_complexity(Network((1, 1), (64, 128), (8, 8), (1.0, 1.0)), 64, 10).total.macs
    )


def test_a_plain_block_costs_its_one_convolution_and_a_shortcut_only_where_the_shape_changes():
    alone = plain_block_cost(32, 64, side=14, first=True, residual=False)
    assert alone == (9 * 32 * 64 * 14 * 14, 9 * 32 * 64 + 2 * 64, 64 * 14 * 14)
    opening = plain_block_cost(32, 64, side=14, first=True, residual=True)
    assert opening.macs - alone.macs == 32 * 64 * 14 * 14
    assert opening.parameters - alone.parameters == 32 * 64 + 2 * 64
    assert opening.activations - alone.activations == 64 * 14 * 14
    later = [plain_block_cost(64, 64, side=14, first=False, residual=residual) for residual in (False, True)]
    assert later[0] == later[1]


@pytest.mark.parametrize("block", ["v", "vr"])
def test_a_population_of_plain_blocks_counts_like_its_networks_one_by_one(block):
    draw = np.random.default_rng(0)
    depths, widths = draw.integers(1, 17, (20, 4)), 8 * draw.integers(1, 129, (20, 4))
    together = complexity(depths, widths, widths, 1, NetworkConfig(resolution=224, block=block))
    for i in range(20):
        d, w = (tuple(values[i].tolist()) for values in (depths, widths))
        alone = network_complexity(Network(d, w, w, (1.0,) * 4, block=block), 224, 1000)
        assert tuple(values[i] for values in together.total) == alone.total
        for stage, of_all in zip(alone.stages, together.stages, strict=True):
            assert tuple(values[i] for values in of_all) == stage


def test_a_kind_of_block_that_there_is_not_has_no_complexity():
    with pytest.raises(UsageError, match="block must be one of bottleneck, v, vr, got r"):
        complexity([1], [8], [8], 1, NetworkConfig(resolution=32, block="r"))


def test_a_stem_of_one_channel_has_a_third_of_the_weights():
    rgb = PUBLISHED[0].network
    gray = replace(rgb, input_channels=1)
    more, fewer = (network_complexity(network, 32, 10) for network in (rgb, gray))
    saved = 2 * 9 * rgb.stem_width
    side = stage_resolutions(32, rgb.stem_stride, 0)[0]
    assert fewer.total == (
        more.total.macs - saved * side**2,
        more.total.parameters - saved,
        more.total.activations,
    )
    assert (fewer.stages, fewer.head) == (more.stages, more.head)
