"""The recipe: the paper's numbers, fitted to small data in the open, and nothing absurd."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, StepLR

from regnet_deploy.errors import UsageError
from regnet_deploy.training.recipe import Recipe, for_aligned_images
from regnet_deploy.training.recipe_checks import suggestion


def test_the_defaults_are_the_papers() -> None:
    recipe = Recipe()
    assert (recipe.epochs, recipe.lr, recipe.weight_decay, recipe.label_smoothing) == (100, 0.1, 5e-5, 0)
    assert (recipe.crop_area, recipe.flip, recipe.lighting, recipe.precise_bn_images) == (0.08, True, 0.1, 8192)
    written = recipe.to_json()
    assert (written["optimizer"], written["momentum"], written["nesterov"]) == ("SGD", 0.9, True)


@pytest.mark.parametrize(
    ("images", "batch"), [(2, 2), (3, 2), (8, 2), (100, 25), (511, 127), (512, 128), (1_281_167, 128)]
)
def test_a_batch_is_128_or_a_quarter_of_the_images(images: int, batch: int) -> None:
    assert Recipe().fitted(images).batch == batch


def test_a_batch_that_was_asked_for_stays() -> None:
    assert Recipe(batch_size=64).fitted(70).batch == 64


@pytest.mark.parametrize(("epochs", "warmup"), [(1, 0), (3, 0), (8, 2), (20, 5), (100, 5)])
def test_the_warm_up_is_five_epochs_or_a_quarter_of_a_short_run(epochs: int, warmup: int) -> None:
    assert Recipe(epochs=epochs).fitted(1000).warmup_epochs == warmup


def test_the_rate_is_a_half_cosine_with_linear_warm_up_scaled_by_the_batch() -> None:
    recipe = Recipe(epochs=100, batch_size=256, lr=0.1).fitted(10_000)
    rates = [recipe.learning_rate(epoch) for epoch in range(100)]
    assert rates[0] == pytest.approx(0.02)
    assert rates[1] == pytest.approx(0.2 * 0.28 * (1 + math.cos(math.pi / 100)) / 2)
    assert rates[50] == pytest.approx(0.1)
    assert rates[99] == pytest.approx(0.2 * (1 + math.cos(math.pi * 0.99)) / 2)
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[:5] == sorted(rates[:5])


def test_without_warm_up_the_first_rate_is_the_highest() -> None:
    assert Recipe(batch_size=128, warmup_epochs=0).learning_rate(0) == pytest.approx(0.1)


def test_with_a_warm_up_in_steps_the_rate_is_a_cosine_over_the_steps() -> None:
    recipe = Recipe(epochs=4, batch_size=64, lr=0.1, warmup_steps=10).fitted(64 * 25)
    rates = [recipe.learning_rate(epoch, step, 25) for epoch in range(4) for step in range(25)]
    assert rates[0] == pytest.approx(0.05 * 0.1)
    assert rates[5] == pytest.approx(0.05 * 0.55 * (1 + math.cos(math.pi * 0.05)) / 2)
    assert rates[50] == pytest.approx(0.025)
    assert rates[99] == pytest.approx(0.05 * (1 + math.cos(math.pi * 0.99)) / 2)
    assert recipe.warmup_epochs == 0
    assert recipe.to_json()["schedule"] == "cosine, half a period, set at every step"


def reference_rates(recipe: Recipe, steps: int) -> list[float]:
    """Return the rates of PyTorch's own schedules, for a recipe that changes at every step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=recipe.peak_rate)
    total, warmup = recipe.epochs * steps, (recipe.warmup_epochs or 0) * steps
    schedule = {
        "cosine": lambda: CosineAnnealingLR(optimizer, total),
        "linear": lambda: LinearLR(optimizer, 1.0, 0.0, total),
        "step": lambda: StepLR(optimizer, recipe.step_epochs * steps, recipe.step_factor),
    }[recipe.schedule]()
    rising = LinearLR(optimizer, recipe.warmup_factor, 1.0, max(1, warmup)) if warmup else None
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
        if rising:
            rising.step()
    return rates


@pytest.mark.parametrize("schedule", ["cosine", "linear", "step"])
@pytest.mark.parametrize("warmup", [0, 2])
def test_schedules_at_every_step_are_those_of_pytorch(schedule: str, warmup: int) -> None:
    recipe = Recipe(
        epochs=9, batch_size=64, lr=0.1, warmup_epochs=warmup, warmup_factor=0.01, schedule=schedule, per_step=True,
        step_epochs=3, step_factor=0.2,
    ).fitted(64 * 7)  # fmt: skip
    rates = [recipe.learning_rate(epoch, step, 7) for epoch in range(9) for step in range(7)]
    np.testing.assert_allclose(rates, reference_rates(recipe, 7), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "step"])
def test_schedules_once_an_epoch_have_the_same_rate_at_all_its_steps(schedule: str) -> None:
    recipe = Recipe(epochs=9, batch_size=64, warmup_epochs=2, schedule=schedule, step_epochs=3).fitted(64 * 7)
    rates = [[recipe.learning_rate(epoch, step, 7) for step in range(7)] for epoch in range(9)]
    assert all(len(set(each)) == 1 for each in rates)
    np.testing.assert_allclose([each[0] for each in rates], reference_rates(recipe, 1), rtol=1e-9, atol=1e-12)


def test_images_grow_by_eights_to_the_last_fifth_of_the_epochs() -> None:
    recipe = Recipe(epochs=11, train_side=0.714, first_side=0.571)
    sides = [recipe.side(epoch, 224) for epoch in range(11)]
    assert (sides[0], sides[7], sides[8], sides[10]) == (128, 152, 160, 160)
    assert sides == sorted(sides)
    assert all(side % 8 == 0 for side in sides)
    assert [Recipe(epochs=1, train_side=0.714, first_side=0.571).side(0, 224), Recipe().side(3, 70)] == [160, 70]
    assert Recipe(train_side=0.25).side(0, 16) == 8  # no smaller than 8


@pytest.mark.parametrize(("epochs", "decay"), [(10, 0.96), (100, 0.996)])
def test_the_window_of_the_average_is_a_share_of_the_steps(epochs: int, decay: float) -> None:
    fitted = Recipe(epochs=epochs, batch_size=10, ema_window=0.25).fitted(100)
    assert (fitted.ema_decay, fitted.ema_window) == (pytest.approx(decay), 0.0)
    assert "ema_window" not in fitted.to_json()


def test_true_is_no_number() -> None:
    with pytest.raises(UsageError, match="epochs must be a whole number, got True"):
        Recipe(epochs=True)


def test_all_that_is_wrong_with_a_recipe_is_said_at_once() -> None:
    with pytest.raises(UsageError, match=r"epochs must be 1 or more, got 0; .*smoothing must be .* got 2"):
        Recipe(epochs=0, label_smoothing=2.0)
    with pytest.raises(
        UsageError, match=r"warm-up epochs must be 0 to 3, got 4; .* AdamW must be 0.05 or less, got 0.1"
    ):
        Recipe(epochs=4, warmup_epochs=4, optimizer="adamw")


def test_the_json_says_which_optimizer_and_schedule() -> None:
    written = Recipe(optimizer="adamw", lr=0.001, schedule="step", step_epochs=5, per_step=True).to_json()
    assert (written["optimizer"], written["betas"]) == ("AdamW", [0.9, 0.999])
    assert "momentum" not in written
    assert written["schedule"] == "step, times 0.1 every 5 epochs, set at every step"
    assert (written["step_epochs"], written["per_step"]) == (5, True)


def test_the_json_of_a_recipe_without_what_was_added_is_that_of_earlier_versions() -> None:
    earlier = {
        "epochs", "batch_size", "lr", "weight_decay", "warmup_epochs", "crop_area", "flip", "lighting",
        "label_smoothing", "precise_bn_images", "seed", "fine_tune", "optimizer", "momentum", "nesterov", "schedule",
        "warmup_factor",
    }  # fmt: skip
    assert set(Recipe().to_json()) == earlier
    assert Recipe().to_json()["schedule"] == "cosine, half a period, set once an epoch"


def test_a_batch_larger_than_the_data_is_fitted_with_its_learning_rate_and_said():
    wished = Recipe(batch_size=512)
    fitted = wished.fitted(60)
    assert fitted.batch == 60
    assert fitted.learning_rate(20) == Recipe(batch_size=60).fitted(60).learning_rate(20)
    assert "512 is more than the 60 training images" in (wished.oversized_batch(60) or "")
    assert wished.oversized_batch(512) is None
    assert Recipe().oversized_batch(2) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be 1 or more, got 0"),
        ({"batch_size": 1}, "batch size must be 2 or more for batch norm, got 1"),
        ({"lr": 0.0}, "learning rate must be above 0"),
        ({"lr": math.nan}, "learning rate must be above 0, got nan"),
        ({"lr": math.inf}, "learning rate must be above 0, got inf"),
        ({"weight_decay": -1.0}, "weight decay must be 0 or more"),
        ({"warmup_epochs": 100}, "warm-up epochs must be 0 to 99, got 100"),
        ({"crop_area": 0.0}, "crop area must be above 0 and at most 1"),
        ({"crop_area": 1.5}, "crop area must be above 0 and at most 1, got 1.5"),
        ({"lighting": -0.1}, "lighting must be 0 or more"),
        ({"label_smoothing": 1.0}, "label smoothing must be 0 or more and below 1"),
        ({"seed": -1}, "the seed must be 0 to .* got -1"),
        ({"seed": 2**63}, "got 9223372036854775808"),
        ({"precise_bn_images": -2}, "must be 0 or more, got -2"),
        ({"warmup_steps": -1}, "warm-up steps must be 0 or more, got -1"),
        ({"warmup_steps": 5, "warmup_epochs": 1}, "5 steps or 1 epochs: set one of"),
        ({"layer_decay": 0.0}, "decay of the rate by layer must be above 0 and at most 1, got 0.0"),
        ({"layer_decay": math.nan}, "at most 1, got nan"),
        ({"ema_decay": 1.0}, "decay of the average must be 0 or more and below 1, got 1.0"),
        ({"optimizer": "lamb"}, "optimizer must be sgd or adamw, got lamb"),
        ({"schedule": "poly"}, "schedule must be cosine, linear or step, got poly"),
        ({"step_epochs": 0}, "between two steps of the schedule must be 1 or more, got 0"),
        ({"step_factor": 1.0}, "factor of a step of the schedule must be above 0 and below 1, got 1.0"),
        ({"warmup_factor": 0.0}, "start of the warm-up must be above 0 and at most 1, got 0.0"),
        ({"auto_augment": "ra"}, "must be none, trivialaugment or randaugment, got ra"),
        ({"randaugment_ops": 0}, "operations of RandAugment must be 1 to 14, got 0"),
        ({"randaugment_magnitude": 31}, "magnitude of RandAugment must be 0 to 30, got 31"),
        ({"erasing": 1.5}, "with an erased part must be 0 to 1, got 1.5"),
        ({"mixup": -0.1}, "alpha of mixup must be 0 or more, got -0.1"),
        ({"cutmix": math.inf}, "alpha of CutMix must be 0 or more, got inf"),
        ({"alternate_flip": True, "flip": False}, "set flip, or not alternate_flip"),
        ({"train_side": 1.2}, "side of the training images must be 0.25 to 1, got 1.2"),
        ({"first_side": 0.9, "train_side": 0.8}, "first_side 0.9 to train_side 0.8: the first must not be the larger"),
        ({"ema_window": 0.1, "ema_decay": 0.9}, "set one of ema_window and ema_decay"),
        ({"class_weights": "sqrt"}, "class weights must be none, square-root or balanced, got sqrt"),
        ({"sampling": "none"}, "sampling must be uniform, square-root or balanced, got none"),
        (
            {"class_weights": "balanced", "sampling": "square-root"},
            "balanced class_weights and square-root sampling both make up for few images of a class: set one of them",
        ),
        ({"loss": "mse"}, "loss must be cross-entropy or bce, got mse"),
        ({"stochastic_depth": 1.0}, "stochastic depth must be 0 or more and below 1, got 1.0"),
        ({"repeated_augmentation": 0}, "views of repeated augmentation must be 1 to 100, got 0"),
        ({"patience": -1}, "patience must be 0 or more epochs, got -1"),
    ],
)
def test_what_cannot_be_trained_with_is_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Recipe(**change)


def test_trials_of_rates_with_adamw_stay_below_its_highest_rate() -> None:
    values = {"optimizer": "adamw", "lr_probe": True}
    assert Recipe(lr=0.0125, **values).lr == 0.0125
    with pytest.raises(UsageError, match=r"AdamW must be 0.0125 or less with lr_probe, got 0.02"):
        Recipe(lr=0.02, **values)


@pytest.mark.parametrize("alternate", [False, True])
def test_images_that_are_not_to_be_mirrored_are_not_mirrored_in_turns_either(alternate: bool) -> None:
    recipe = for_aligned_images(Recipe(pixel_probe=True, flip_probe=True, alternate_flip=alternate))
    assert (recipe.flip, recipe.flip_probe, recipe.alternate_flip) == (False, False, False)
    kept = for_aligned_images(Recipe(pixel_probe=True, alternate_flip=alternate))
    assert (kept.flip, kept.alternate_flip) == (True, alternate)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("learning_rate", " (did you mean lr?)"),
        ("drop_path", " (did you mean stochastic_depth?)"),
        ("aug_repeats", " (did you mean repeated_augmentation?)"),
        ("weight_decy", " (did you mean weight_decay?)"),
        ("xyz", ""),
    ],
)
def test_a_name_of_another_library_leads_to_ours(name: str, said: str) -> None:
    assert suggestion(name, [field.name for field in dataclasses.fields(Recipe)]) == said
    assert suggestion("learning_rate", ["rule"]) == ""
