"""The table of public weights is consistent, and a file is recognized by its digest, its name, or not at all."""

from __future__ import annotations

import re

import pytest

from regnet_deploy.errors import UsageError
from regnet_deploy.importing.layouts import SOURCES
from regnet_deploy.importing.public_weights import digest_in_name, find_weights, public_weights, recognize
from regnet_deploy.space.network import Network
from regnet_deploy.space.published import find_published


def test_every_row_is_whole_and_its_network_is_known() -> None:
    rows = public_weights()
    assert len({row.name for row in rows}) == len(rows) == 196
    for row in rows:
        assert row.source in SOURCES
        assert find_published(row.network)
        assert row.location.startswith(("https://", "hf:timm/", "hf:facebook/"))
        assert row.license
        assert row.resolution >= 224
        assert row.resize is None if row.source == "vissl" else row.resize >= row.resolution
        assert row.interpolation in ("bilinear", "bicubic")
        assert row.top1_percent is None or 65 < row.top1_percent < 90
        assert re.fullmatch(r"(?:[0-9a-f]{8})?", row.sha256_prefix)
        if row.source == "mmpretrain":
            assert digest_in_name(row.file_name) == row.sha256_prefix
        if row.source == "torchvision":
            assert digest_in_name(row.file_name) == row.sha256_prefix
            assert row.bytes


def test_licenses_that_forbid_commercial_use_are_known() -> None:
    restricted = {row.name for row in public_weights() if row.non_commercial}
    assert all("swag" in name.lower() or "seer" in name for name in restricted)
    assert {row.name for row in public_weights() if "swag" in row.name.lower()} <= restricted


def test_a_name_is_found_in_every_spelling_or_the_nearest_is_named() -> None:
    wanted = find_weights("regnety_016.tv2_in1k")
    assert find_weights("hf:timm/RegNetY_016.tv2_in1k") is wanted
    with pytest.raises(UsageError, match=r"did you mean regnety_016\.tv2_in1k\?"):
        find_weights("regnety_016.tv2_in1")


@pytest.mark.parametrize(
    ("source", "file", "sha256", "found"),
    [
        ("torchvision", "any.pth", "e6988f5f" + "0" * 56, ["regnet_y_400mf.IMAGENET1K_V2"]),
        ("torchvision", "any.pth", "0" * 64, ["regnet_y_400mf.IMAGENET1K_V1", "regnet_y_400mf.IMAGENET1K_V2"]),
        ("timm", "regnety_004.tv2_in1k.safetensors", "0" * 64, ["regnety_004.tv2_in1k"]),
        ("timm", "model.safetensors", "0" * 64, ["regnety_004.pycls_in1k", "regnety_004.tv2_in1k"]),
        ("pycls", "any.pyth", "0" * 64, ["RegNetY-400MF.pycls"]),
        ("classy", "any.torch", "0" * 64, []),
        ("transformers", "any.bin", "0" * 64, ["facebook/regnet-y-004"]),
        ("pytorchcv", "regnety004-0769-8c36573f.pth", "0" * 64, ["regnety004.pytorchcv"]),
    ],
)
def test_a_file_is_recognized_by_digest_then_name_then_network(
    source: str, file: str, sha256: str, found: list[str]
) -> None:
    network = find_published("RegNetY-400MF").network
    assert [row.name for row in recognize(source, network, 1000, file, sha256)] == found


def test_another_number_of_classes_is_other_weights() -> None:
    network = find_published("RegNetY-12GF").network
    assert [row.name for row in recognize("timm", network, 11821, "a", "-")] == ["regnety_120.sw_in12k"]
    assert recognize("timm", network, 10, "a", "-") == []
    assert recognize("timm", Network((1,), (8,), (8,), (1.0,)), 1000, "a", "-") == []
