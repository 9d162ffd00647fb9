"""Preprocessing and class names from the files beside weights of the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from regnet_deploy.errors import DataError
from regnet_deploy.importing.hub_config import HubConfig, read_hub_config

#: Of timm/regnety_016.tv2_in1k, without the fields that are not read.
TIMM: dict[str, Any] = {
    "architecture": "regnety_016",
    "num_classes": 1000,
    "pretrained_cfg": {
        "tag": "tv2_in1k",
        "input_size": [3, 224, 224],
        "interpolation": "bicubic",
        "crop_pct": 0.965,
        "crop_mode": "center",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "license": "bsd-3-clause",
    },
}
TRANSFORMERS = {"model_type": "regnet", "id2label": {"10": "k", "0": "a", "2": "c"}}
IMAGES = {
    "crop_pct": 0.875,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.25, 0.25, 0.25],
    "resample": 3,
    "size": {"shortest_edge": 224},
}


def read(folder: Path, config: object, images: object = None, name: str = "model.safetensors") -> HubConfig | None:
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    if images is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(images))
    return read_hub_config(folder / name)


def timm(**changes: object) -> dict[str, Any]:
    return {**TIMM, "pretrained_cfg": {**TIMM["pretrained_cfg"], **changes}}


def test_timm_says_size_crop_interpolation_mean_deviation_and_license(tmp_path: Path) -> None:
    assert read(tmp_path, TIMM) == HubConfig(
        224, 232, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), license="bsd-3-clause"
    )


def test_class_names_of_timm_are_in_its_configuration(tmp_path: Path) -> None:
    found = read(tmp_path, {**TIMM, "label_names": ["ant", "bee"]})
    assert found is not None
    assert found.labels == ("ant", "bee")


def test_transformers_says_the_same_in_two_files(tmp_path: Path) -> None:
    found = read(tmp_path, TRANSFORMERS, IMAGES)
    assert found == HubConfig(224, 256, "bicubic", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), ("a", "c", "k"))
    (tmp_path / "preprocessor_config.json").unlink()
    assert read(tmp_path, TRANSFORMERS) == HubConfig(labels=("a", "c", "k"))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (timm(crop_mode="squash"), "says crop mode squash: images are cropped at their center"),
        (
            timm(test_input_size=[3, 288, 288]),
            "has a test at 288 pixels with a crop of 1, too: --resolution 288 --resize 288",
        ),
        (timm(interpolation="lanczos"), "interpolation 'lanczos', which is not bilinear or bicubic"),
        ({**TIMM, "label_names": ["a", "a"]}, "names the class 'a' twice: its names are not taken"),
        ({**TIMM, "label_names": ["a", 3]}, "not all texts"),
    ],
)
def test_what_is_not_done_is_said(tmp_path: Path, config: object, said: str) -> None:
    found = read(tmp_path, config)
    assert found is not None
    assert said in found.remarks[0]


def test_names_that_transformers_made_up_are_none(tmp_path: Path) -> None:
    assert read(tmp_path, {**TRANSFORMERS, "id2label": {"0": "LABEL_0", "1": "LABEL_1"}}) == HubConfig()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{", "cannot read .*config.json: Expecting"),
        (timm(input_size=[224, 224]), "input_size is .* not 1 or 3 channels and equal sides"),
        (timm(test_input_size=288), "test_input_size is 288, not 1 or 3 channels"),
        (timm(test_input_size=[3, 288, 288], test_crop_pct="1"), "test_crop_pct holds '1', not a number"),
        (timm(input_size=[3, 224.5, 224.5]), "not a whole number of pixels"),
        (timm(crop_pct=0), "crop_pct holds 0, not a number from 0.1 to 1"),
        (timm(mean=[0.5, 0.5]), r"mean is \[0.5, 0.5\], not three numbers for red, green and blue"),
        (timm(std=[0.5, 0.5, 0]), "std holds 0, not a number from 1e-06 to 1"),
        (timm(mean=["a", "b", "c"]), "mean holds 'a'"),
    ],
)
def test_values_that_cannot_be_are_one_line(tmp_path: Path, config: object, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read(tmp_path, config)


def test_other_files_are_none(tmp_path: Path) -> None:
    assert read(tmp_path, TIMM, name="mine.pth") is None
    assert read(tmp_path, {"model_type": "bert"}) is None
    assert read(tmp_path, []) is None
    (tmp_path / "config.json").unlink()
    assert read_hub_config(tmp_path / "model.safetensors") is None
