"""A network says what it is made of, keeps it in JSON, and refuses what cannot be built."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regnet_deploy.errors import UsageError
from regnet_deploy.space.network import BLOCKS, Network
from regnet_deploy.space.regnet import fit_groups


def plain(block: str, **changed) -> Network:
    values = {"depths": (1, 2), "widths": (16, 24), "group_widths": (16, 24), "bottlenecks": (1.0, 1.0), **changed}
    return Network(**values, block=block)


@pytest.mark.parametrize("block", BLOCKS)
def test_json_brings_the_kind_of_block_back(block):
    network = plain(block)
    assert network.to_json()["block"] == block
    assert Network.from_json(network.to_json()) == network


def test_data_from_before_there_were_kinds_of_blocks_is_of_bottlenecks():
    network = Network((1, 2), (16, 32), (8, 8), (1.0, 2.0), se_ratio=0.25)
    data = network.to_json()
    del data["block"]
    assert Network.from_json(data) == network


@pytest.mark.parametrize(
    ("block", "se_ratio", "family"),
    [("bottleneck", 0.0, "x"), ("bottleneck", 0.25, "y"), ("v", 0, "v"), ("vr", 0, "vr")],
)
def test_the_family_follows_from_block_and_squeeze_and_excitation(block, se_ratio, family):
    assert plain(block, se_ratio=se_ratio).family == family


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ("bottlenek", r"block must be one of bottleneck, v, vr, got bottlenek \(did you mean bottleneck\?\)"),
        ("VR", r"got VR \(did you mean vr\?\)"),
        ("r", r"got r \(x, y and r are networks of bottleneck blocks\)$"),
        ("", "block must be one of bottleneck, v, vr, got $"),
        (None, "got None"),
    ],
)
def test_another_kind_of_block_is_refused(block, said):
    with pytest.raises(UsageError, match=said):
        plain(block)


@pytest.mark.parametrize("block", ["v", "vr"])
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"bottlenecks": (1.0, 2.0)}, "bottlenecks must be 1, got 1, 2$"),
        ({"group_widths": (16, 8)}, "group widths must equal the widths, 16, 24, got 16, 8$"),
        ({"group_widths": (16, 7)}, "group widths must equal the widths, 16, 24, got 16, 7$"),
        ({"se_ratio": 0.25}, r"without squeeze-and-excitation, se_ratio must be 0, got 0\.25$"),
    ],
)
def test_blocks_of_one_convolution_refuse_what_only_bottlenecks_have(block, changed, said):
    with pytest.raises(UsageError, match=f"^blocks of kind {block} are a single 3x3 convolution: {said}"):
        plain(block, **changed)


@given(
    widths=st.lists(st.integers(1, 128).map(lambda n: 8 * n), min_size=1, max_size=5),
    b=st.sampled_from([1.0, 2.0, 4.0]),
)
def test_a_group_width_beyond_every_width_makes_a_network_without_groups(widths, b):
    fitted, groups = fit_groups(widths, 2**20, b)
    np.testing.assert_array_equal(fitted, widths)
    stages = len(widths)
    network = Network((1,) * stages, tuple(fitted.tolist()), tuple(groups.tolist()), (b,) * stages)
    assert network.group_widths == network.bottleneck_widths
    assert network.family == "x"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"depths": (1,)}, "must have one value for each stage, got depths 1; widths 16, 32; group_widths 8, 8"),
        ({"depths": (), "widths": ()}, "got depths none; widths none; group_widths 8, 8; bottlenecks 1, 1"),
        ({"depths": (0, 1)}, "depths must be 1 or more, got 0, 1"),
        ({"stem_width": 0}, "stem_width must be 1 or more, got 0"),
        ({"bottlenecks": (0.0, 1.0)}, "bottlenecks must be above 0, got 0, 1"),
        ({"bottlenecks": (1e9, 1.0)}, "leave no channel of widths 16, 32"),
        ({"se_ratio": -1.0}, "se_ratio must be 0 or more, got -1"),
    ],
)
def test_what_cannot_be_built_names_the_values(changes: dict[str, object], said: str):
    values = {"depths": (1, 1), "widths": (16, 32), "group_widths": (8, 8), "bottlenecks": (1.0, 1.0), **changes}
    with pytest.raises(UsageError, match=said) as error:
        Network(**values)
    assert "Network(" not in str(error.value)


def test_a_network_takes_images_of_one_or_three_channels():
    gray = Network((1,), (16,), (8,), (1.0,), input_channels=1)
    assert Network.from_json(gray.to_json()) == gray
    rgb = replace(gray, input_channels=3)
    assert "input_channels" not in rgb.to_json()  # as in data of earlier versions
    assert Network.from_json(rgb.to_json()) == rgb
    with pytest.raises(UsageError, match=r"input channels must be 1 \(gray\) or 3 \(RGB\), got 4"):
        replace(gray, input_channels=4)
