"""The recipe from random weights: it has enough steps, follows from the number of images, and gives way to the user."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regnet_deploy.errors import UsageError
from regnet_deploy.training.auto_recipe import EPOCHS, STEPS, scratch_recipe
from regnet_deploy.training.recipe import steps_per_epoch


@given(images=st.integers(2, 3_000_000))
def test_any_number_of_images_has_a_recipe_with_enough_steps(images: int) -> None:
    recipe = scratch_recipe({}, images).fitted(images)
    steps = recipe.epochs * steps_per_epoch(images, recipe.batch)
    assert recipe.epochs >= EPOCHS
    assert steps >= STEPS
    assert 0 < recipe.warmup_steps <= steps / 5
    assert 0 < recipe.ema_decay < 1
    assert (recipe.pixel_probe, recipe.flip_probe, recipe.fine_tune, recipe.decay_norms) == (True, True, False, False)


@given(images=st.integers(2, 10_000), steps=st.integers(1, 100_000))
def test_a_number_of_steps_is_kept_to_the_step(images: int, steps: int) -> None:
    recipe = scratch_recipe({"steps": steps}, images).fitted(images)
    per_epoch = steps_per_epoch(images, recipe.batch)
    assert recipe.total_steps(per_epoch) == steps
    assert (recipe.epochs - 1) * per_epoch < steps <= recipe.epochs * per_epoch
    assert recipe.warmup_steps < steps


@pytest.mark.parametrize(
    ("images", "batch", "step_rate"),
    [(40, 10, 0.1 * 10 / 32), (1000, 32, 0.1), (20_000, 64, 0.1 * 2**0.5), (1_281_167, 128, 0.2)],
)
def test_the_rate_of_a_step_goes_with_the_batch_up_to_32_and_then_with_its_root(
    images: int, batch: int, step_rate: float
) -> None:
    recipe = scratch_recipe({}, images).fitted(images)
    assert recipe.batch == batch
    assert recipe.peak_rate == pytest.approx(step_rate, rel=2e-3)


def test_values_that_are_given_win() -> None:
    given = {"epochs": 7, "batch_size": 8, "lr": 0.05, "crop_area": 0.3, "flip": True, "patience": 0, "seed": 3}
    recipe = scratch_recipe(given, 100)
    assert {name: getattr(recipe, name) for name in given} == given
    assert not recipe.flip_probe
    assert recipe.aligned_crop_area == 0
    assert not scratch_recipe({"flip": False}, 100).flip_probe
    unprobed = scratch_recipe({"pixel_probe": False}, 100)
    assert (unprobed.flip_probe, unprobed.aligned_crop_area, unprobed.flip) == (False, 0, True)
    assert scratch_recipe({"warmup_epochs": 2}, 100).warmup_steps == 2 * steps_per_epoch(100, 25)


@pytest.mark.parametrize(("given", "patience"), [({}, 40), ({"epochs": 100}, 0), ({"steps": 100}, 0)])
def test_only_a_run_whose_length_nobody_gave_ends_early(given: dict[str, int], patience: int) -> None:
    assert scratch_recipe(given, 1000).patience == patience


def test_a_value_that_is_not_possible_is_named() -> None:
    with pytest.raises(UsageError, match="the crop area must be above 0 and at most 1, got 3"):
        scratch_recipe({"crop_area": 3.0}, 100)


@pytest.mark.parametrize(
    ("counts", "values", "sampling"),
    [
        ((), {}, "uniform"),
        ((50, 50), {}, "uniform"),
        ((99, 10), {}, "uniform"),
        ((100, 50, 10), {}, "square-root"),
        ((100, 50, 0), {}, "uniform"),  # a class without images
        ((100, 10), {"sampling": "balanced"}, "balanced"),
        ((100, 10), {"sampling": "uniform"}, "uniform"),
        ((100, 10), {"class_weights": "balanced"}, "uniform"),
        ((100, 10), {"class_weights": "none"}, "uniform"),
    ],
)
def test_small_classes_are_seen_more_often_from_ten_to_one_on(
    counts: tuple[int, ...], values: dict[str, str], sampling: str
) -> None:
    assert scratch_recipe(values, sum(counts) or 100, counts).sampling == sampling
