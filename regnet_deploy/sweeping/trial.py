"""One trial: a network is trained from the seed's weights, and what comes of it is an outcome, whatever it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import torch

from regnet_deploy.errors import UsageError
from regnet_deploy.models.anynet import AnyNet
from regnet_deploy.populations.store import DIVERGED, DONE, FAILED, Outcome, Trial
from regnet_deploy.profiling.machine import describe_machine
from regnet_deploy.sweeping.sweep_images import SweepImages
from regnet_deploy.training.data_loader import LoaderDied
from regnet_deploy.training.execution import Execution, default_workers, device_name, disable_tf32
from regnet_deploy.training.loop import DivergenceError, Run, TrainingCallbacks, fit
from regnet_deploy.training.recipe import Recipe
from regnet_deploy.training.trainer import make_trainer

#: Called with the share of a trial that is done, 0 to 1, and images/s.
Heard = Callable[[float, float], None]


def run_trial(
    trial: Trial,
    images: SweepImages,
    recipe: Recipe,
    execution: Execution,
    heard: Heard = lambda share, rate: None,
    *,
    most_workers: int | None = None,
) -> Outcome:
    """Train a network and return what came of it; on a CPU the same with as many threads, to the bit.

    A loss that is not finite, and whatever PyTorch refuses (memory, a kernel), is an outcome. What is wrong with the
    images is not: it would be of every trial.

    Args:
        trial: the network, and for how many epochs.
        images: to train on.
        recipe: of the sweep.
        execution: how a step is run.
        heard: is told how far it is.
        most_workers: bound on the processes that load images, beside what the device gains from.

    Raises:
        DataError: the images cannot be read any more.
    """
    disable_tf32()
    fitted = replace(recipe, epochs=trial.epochs).fitted(len(images.training.source.files))
    start = time.perf_counter()
    run: Run | None = None
    state, message = DONE, ""
    try:
        model = AnyNet(trial.network, images.classes, seed=fitted.seed)
        learner = make_trainer(model, execution, fitted, images.preprocessing)
        workers = default_workers(execution.device, images.training.source.kept is not None)
        workers = workers if most_workers is None else min(workers, most_workers)
        run = Run(learner, images.training, images.validation, images.preprocessing, workers)
        fit(run, _listener(run, fitted, heard))
    except DivergenceError as error:
        state, message = DIVERGED, str(error).partition(":")[0]
    except (UsageError, LoaderDied, RuntimeError) as error:
        state, message = FAILED, " ".join(f"{type(error).__name__}: {error}".split())[:500]
    history = run.progress.history if run else []
    best = history[run.progress.best_epoch - 1] if run and run.progress.best_epoch else None
    outcome = Outcome(
        state=state,
        error=round(100 * (1 - best["val_top1"]), 6) if best and state == DONE else None,
        best_epoch=int(best["epoch"]) if best else 0,
        history=history,
        seconds=time.perf_counter() - start,
        images_per_s=sum(each["images_per_s"] for each in history) / len(history) if history else 0.0,
        message=message,
        machine=describe_worker(execution),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    del run
    if execution.device == "cuda":
        torch.cuda.empty_cache()  # the next network needs blocks of other sizes
    return outcome


def describe_worker(execution: Execution) -> dict[str, Any]:
    """Return what an outcome says of the machine."""
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


def _listener(run: Run, recipe: Recipe, heard: Heard) -> TrainingCallbacks:
    steps = recipe.epochs * run.steps_per_epoch
    return TrainingCallbacks(
        step=lambda loss, rate: heard(run.steps_done / steps, rate),
        epoch=lambda metrics: None,
        save=lambda: None,  # trials are short: one that is interrupted begins anew
        save_every_s=float("inf"),
    )
