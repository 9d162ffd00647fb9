"""The pixel baseline: what a linear classifier of small pixels reaches, and whether images may be mirrored."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regnet_deploy.bundle import Bundle
from regnet_deploy.bundle.training import PixelBaseline
from regnet_deploy.models.weights import FILE
from regnet_deploy.report.training_section import recipe_section
from regnet_deploy.training import auto_recipe, pixel_baseline, train
from regnet_deploy.training.train import TrainOptions

GIVEN = {"epochs": 2, "batch_size": 8}


def write(folder: Path, classes: dict[str, np.ndarray], count: int, seed: int = 0) -> Path:
    """Write noisy images of each class: of its pattern ``(16, 16)``, train and val."""
    draw = np.random.default_rng(seed)
    for split, images in (("train", count), ("val", max(2, count // 3))):
        for name, pattern in classes.items():
            (folder / split / name).mkdir(parents=True)
            for number in range(images):
                pixels = np.clip(pattern + draw.normal(0, 40, pattern.shape), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


LEFT = np.tile(np.linspace(0, 255, 16), (16, 1))
SIDES = {"bright at the left": LEFT[:, ::-1], "bright at the right": LEFT}
HEIGHTS = {"bright at the top": LEFT.T[::-1], "bright at the bottom": LEFT.T}


@pytest.mark.parametrize(("classes", "safe"), [(SIDES, False), (HEIGHTS, True)])
def test_images_are_mirrored_where_a_linear_classifier_recognizes_them_mirrored(
    bundle: Bundle, tmp_path: Path, options: TrainOptions, recorded_progress, classes: dict[str, np.ndarray], safe: bool
) -> None:
    folder = write(tmp_path / "images", classes, 20)
    training = train.train(bundle.path, folder, GIVEN, options, recorded_progress).training
    pixels = training.pixels
    assert (pixels.val_top1, pixels.val_images, pixels.train_images, pixels.side) == (1.0, 12, 40, 8)
    assert (pixels.tested, pixels.right, pixels.mirrored_right) == (52, 52, 52 if safe else 0)
    assert pixels.mirror_safe is safe
    said = "images are mirrored at random" if safe else "no image is mirrored, as with --no-flip"
    assert said in recorded_progress.text
    unmirrored = train.train(bundle.path, folder, {**GIVEN, "flip": False}, options, recorded_progress)
    mirrored = train.train(bundle.path, folder, {**GIVEN, "flip": True}, options, recorded_progress)
    assert unmirrored.files[FILE].sha256 != mirrored.files[FILE].sha256
    decided = train.train(bundle.path, folder, GIVEN, options, recorded_progress)
    assert decided.files[FILE].sha256 == (mirrored if safe else unmirrored).files[FILE].sha256


@pytest.mark.parametrize(("classes", "area"), [(SIDES, 0.5), (HEIGHTS, 0.35)])
def test_images_that_have_a_direction_are_cropped_less(
    bundle: Bundle,
    tmp_path: Path,
    options: TrainOptions,
    recorded_progress,
    classes: dict[str, np.ndarray],
    area: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(auto_recipe, "ALIGNED_CROP_AREAS", ((0, 0.5),))
    monkeypatch.setattr(auto_recipe, "CROP_AREAS", ((0, 0.35),))
    folder = write(tmp_path / "images", classes, 20)
    decided = train.train(bundle.path, folder, {**GIVEN, "flip": False}, options, recorded_progress)
    given = {**GIVEN, "flip": False, "crop_area": area}
    assert (
        train.train(bundle.path, folder, given, options, recorded_progress).files[FILE].sha256
        == decided.files[FILE].sha256
    )
    shown = dict(recipe_section(decided.training).facts)
    assert shown["crop area"] == ("0.35" if area == 0.35 else "0.5, as mirrored images are recognized worse")


@pytest.mark.parametrize(
    ("right", "mirrored", "once", "safe"),
    [(100, 95, 5, True), (100, 80, 20, False), (10, 4, 8, True), (1000, 905, 400, True), (1000, 890, 110, False)],
)
def test_few_images_or_a_small_difference_decide_nothing(right: int, mirrored: int, once: int, safe: bool) -> None:
    counts = {"tested": 1000, "right": right, "mirrored_right": mirrored, "right_once": once}
    record = PixelBaseline(val_top1=0.9, val_images=100, train_images=900, side=8, **counts, seconds=1.0)
    assert record.mirror_safe is safe


def test_with_too_many_classes_there_is_none_and_images_are_mirrored(
    bundle: Bundle,
    tmp_path: Path,
    options: TrainOptions,
    recorded_progress,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pixel_baseline, "_MULTIPLICATIONS", 500)
    folder = write(tmp_path / "images", SIDES, 20)
    trained = train.train(bundle.path, folder, GIVEN, options, recorded_progress)
    assert trained.training.pixels is None
    assert "no logistic regression on pixels to compare with" in recorded_progress.text
    mirrored = train.train(bundle.path, folder, {**GIVEN, "flip": True}, options, recorded_progress)
    assert mirrored.files[FILE].sha256 == trained.files[FILE].sha256


def test_images_that_disappear_are_named_and_left_out(
    bundle: Bundle, tmp_path: Path, options: TrainOptions, recorded_progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "images", HEIGHTS, 20)
    measure = train.fit

    def removed_first(*arguments: object) -> None:
        (folder / "train" / "bright at the top" / "3.png").unlink()
        measure(*arguments)

    monkeypatch.setattr(train, "fit", removed_first)
    training = train.train(bundle.path, folder, GIVEN, options, recorded_progress).training
    assert training.pixels.train_images == 39
    assert list(training.data.unreadable) == ["train/bright at the top/3.png"]
