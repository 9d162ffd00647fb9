"""Published networks are found by any reasonable spelling of their names."""

from __future__ import annotations

import pytest

from regnet_deploy.errors import UsageError
from regnet_deploy.space.published import baselines, find_published


def test_there_are_twelve_baselines_a_family():
    assert [len(baselines(f)) for f in "xy"] == [12, 12]


@pytest.mark.parametrize(
    ("spelling", "widths"),
    [
        ("RegNetY-4.0GF", (128, 192, 512, 1088)),
        ("regnety-4gf", (128, 192, 512, 1088)),
        ("Y 4GF", (128, 192, 512, 1088)),
        ("regnety_040", (128, 192, 512, 1088)),
        ("timm/regnety_040", (128, 192, 512, 1088)),
        ("facebook/regnet-y-040", (128, 192, 512, 1088)),
        ("regnety_040.ra3_in1k", (128, 192, 512, 1088)),
        ("REGNET_X_400MF", (32, 64, 160, 400)),  # torchvision's name, torchvision's widths
        ("RegNetX-400MF", (32, 64, 160, 384)),
        ("x-0.4gf", (32, 64, 160, 384)),
        ("regnet_y_8gf", (224, 448, 896, 2016)),
        ("RegNetY-8.0GF", (168, 448, 896, 2016)),
        ("regnetx_160", (256, 512, 896, 2048)),
        ("y12gf", (224, 448, 896, 2240)),
    ],
)
def test_names_are_matched_kindly(spelling, widths):
    assert find_published(spelling).network.widths == widths


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("RegNetY-5.0GF", "RegNetY-4.0GF"), ("x700mf", "RegNetX-800MF"), ("regnet_y_8fg", "regnet_y_8gf")],
)
def test_a_near_miss_is_suggested(typed, meant):
    with pytest.raises(UsageError, match=rf"no published network '{typed}' \(did you mean {meant}\?\)"):
        find_published(typed)


def test_another_kind_of_network_is_not_suggested_away():
    with pytest.raises(UsageError, match="no published network 'resnet50'; RegNetX and RegNetY from 200MF to 32GF"):
        find_published("resnet50")


@pytest.mark.parametrize("name", ["regnetz_040", "z-4gf", "RegNetZ-500MF"])
def test_z_networks_are_said_to_be_another_kind(name):
    with pytest.raises(UsageError, match="RegNetZ has another kind of block"):
        find_published(name)
