"""The images of a sweep: refused as those of a training, and described by the same lines before they are used."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from regnet_deploy.errors import DataError
from regnet_deploy.progress import NoProgress
from regnet_deploy.sweeping.sweep_images import check_folder, list_folder, load_images
from regnet_deploy.training.recipe import Recipe


def test_what_training_says_of_a_folder_is_said_before_networks_are_compared(
    data: Path, recipe: Recipe, tmp_path: Path, recorded_progress: Any
) -> None:
    folder = shutil.copytree(data, tmp_path / "images")
    classes = sorted(path.name for path in (folder / "train").iterdir())
    for number in range(6):
        (folder / "train" / classes[0] / f"{number:03d}.png").write_bytes(b"")
    for image in (folder / "val" / classes[1]).iterdir():
        image.unlink()
    shutil.copy(folder / "train" / classes[2] / "000.png", folder / "val" / classes[2] / "copy.png")
    dataset = check_folder(list_folder(folder, None), None, 0, tmp_path / "a.sweep", NoProgress())
    load_images(dataset, recipe, 16, recorded_progress)
    said = recorded_progress.messages
    assert said[0].startswith("24 images to train on, 9 to validate with")
    assert f"1 class has no validation image: {classes[1]}" in said
    assert any(line.startswith("1 of 9 validation images are exact copies of training images") for line in said)
    assert "6 files left out:" in said
    assert any(line.endswith(": empty file") and line.startswith("  6 like ") for line in said)


def test_one_class_is_refused(data: Path, tmp_path: Path) -> None:
    only = shutil.copytree(data / "train", tmp_path / "one" / "images")
    assert len(list_folder(only, None).train) > 1
    with pytest.raises(DataError, match=r"one class folder, images: .*did you mean --data .*/images\?"):
        list_folder(tmp_path / "one", None)


def test_images_of_gray_candidates_are_gray(data: Path, recipe: Recipe, tmp_path: Path) -> None:
    dataset = check_folder(list_folder(data, None), None, 0, tmp_path / "a.sweep", NoProgress())
    images = load_images(dataset, recipe, 16, NoProgress(), channels=1)
    assert images.preprocessing.colours == "L"
    assert images.training[0, 0].pixels.shape == images.validation[0].pixels.shape == (16, 16, 1)
