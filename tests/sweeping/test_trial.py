"""A trial ends in an outcome whatever becomes of it, the same every time; only lost images stop it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from regnet_deploy.bundle.training import Execution
from regnet_deploy.errors import DataError
from regnet_deploy.populations.store import DIVERGED, DONE, FAILED, Trial, TrialOutcome
from regnet_deploy.sweeping import trial as module
from regnet_deploy.sweeping.sweep_images import SweepImages, check_folder, list_folder, load_images
from regnet_deploy.sweeping.trial import run_trial
from regnet_deploy.training import run as training_run
from regnet_deploy.training import stored_images
from regnet_deploy.training.recipe import Recipe

Results = Callable[[dict[int, TrialOutcome]], dict[int, dict[str, Any]]]


def test_the_same_trial_has_the_same_outcome(
    trials: list[Trial], images: SweepImages, recipe: Recipe, execution: Execution, results: Results
) -> None:
    one, other = (run_trial(trials[0], images, recipe, execution) for _ in range(2))
    assert results({0: one}) == results({0: other})
    assert one.state == DONE
    assert [each["epoch"] for each in one.history] == [1, 2]


def test_neither_what_ran_before_nor_the_state_of_the_generators_matters(
    trials: list[Trial], images: SweepImages, recipe: Recipe, execution: Execution, results: Results
) -> None:
    alone = run_trial(trials[1], images, recipe, execution)
    run_trial(trials[0], images, recipe, execution)
    torch.manual_seed(99)
    assert results({0: run_trial(trials[1], images, recipe, execution)}) == results({0: alone})


def test_another_seed_is_another_outcome(
    trials: list[Trial], images: SweepImages, recipe: Recipe, execution: Execution
) -> None:
    one, other = (run_trial(trials[0], images, replace(recipe, seed=seed), execution) for seed in (0, 1))
    assert one.history[0]["train_loss"] != other.history[0]["train_loss"]


def test_the_error_is_that_of_the_best_epoch_in_percent(
    trials: list[Trial], images: SweepImages, recipe: Recipe, execution: Execution
) -> None:
    outcome = run_trial(replace(trials[0], epochs=3), images, recipe, execution)
    best = max(each["val_top1"] for each in outcome.history)
    assert len(outcome.history) == 3  # of the trial, not of the recipe
    assert outcome.error == pytest.approx(100 * (1 - best), abs=1e-6)
    assert outcome.history[outcome.best_epoch - 1]["val_top1"] == best
    assert outcome.seconds > 0
    assert outcome.images_per_s > 0
    assert outcome.machine["threads"] == 1
    assert outcome.machine["torch"] == torch.__version__


def test_the_error_is_that_of_the_average_where_that_is_the_best(
    trials: list[Trial], images: SweepImages, recipe: Recipe, execution: Execution, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores, evaluate = iter([0.3, 0.9]), training_run.evaluate
    monkeypatch.setattr(training_run, "evaluate", lambda *each: replace(evaluate(*each), top1=next(scores)))
    outcome = run_trial(trials[0], images, replace(recipe, ema_decay=0.5), execution)
    assert (outcome.best_epoch, outcome.error) == (2, 10)


def test_the_callback_receives_the_completed_fraction_and_the_rate(
    trials: list[Trial], images: SweepImages, recipe: Recipe, execution: Execution
) -> None:
    steps: list[tuple[float, float]] = []
    run_trial(trials[0], images, recipe, execution, lambda fraction, rate: steps.append((fraction, rate)))
    fractions = [fraction for fraction, _ in steps]
    assert fractions == sorted(fractions)
    assert 0 < fractions[0] <= fractions[-1] == 1
    assert all(rate > 0 for _, rate in steps)


def test_divergence_is_an_outcome(
    trials: list[Trial], images: SweepImages, recipe: Recipe, execution: Execution
) -> None:
    outcome = run_trial(trials[0], images, replace(recipe, lr=1e30), execution)
    assert outcome.state == DIVERGED
    assert outcome.error is None
    assert outcome.message.startswith("the loss is not finite at epoch 1 step ")
    assert "bundle" not in outcome.message
    assert all(math.isfinite(each["val_loss"]) for each in outcome.history)


@pytest.mark.parametrize(
    "error", [RuntimeError("no kernel\n  for this"), torch.OutOfMemoryError("CUDA out of memory. " + "x" * 9000)]
)
def test_what_pytorch_refuses_is_a_failure_in_one_line(
    trials: list[Trial],
    images: SweepImages,
    recipe: Recipe,
    execution: Execution,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def refuse(*arguments: Any, **named: Any) -> None:
        raise error

    monkeypatch.setattr(module, "AnyNet", refuse)
    outcome = run_trial(trials[0], images, recipe, execution)
    assert outcome.state == FAILED
    assert outcome.error is None
    assert outcome.message.startswith(f"{type(error).__name__}: {str(error)[:9]}")
    assert "\n" not in outcome.message
    assert len(outcome.message) <= 500
    assert outcome.machine["threads"] == 1


def test_a_failure_half_way_keeps_the_epochs_before_it(
    trials: list[Trial], images: SweepImages, recipe: Recipe, execution: Execution
) -> None:
    def stop(fraction: float, rate: float) -> None:
        if fraction > 0.6:
            raise RuntimeError("it broke")

    outcome = run_trial(trials[0], images, recipe, execution, stop)
    assert (outcome.state, outcome.error, outcome.message) == (FAILED, None, "RuntimeError: it broke")
    assert [each["epoch"] for each in outcome.history] == [1]


def test_images_that_are_gone_are_no_outcome(
    trials: list[Trial],
    data: Path,
    recipe: Recipe,
    execution: Execution,
    tmp_path: Path,
    recorded_progress: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stored_images, "MEMORY_BYTES", 0)  # so that they are read from the files each time
    shutil.copytree(data, tmp_path / "data")
    folder = check_folder(list_folder(tmp_path / "data", None), None, 0, tmp_path / "a.sweep", recorded_progress)
    gone = load_images(folder, recipe, 16, recorded_progress)
    shutil.rmtree(tmp_path / "data")
    monkeypatch.setattr(module, "default_workers", lambda device, kept: 0)
    with pytest.raises(DataError, match="none of the training images can be read any more") as error:
        run_trial(trials[0], gone, recipe, execution)
    assert "\n" not in str(error.value)
