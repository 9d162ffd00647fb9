"""Random views: of seed, epoch and image alone; of the areas and shapes that the recipe says."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.training.augmentation import augment, epoch_order, erased, random_box
from regnet_deploy.training.recipe import Recipe

GRADIENT = Image.fromarray(np.stack(np.broadcast_arrays(*np.ogrid[0:240:4, 0:240:4], 90), 2).astype(np.uint8))


def test_a_view_is_a_function_of_seed_epoch_and_image(preprocessing: Preprocessing) -> None:
    recipe = Recipe(seed=3)
    one = augment(GRADIENT, (2, 7), recipe, preprocessing)
    again = augment(GRADIENT, (2, 7), recipe, preprocessing)
    assert all((a == b).all() for a, b in zip(one, again, strict=True))
    for key, seed in (((3, 7), 3), ((2, 8), 3), ((2, 7), 4)):
        other = augment(GRADIENT, key, dataclasses.replace(recipe, seed=seed), preprocessing)
        assert (one[0] != other[0]).any()
        assert (one[1] != other[1]).any()


def test_the_order_is_a_permutation_of_its_own_each_epoch() -> None:
    first, second = epoch_order(0, 0, 100), epoch_order(0, 1, 100)
    assert sorted(first) == sorted(second) == list(range(100))
    assert (first != second).any()
    assert (first == epoch_order(0, 0, 100)).all()
    assert (first != epoch_order(1, 0, 100)).any()


@given(st.integers(1, 400), st.integers(1, 400), st.floats(0.01, 1), st.integers(0, 2**32))
def test_a_box_lies_in_the_image_and_is_no_smaller_than_said(w: int, h: int, smallest: float, seed: int) -> None:
    left, top, right, bottom = random_box(w, h, smallest, np.random.default_rng(seed))
    assert 0 <= left < right <= w
    assert 0 <= top < bottom <= h
    centre = min(w, h) ** 2  # what is shown after ten tries that do not fit
    assert (right - left) * (bottom - top) >= min(smallest * w * h, centre) * (1 - 1e-9)
    assert 3 / 4 - 1e-9 <= (right - left) / (bottom - top) <= 4 / 3 + 1e-9


def test_areas_are_spread_over_the_whole_range() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([random_box(100, 100, 0.08, rng) for _ in range(3000)])
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / 1e4
    assert areas.min() < 0.1
    assert areas.max() > 0.98
    assert np.mean(areas) == pytest.approx(0.52, abs=0.04)


def test_what_never_fits_is_the_square_in_the_centre() -> None:
    assert random_box(300, 10, 0.9, np.random.default_rng(0)) == (145.0, 0.0, 155.0, 10.0)


def test_half_of_the_views_are_mirrored_and_none_without_flip(preprocessing: Preprocessing) -> None:
    def mirrored(recipe: Recipe) -> list[bool]:
        views = (augment(GRADIENT, (0, i), recipe, preprocessing)[0].astype(int) for i in range(400))
        return [view[0, 0, 1] > view[0, -1, 1] for view in views]  # green grows to the right

    assert np.mean(mirrored(Recipe())) == pytest.approx(0.5, abs=0.08)
    assert not any(mirrored(Recipe(flip=False)))


def test_the_colour_shift_has_the_deviation_of_the_recipe(preprocessing: Preprocessing) -> None:
    def shifts(lighting: float) -> np.ndarray:
        recipe = Recipe(lighting=lighting)
        return np.array([augment(GRADIENT, (0, i), recipe, preprocessing)[1] for i in range(2000)])

    values = np.array([0.2175, 0.0188, 0.0045])
    vectors = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    wanted = 0.1 * np.sqrt(((vectors * values) ** 2).sum(1)) / np.array(preprocessing.std)
    np.testing.assert_allclose(shifts(0.1).std(0), wanted, rtol=0.06)
    assert (shifts(0.0) == 0).all()


def test_without_augmentation_a_square_image_is_shown_whole(preprocessing: Preprocessing) -> None:
    recipe = Recipe(crop_area=1.0, flip=False, lighting=0.0)
    view, shift = augment(GRADIENT, (0, 0), recipe, preprocessing)
    side = preprocessing.crop
    assert (view == np.asarray(GRADIENT.resize((side, side), Image.Resampling.BILINEAR))).all()
    assert (shift == 0).all()


def test_a_gray_image_has_one_channel_and_no_color_shift(preprocessing: Preprocessing) -> None:
    gray = preprocessing.replace(colours="L", mean=(0.5,), std=(0.25,))
    pixels, shift = augment(GRADIENT.convert("L"), (2, 7), Recipe(lighting=5.0), gray)
    assert pixels.shape == (gray.crop, gray.crop, 1)
    assert shift.tolist() == [0.0]
    colored = augment(GRADIENT, (2, 7), Recipe(lighting=5.0), preprocessing)[0]
    seen = np.asarray(Image.fromarray(colored).convert("L")).astype(int)
    assert np.abs(seen - pixels[:, :, 0]).max() <= 2  # the same view


def test_automatic_augmentation_is_a_function_of_seed_epoch_and_image(preprocessing: Preprocessing) -> None:
    recipe = Recipe(auto_augment="trivialaugment", erasing=0.5, seed=3)
    views = [augment(GRADIENT, (2, i), recipe, preprocessing)[0] for i in range(20)]
    again = [augment(GRADIENT, (2, i), recipe, preprocessing)[0] for i in range(20)]
    assert all((a == b).all() for a, b in zip(views, again, strict=True))
    plain = [augment(GRADIENT, (2, i), Recipe(seed=3), preprocessing)[0] for i in range(20)]
    assert sum((a != b).any() for a, b in zip(views, plain, strict=True)) > 15


def test_a_share_of_the_images_has_a_rectangle_of_the_mean_color(preprocessing: Preprocessing) -> None:
    white = Image.new("RGB", (60, 60), "white")
    color = np.rint(np.multiply(preprocessing.mean, 255))
    areas = []
    for i in range(400):
        pixels, _ = augment(white, (0, i), Recipe(erasing=0.25), preprocessing)
        gone = (pixels == color).all(2)
        assert (pixels[~gone] == 255).all()
        rows, columns = gone.any(1), gone.any(0)
        assert gone.sum() == rows.sum() * columns.sum()  # one rectangle
        areas.append(gone.mean())
    assert np.mean(np.array(areas) > 0) == pytest.approx(0.25, abs=0.07)
    assert 0.25 < max(areas) <= 0.4  # sides are whole pixels
    assert all((augment(white, (0, i), Recipe(), preprocessing)[0] == 255).all() for i in range(20))


def test_alternating_flip_mirrors_each_image_in_every_other_epoch(preprocessing: Preprocessing) -> None:
    def mirrored(epoch: int) -> np.ndarray:
        recipe = Recipe(alternate_flip=True)
        views = (augment(GRADIENT, (epoch, i), recipe, preprocessing)[0].astype(int) for i in range(200))
        return np.array([view[0, 0, 1] > view[0, -1, 1] for view in views])  # green grows to the right

    first = mirrored(0)
    assert first.mean() == pytest.approx(0.5, abs=0.12)
    assert (mirrored(1) == ~first).all()
    assert (mirrored(2) == first).all()


def test_a_view_has_the_side_of_its_epoch(preprocessing: Preprocessing) -> None:
    recipe = Recipe(epochs=11, train_side=1.0, first_side=0.5)
    sides = {epoch: augment(GRADIENT, (epoch, 0), recipe, preprocessing)[0].shape for epoch in (0, 10)}
    assert sides == {0: (8, 8, 3), 10: (16, 16, 3)}


def test_erasing_does_not_change_its_input(preprocessing: Preprocessing) -> None:
    pixels = np.full((16, 16, 3), 255, np.uint8)
    assert (erased(pixels, preprocessing, np.random.default_rng(0)) != 255).any()
    assert (pixels == 255).all()
