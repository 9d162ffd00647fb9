"""Mixup and CutMix: of seed, epoch and step alone; pixels and shares by their definition."""

import dataclasses

import numpy as np
import pytest
import torch

from regnet_deploy.training.batch_augmentation import Mix, draw_mix
from regnet_deploy.training.recipe import Recipe

IMAGES = torch.arange(3 * 2 * 8 * 12, dtype=torch.float32).reshape(3, 2, 8, 12)
STEPS = [(0, step) for step in range(400)]


def test_a_recipe_without_them_mixes_nothing() -> None:
    assert draw_mix(Recipe(), (0, 0), 8, 8) is None


def test_mixing_is_a_function_of_seed_epoch_and_step() -> None:
    recipe = Recipe(mixup=0.2, cutmix=1.0, seed=3)
    assert draw_mix(recipe, (2, 7), 16, 16) == draw_mix(recipe, (2, 7), 16, 16)
    others = [
        draw_mix(recipe, (3, 7), 16, 16),
        draw_mix(recipe, (2, 8), 16, 16),
        draw_mix(dataclasses.replace(recipe, seed=4), (2, 7), 16, 16),
    ]
    assert draw_mix(recipe, (2, 7), 16, 16) not in others


def test_mixup_is_the_average_with_the_image_before() -> None:
    mixed = Mix(0.75).images(IMAGES)
    torch.testing.assert_close(mixed[1], 0.75 * IMAGES[1] + 0.25 * IMAGES[0])
    torch.testing.assert_close(mixed[0], 0.75 * IMAGES[0] + 0.25 * IMAGES[2])


def test_cutmix_takes_the_box_from_the_image_before() -> None:
    mixed = Mix(0.9, (2, 1, 6, 5)).images(IMAGES)
    inside = torch.zeros(8, 12, dtype=torch.bool)
    inside[1:5, 2:6] = True
    assert torch.equal(mixed[1][:, inside], IMAGES[0][:, inside])
    assert torch.equal(mixed[1][:, ~inside], IMAGES[1][:, ~inside])


@pytest.mark.parametrize("values", [{"mixup": 0.2}, {"cutmix": 1.0}])
def test_an_image_is_not_mixed_with_another_view_of_itself(values: dict[str, float]) -> None:
    mix = draw_mix(Recipe(repeated_augmentation=3, **values), (0, 1), 8, 8)
    assert mix is not None
    assert mix.distance == 3
    shown = np.repeat(np.arange(5), 3)[:13]  # the last image has one view
    for size in (1, 2):
        for rank in range(size):
            share = torch.from_numpy(shown[rank::size])
            assert (share != share.roll(mix.distance)).all()
    images = torch.arange(6.0).view(6, 1, 1, 1)
    assert Mix(0.5, distance=2).images(images).flatten().tolist() == [2, 3, 1, 2, 3, 4]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_part_that_is_not_larger_than_the_views_of_an_image_is_mixed(count: int) -> None:
    mix, images = Mix(0.5, distance=4), torch.arange(float(count)).view(count, 1, 1, 1)
    assert (mix.images(images) != images).all()
    assert mix.neighbors(torch.arange(count)).tolist() == [count - 1, *range(count - 1)]


def test_the_batch_itself_does_not_change() -> None:
    before = IMAGES.clone()
    Mix(0.75).images(IMAGES)
    Mix(0.9, (2, 1, 6, 5)).images(IMAGES)
    assert torch.equal(IMAGES, before)


def test_with_both_half_of_the_batches_have_each() -> None:
    drawn = [draw_mix(Recipe(mixup=0.2, cutmix=1.0), at, 16, 16) for at in STEPS]
    assert np.mean([mix is not None and mix.box is None for mix in drawn]) == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize(("alpha", "deviation"), [(0.2, 0.423), (1.0, 0.289)])
def test_shares_of_mixup_have_the_beta_distribution(alpha: float, deviation: float) -> None:
    shares = [mix.share for at in STEPS if (mix := draw_mix(Recipe(mixup=alpha), at, 16, 16))]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.06)
    assert np.std(shares) == pytest.approx(deviation, abs=0.03)


def test_the_share_of_cutmix_is_what_the_box_leaves() -> None:
    areas = []
    for at in STEPS:
        mix = draw_mix(Recipe(cutmix=1.0), at, 20, 10)
        assert mix is not None
        assert mix.box is not None
        left, top, right, bottom = mix.box
        assert 0 <= left <= right <= 20
        assert 0 <= top <= bottom <= 10
        areas.append((right - left) * (bottom - top) / 200)
        assert mix.share == pytest.approx(1 - areas[-1])
    assert max(areas) > 0.6
    assert min(areas) < 0.02
