"""Trains the network of one trial and returns the outcome, whether or not the training succeeds."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import Any

import torch

from regnet_deploy.bundle.training import Epoch, Execution
from regnet_deploy.errors import DataError, UsageError
from regnet_deploy.models.anynet import AnyNet, start_as_identity
from regnet_deploy.populations.store import DIVERGED, DONE, FAILED, Trial, TrialOutcome
from regnet_deploy.profiling.machine import describe_machine
from regnet_deploy.sweeping.recipe_space import recipe_with
from regnet_deploy.sweeping.sweep_images import SweepImages
from regnet_deploy.training.data_loader import LoaderDied, load, number_batches
from regnet_deploy.training.evaluate import evaluate
from regnet_deploy.training.execution import default_workers, device_name, disable_tf32
from regnet_deploy.training.loop import fit
from regnet_deploy.training.recipe import Recipe
from regnet_deploy.training.run import DivergenceError, TrainingCallbacks, TrainingRun
from regnet_deploy.training.trainer import make_trainer

_RECIPE_FIELDS = frozenset(each.name for each in fields(Recipe))
#: Called with the completed fraction of a trial, 0 to 1, and images/s.
StepCallback = Callable[[float, float], None]
#: The same for one of several trials.
TrialCallback = Callable[[Trial, float, float], None]


def run_trial(
    trial: Trial,
    images: SweepImages,
    recipe: Recipe,
    execution: Execution,
    on_step: StepCallback = lambda fraction, rate: None,
    *,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    max_workers: int | None = None,
) -> TrialOutcome:
    """Train a network and return the outcome.

    On a CPU, the same number of threads gives the same result to the bit. A loss that is not finite, and an error of
    PyTorch (out of memory, a missing kernel), is an outcome. An error of the images is raised, because every other
    trial would have it too.

    Args:
        trial: the network and its number of epochs.
        images: the images to train on.
        recipe: the recipe of the sweep.
        execution: device and precision.
        on_step: called during the training.
        on_epoch: called after each epoch.
        max_workers: upper bound of the number of processes that load images.

    Raises:
        DataError: the images can no longer be read.
    """
    disable_tf32()
    start = time.perf_counter()
    run: TrainingRun | None = None
    state, message, test = DONE, "", None
    try:
        fitted = trial_recipe(trial, recipe).fitted(len(images.training))
        model = AnyNet(trial.network, images.classes, seed=fitted.seed)
        if images.start:
            model.load_state_dict({**model.state_dict(), **images.start})
        elif fitted.zero_gamma:
            start_as_identity(model)
        training = copy.copy(images.training)
        training.recipe = fitted  # its augmentation
        trainer = make_trainer(
            model, execution, fitted, images.preprocessing, class_counts=training.class_counts(images.classes)
        )
        workers = default_workers(execution.device, images.training.in_memory)
        workers = workers if max_workers is None else min(workers, max_workers)
        run = TrainingRun(trainer, training, images.validation, images.preprocessing, workers, images.unaugmented)
        fit(run, _callbacks(run, fitted, on_step, on_epoch))
        test = _test(run, images)
    except DivergenceError as error:
        state, message = DIVERGED, str(error).partition(":")[0]
    except (UsageError, LoaderDied, RuntimeError) as error:
        state, message = FAILED, " ".join(f"{type(error).__name__}: {error}".split())[:500]
    history = run.state.history if run else []
    best = run.state.best if run else None
    outcome = TrialOutcome(
        state=state,
        error=round(100 * (1 - best.val_top1), 6) if best and state == DONE else None,
        best_epoch=best.epoch if best else 0,
        history=[epoch.to_json() for epoch in history],
        seconds=time.perf_counter() - start,
        images_per_s=sum(each.images_per_s for each in history) / len(history) if history else 0.0,
        message=message,
        machine=describe_worker(execution),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        test=test,
    )
    del run
    if execution.device == "cuda":
        torch.cuda.empty_cache()  # the next network needs blocks of other sizes
    return outcome


def trial_recipe(trial: Trial, recipe: Recipe) -> Recipe:
    """Return the recipe of a trial: that of all, with the epochs of the trial and the values drawn for it.

    Warm-up and patience are shorter in a shorter training.

    Raises:
        UsageError: the values do not fit each other.
    """
    drawn = {name: value for name, value in trial.drawn.items() if name in _RECIPE_FIELDS}
    share = trial.epochs / recipe.epochs
    if trial.epochs != recipe.epochs:
        shorter: dict[str, Any] = {"epochs": trial.epochs, "steps": None}
        if recipe.warmup_steps is not None:
            shorter["warmup_steps"] = round(recipe.warmup_steps * share)
        elif recipe.warmup_epochs:
            shorter["warmup_epochs"] = min(trial.epochs - 1, round(recipe.warmup_epochs * share))
        if recipe.patience:
            shorter["patience"] = max(1, round(recipe.patience * share))
        recipe = replace(recipe, **shorter)
    return recipe_with(recipe, drawn) if drawn else recipe


def run_locally(
    trials: Iterable[Trial], images: SweepImages, recipe: Recipe, execution: Execution, on_step: TrialCallback
) -> Generator[tuple[Trial, TrialOutcome], None, None]:
    """Run trials one after the other in this process, and yield each with its outcome."""
    for trial in trials:

        def step(fraction: float, rate: float, trial: Trial = trial) -> None:
            on_step(trial, fraction, rate)

        yield trial, run_trial(trial, images, recipe, execution, step)


def describe_worker(execution: Execution) -> dict[str, Any]:
    """Return the description of the machine that an outcome records."""
    machine = describe_machine()
    return {
        "cpu": machine.cpu,
        "cores": machine.cores,
        "gpus": list(machine.gpus),
        "device": device_name(execution.device),
        "precision": execution.precision,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _test(run: TrainingRun, images: SweepImages) -> dict[str, Any] | None:
    """Measure the weights of the best epoch on the images to test on, if there are some.

    Raises:
        DataError: none of them can be read any more.
    """
    if images.test is None:
        return None
    run.trainer.model.load_state_dict(run.best)
    batches = number_batches(len(images.test), run.trainer.recipe.batch)
    loaded = load(images.test, batches, run.workers, run.trainer.execution.device == "cuda")
    result = evaluate(run.trainer, loaded, run.preprocessing)
    if not result.images:
        name, reason = result.unreadable[0]
        raise DataError(f"none of the test images can be read any more ({name}: {reason}): are they still there?")
    return {"top1": result.top1, "images": result.images, "digest": images.test_digest}


def _callbacks(
    run: TrainingRun, recipe: Recipe, on_step: StepCallback, on_epoch: Callable[[Epoch], None]
) -> TrainingCallbacks:
    steps = recipe.epochs * run.steps_per_epoch
    return TrainingCallbacks(
        step=lambda loss, rate: on_step(run.steps_done / steps, rate),
        epoch=on_epoch,
        save=lambda: None,  # trials are short: an interrupted one starts again
        save_every_s=float("inf"),
        save_epoch=lambda: None,
    )
