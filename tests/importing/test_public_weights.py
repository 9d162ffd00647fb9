"""The table of public weights is consistent, and a file is known by its digest, called after some, or anybody's."""

from __future__ import annotations

import re

import pytest

from regnet_deploy.errors import UsageError
from regnet_deploy.importing.layouts import SOURCES
from regnet_deploy.importing.public_weights import (
    digest_in_name,
    find_weights,
    public_weights,
    weights_of,
    with_digest,
    with_name,
)
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


def test_a_file_is_known_by_its_digest_and_size() -> None:
    size = find_weights("regnet_y_400mf.IMAGENET1K_V2").bytes
    assert size is not None
    digest = "e6988f5f" + "0" * 56
    assert with_digest(digest, size) is find_weights("regnet_y_400mf.IMAGENET1K_V2")
    assert with_digest(digest, size + 1) is None
    assert with_digest("0" * 64, size) is None


@pytest.mark.parametrize(
    ("source", "file", "found"),
    [
        ("timm", "regnety_004.tv2_in1k.safetensors", "regnety_004.tv2_in1k"),
        ("timm", "RegNetY_004.tv2_in1k.pth", "regnety_004.tv2_in1k"),
        ("timm", "regnety_004.tv2_in1k-mine.safetensors", None),
        ("timm", "model.safetensors", None),
        ("transformers", "model.safetensors", None),
        ("pycls", "RegNetY-400MF_dds_8gpu.pyth", "RegNetY-400MF.pycls"),
        ("pycls", "model_epoch_0100.pyth", None),
        ("torchvision", "regnet_y_400mf-e6988f5f.pth", None),
        ("pytorchcv", "regnety004-0769-8c36573f.pth", "regnety004.pytorchcv"),
    ],
)
def test_a_file_is_called_after_public_weights_only_by_a_name_of_its_own(
    source: str, file: str, found: str | None
) -> None:
    entries = weights_of(source, find_published("RegNetY-400MF").network, 1000)
    called = with_name(file, entries)
    assert (called and called.name) == found


def test_another_number_of_classes_is_other_weights() -> None:
    network = find_published("RegNetY-12GF").network
    assert [row.name for row in weights_of("timm", network, 11821)] == ["regnety_120.sw_in12k"]
    assert weights_of("timm", network, 10) == ()
    assert weights_of("timm", Network((1,), (8,), (8,), (1.0,)), 1000) == ()
