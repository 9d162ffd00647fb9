"""A run of minutes: it has as many steps as fit, and continues with those that it began with."""

import dataclasses
import time
from pathlib import Path

import pytest

from regnet_deploy.bundle import Bundle
from regnet_deploy.training import time_budget, train
from regnet_deploy.training.checkpoint import load_checkpoint
from regnet_deploy.training.data_loader import EvaluationDataset, TrainingDataset
from regnet_deploy.training.recipe import Recipe
from regnet_deploy.training.run_directory import default_directory
from regnet_deploy.training.time_budget import FittedSteps, planned_steps, steps_that_fit
from regnet_deploy.training.train import TrainOptions
from regnet_deploy.training.trainer import Trainer


class Stop(BaseException):
    """Stands for whatever ends a process."""


def test_ten_times_the_time_has_about_ten_times_the_steps(trainer: Trainer, views: TrainingDataset) -> None:
    validation = EvaluationDataset(views.subset, views.preprocessing)
    short, long = (steps_that_fit(trainer, views, validation, 0, seconds) for seconds in (20, 200))
    assert short.images_per_s > 0
    assert 3 < long.steps / short.steps < 40


def test_images_for_batch_norm_statistics_take_time_too(
    trainer: Trainer, views: TrainingDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_budget, "evaluate", lambda *_: time.sleep(0.5))  # much longer than all steps that fit
    validation = EvaluationDataset(views.subset, views.preprocessing)
    without, with_them = (
        steps_that_fit(
            dataclasses.replace(trainer, recipe=dataclasses.replace(trainer.recipe, precise_bn_images=images)),
            views,
            validation,
            0,
            60,
        )
        for images in (0, 8192)
    )
    assert with_them.steps < 0.8 * without.steps


def test_at_least_one_step_fits(trainer: Trainer, views: TrainingDataset) -> None:
    validation = EvaluationDataset(views.subset, views.preprocessing)
    assert steps_that_fit(trainer, views, validation, 0, 0.001).steps == 1


@pytest.mark.parametrize(
    ("minutes", "before", "steps"),
    [
        (None, {"minutes": 2.0, "steps": 30}, 7),
        (2.0, {"minutes": 2.0, "steps": 30}, 30),
        (2.0, {"minutes": 3.0, "steps": 30}, 7),
        (2.0, {"epochs": 3}, 7),
        (2.0, None, 7),
    ],
)
def test_an_earlier_run_of_the_same_time_gives_its_steps(minutes: float, before: dict, steps: int) -> None:
    assert planned_steps(Recipe(minutes=minutes, steps=7), before) == steps


def test_a_run_that_continues_has_the_steps_that_it_began_with(
    bundle: Bundle, data: Path, options: TrainOptions, recorded_progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = iter([FittedSteps(5, 100.0)])
    monkeypatch.setattr(train, "steps_that_fit", lambda *_: next(measured))
    often, step = dataclasses.replace(options, checkpoint_s=0), Trainer.step
    given = {"minutes": 1.0, "batch_size": 8}
    with monkeypatch.context() as patch:
        done = iter(range(4))
        patch.setattr(Trainer, "step", lambda *arguments: (next(done), step(*arguments))[1])
        with pytest.raises((Stop, RuntimeError, StopIteration)):
            train.train(bundle.path, data, given, often, recorded_progress)
    assert load_checkpoint(default_directory(bundle.path)).identity["recipe"]["steps"] == 5
    training = train.train(bundle.path, data, given, options, recorded_progress).training
    assert (training.recipe["steps"], training.recipe["minutes"], len(training.history)) == (5, 1.0, 2)
    assert "1 minutes: 5 steps fit, at 100 images/s" in recorded_progress.text
    assert "resuming at epoch 2 step 1" in recorded_progress.text
