"""The learning-rate probe: it chooses the planted best, its trials are deterministic, and it resumes to the bit."""

import dataclasses
from pathlib import Path

import pytest

from regnet_deploy.bundle import Bundle
from regnet_deploy.bundle.training import LearningRateProbe, RateTrial
from regnet_deploy.errors import UsageError
from regnet_deploy.models.weights import FILE
from regnet_deploy.training import rate_probe, train
from regnet_deploy.training import run as training_run
from regnet_deploy.training.checkpoint import load_checkpoint
from regnet_deploy.training.rate_probe import best_rate
from regnet_deploy.training.recipe import Recipe
from regnet_deploy.training.train import TrainOptions
from regnet_deploy.training.trainer import Trainer

RECIPE = Recipe(epochs=10, batch_size=8, crop_area=0.5, lr_probe=True)  # 3 steps an epoch, 3 in a trial


class Stop(BaseException):
    """Stands for whatever ends a process."""


def trial(lr: float, loss: float | None) -> RateTrial:
    return RateTrial(lr=lr, val_loss=loss, val_top1=None if loss is None else 0.5)


@pytest.mark.parametrize(
    ("losses", "chosen"),
    [
        ((0.5, 0.4, 0.3), 0.4),
        ((0.3, 0.4, 0.5), 0.025),
        ((0.5, 0.4, None), 0.1),
        ((0.5, 0.4, 0.39), 0.1),  # with 100 images, a loss that is lower by less than 5 % says nothing
        ((0.5, 0.4, 0.37), 0.4),
        ((0.5, None, None), 0.025),
        ((None, None, None), None),
    ],
)
def test_the_rate_of_the_least_loss_is_chosen(losses: tuple[float | None, ...], chosen: float | None) -> None:
    trials = [trial(rate, loss) for rate, loss in zip((0.025, 0.1, 0.4), losses, strict=True)]
    assert best_rate(trials, default=0.1, images=100) == chosen


@pytest.mark.parametrize(("images", "chosen"), [(10, 0.1), (1000, 0.4)])
def test_with_few_validation_images_the_loss_has_to_be_clearly_lower(images: int, chosen: float) -> None:
    trials = [trial(0.025, 0.5), trial(0.1, 0.4), trial(0.4, 0.37)]
    assert best_rate(trials, default=0.1, images=images) == chosen


@pytest.mark.parametrize(("lr", "factor"), [(0.05, 4), (150.0, 0.25)])
def test_the_planted_best_is_chosen_trained_with_and_recorded(
    bundle: Bundle,
    data: Path,
    options: TrainOptions,
    recorded_progress,
    monkeypatch: pytest.MonkeyPatch,
    lr: float,
    factor: float,
) -> None:
    monkeypatch.setattr(rate_probe, "SHARE", 1.0)  # more steps than 3, to tell them apart
    recipe = dataclasses.replace(RECIPE, lr=lr)  # far too low, so that the highest is best; and far too high
    training = train.train(bundle.path, data, recipe, options, recorded_progress).training
    assert [each.lr for each in training.lr_probe.trials] == [lr / 4, lr, lr * 4]
    assert training.lr_probe.lr == lr * factor
    assert training.lr_probe.steps == 30
    chosen = dataclasses.replace(recipe, lr=lr * factor).fitted(30)
    assert [epoch.lr for epoch in training.history] == [chosen.learning_rate(epoch) for epoch in range(10)]
    assert training.recipe == recipe.fitted(30).to_json()
    assert f"learning rate {lr * factor:g} for 128 images: val losses after 30 steps are" in recorded_progress.text


def test_the_run_after_the_trials_is_that_without_them(
    bundle: Bundle, data: Path, options: TrainOptions, recorded_progress, tmp_path: Path
) -> None:
    probed = train.train(bundle.path, data, RECIPE, options, recorded_progress)
    plain = dataclasses.replace(RECIPE, lr=probed.training.lr_probe.lr, lr_probe=False)
    other = dataclasses.replace(options, run_dir=tmp_path / "other", restart=True)
    assert train.train(bundle.path, data, plain, other, recorded_progress).files[FILE] == probed.files[FILE]


@pytest.mark.parametrize(("what", "count"), [("step", 2), ("step", 4), ("evaluate", 2), ("step", 11)])
def test_a_run_that_is_killed_in_a_trial_ends_with_the_same_bytes(
    bundle: Bundle,
    data: Path,
    options: TrainOptions,
    recorded_progress,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    what: str,
    count: int,
) -> None:
    recipe = dataclasses.replace(RECIPE, ema_decay=0.8, warmup_steps=2)
    options = dataclasses.replace(options, checkpoint_s=0)
    owner, done = (Trainer, "step") if what == "step" else (training_run, "evaluate"), [0]
    original = getattr(*owner)

    def stopping(*arguments: object) -> object:
        done[0] += 1
        if done[0] > count:
            raise Stop
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(*owner, stopping)
        with pytest.raises(Stop):
            train.train(bundle.path, data, recipe, options, recorded_progress)
    checkpoint = load_checkpoint(tmp_path / "bundle.training")
    assert bool(checkpoint.start) == (count < 9)
    if checkpoint.start:
        with pytest.raises(UsageError, match="is at learning rate trial"):
            train.train(bundle.path, None, {}, dataclasses.replace(options, finish=True), recorded_progress)
    resumed = train.train(bundle.path, data, recipe, options, recorded_progress)
    other = dataclasses.replace(options, run_dir=tmp_path / "other", restart=True)
    assert train.train(bundle.path, data, recipe, other, recorded_progress).files[FILE] == resumed.files[FILE]


def test_a_probe_whose_trials_all_diverge_ends_the_run(
    bundle: Bundle, data: Path, options: TrainOptions, recorded_progress
) -> None:
    recipe = dataclasses.replace(RECIPE, lr=1e30)
    with pytest.raises(UsageError, match=r"in any trial .* give a lower --lr than 2\.5e\+29$"):
        train.train(bundle.path, data, recipe, options, recorded_progress)
    assert load_checkpoint(bundle.path.parent / "bundle.training") is None


@pytest.mark.parametrize(("lower", "said"), [(0.39, True), (0.41, False), (None, False)])
def test_a_lower_loss_that_is_not_clearly_lower_is_explained(lower: float | None, said: bool) -> None:
    probe = LearningRateProbe(lr=0.1, steps=3, trials=(trial(0.1, 0.4), trial(0.4, lower)), seconds=1.0)
    assert str(probe).endswith("; no other is clearly lower") is said


def test_if_all_trials_diverge_a_run_with_retries_begins_with_a_lower_rate(
    bundle: Bundle, data: Path, options: TrainOptions, recorded_progress
) -> None:
    recipe = dataclasses.replace(RECIPE, lr=1e20, retries=3)
    with pytest.raises(UsageError, match=r"give a lower --lr than "):
        train.train(bundle.path, data, recipe, options, recorded_progress)
    assert (
        "learning rate 6.25e+18 for 128 images: val losses after 3 steps are 2.5e+19: diverged"
        in recorded_progress.text
    )
    assert recorded_progress.text.count("the loss was not finite: back to ") == 3
