"""TrivialAugment and RandAugment: which operations, how strong, how often; test_recipe_oracles compares the pixels."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from regnet_deploy.training import auto_augment as module
from regnet_deploy.training.auto_augment import apply, auto_augment, operations
from regnet_deploy.training.recipe import Recipe

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
IMAGE = Image.fromarray(PIXELS)
TRIVIAL, RAND = Recipe(auto_augment="trivialaugment"), Recipe(auto_augment="randaugment", randaugment_ops=3)


def test_both_have_the_fourteen_operations_of_their_papers_code() -> None:
    names = [each.name for each in operations(TRIVIAL, 32, 24)]
    assert len(set(names)) == len(names) == 14
    assert names == [each.name for each in operations(RAND, 32, 24)]


def test_the_shifts_of_randaugment_are_shares_of_the_image() -> None:
    largest = {each.name: each.largest for each in operations(RAND, 331, 662)}
    assert largest["TranslateX"] == pytest.approx(150)
    assert largest["TranslateY"] == pytest.approx(300)
    assert {each.name: each.largest for each in operations(TRIVIAL, 331, 662)}["TranslateX"] == 32


@pytest.mark.parametrize(("recipe", "count"), [(TRIVIAL, 1), (RAND, 3)])
def test_operations_are_drawn_evenly(recipe: Recipe, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[str, float]] = []

    def record(image: Image.Image, name: str, magnitude: float) -> Image.Image:
        drawn.append((name, magnitude))
        return image

    monkeypatch.setattr(module, "apply", record)
    rng = np.random.default_rng(0)
    for _ in range(1400):
        auto_augment(IMAGE, recipe, rng)
    times = Counter(name for name, _ in drawn)
    assert sum(times.values()) == 1400 * count
    assert min(times.values()) > 70 * count
    assert max(times.values()) < 130 * count
    turned = np.array([magnitude for name, magnitude in drawn if name == "Rotate"])
    assert np.mean(turned > 0) == pytest.approx(0.5, abs=0.2)
    if recipe is RAND:  # magnitude 9 of 0 to 30, of at most 30 degrees
        assert set(np.abs(turned).round(6)) == {9.0}
    else:
        assert np.abs(turned).max() > 125
        assert np.abs(turned).min() < 10


def test_images_stay_of_their_size_and_channels() -> None:
    for image in (IMAGE, IMAGE.convert("L")):
        for each in operations(TRIVIAL, 32, 24):
            changed = apply(image, each.name, each.largest or 0.0)
            assert (changed.size, changed.mode) == (image.size, image.mode)


@pytest.mark.parametrize("name", ["Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Posterize"])
def test_a_magnitude_of_0_changes_nothing(name: str) -> None:
    assert (np.asarray(apply(IMAGE, name, 0.0)) == PIXELS).all()


def test_a_shift_moves_pixels_and_brings_in_black() -> None:
    moved = np.asarray(apply(IMAGE, "TranslateX", 3.9))
    assert (moved[:, 3:] == PIXELS[:, :-3]).all()
    assert (moved[:, :3] == 0).all()


def test_posterize_keeps_the_upper_bits_and_solarize_inverts_what_is_bright() -> None:
    assert (np.asarray(apply(IMAGE, "Posterize", 4.0)) == PIXELS & 0xF0).all()
    inverted = np.asarray(apply(IMAGE, "Solarize", 127.0))
    assert (inverted == np.where(PIXELS < 128, PIXELS, 255 - PIXELS)).all()
