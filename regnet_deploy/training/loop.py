"""The loop: steps, epochs, evaluation, the best weights so far."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.errors import DataError, UsageError
from regnet_deploy.training.checkpoint import RunState
from regnet_deploy.training.data_loader import (
    EvaluationDataset,
    TrainingDataset,
    UnreadableImage,
    batches_from,
    epoch_batches,
    load,
    number_batches,
    steps_per_epoch,
)
from regnet_deploy.training.evaluate import evaluate, set_precise_statistics
from regnet_deploy.training.trainer import Trainer

#: Seconds between two looks at what a GPU has come to: each makes the processor wait for it.
_LOOK_S = 0.5


class DivergenceError(UsageError):
    """The loss is not finite any more."""


@dataclass
class Run:
    """A run under way: what it trains, on what, and where it stands.

    Attributes:
        learner: the network that is trained.
        training: training views.
        validation: evaluation views of the validation images.
        preprocessing: of the bundle.
        workers: processes that load images.
        progress: where the run stands; changed in place.
        best: weights and statistics of the best epoch so far, on the CPU.
    """

    learner: Trainer
    training: TrainingDataset
    validation: EvaluationDataset
    preprocessing: Preprocessing
    workers: int
    progress: RunState = field(default_factory=RunState)
    best: dict[str, Tensor] = field(default_factory=dict)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch."""
        return steps_per_epoch(len(self.training), self.learner.recipe.batch)

    @property
    def steps_done(self) -> int:
        """Steps done since the start of the first epoch."""
        return self.progress.epoch * self.steps_per_epoch + self.progress.step


@dataclass(frozen=True)
class TrainingCallbacks:
    """Who wants to know of a run.

    Attributes:
        step: called as steps are done, with the loss of the last one that was looked at and images/s.
        epoch: called with the metrics of an epoch that is done.
        save: called when a checkpoint is due.
        save_every_s: seconds after which one is due; the end of an epoch is always.
    """

    step: Callable[[float, float], None]
    epoch: Callable[[dict[str, Any]], None]
    save: Callable[[], None]
    save_every_s: float


def fit(run: Run, listener: TrainingCallbacks) -> None:
    """Train from where the run stands to its last epoch.

    Raises:
        Diverged: the loss is not finite.
        DataError: no image of an epoch, or of the validation set, could be read.
    """
    recipe, progress = run.learner.recipe, run.progress
    images = len(run.training)
    left = batches_from(recipe, images, progress.epoch, progress.step)
    batches = _load(run, run.training, left)
    while progress.epoch < recipe.epochs:
        start, seconds_before = time.perf_counter(), progress.seconds
        _train_epoch(run, batches, listener)
        precise = epoch_batches(recipe, progress.epoch, images)[: math.ceil(recipe.precise_bn_images / recipe.batch)]
        if precise:
            set_precise_statistics(run.learner, _load(run, run.training, precise))
        numbers = number_batches(len(run.validation), recipe.batch)
        result = evaluate(run.learner, _load(run, run.validation, numbers), run.preprocessing)
        _note(run, result.unreadable)
        if not result.images:
            raise DataError(_nothing_left("validation", run))
        metrics = {
            "epoch": progress.epoch + 1,
            "lr": recipe.learning_rate(progress.epoch),
            "train_loss": progress.loss_sum / progress.images,
            "train_top1": progress.right / progress.images,
            "val_loss": result.loss,
            "val_top1": result.top1,
            "val_images": result.images,
            "images_per_s": progress.images / progress.step_seconds,
            "seconds": seconds_before + time.perf_counter() - start,
        }
        if not math.isfinite(result.loss):
            raise DivergenceError(_diverged(run))
        progress.history.append(metrics)
        if result.top1 >= _best_top1(progress):
            progress.best_epoch = progress.epoch + 1
            run.best = {name: value.detach().cpu().clone() for name, value in run.learner.model.state_dict().items()}
        progress.epoch, progress.step = progress.epoch + 1, 0
        progress.loss_sum, progress.right, progress.images = 0.0, 0, 0
        progress.seconds = progress.step_seconds = 0.0
        listener.epoch(metrics)
        listener.save()


def _train_epoch(run: Run, batches: Iterable[Any], listener: TrainingCallbacks) -> None:
    """Do the steps that are left of the epoch that is under way."""
    learner, progress = run.learner, run.progress
    device = learner.execution.device
    rate = learner.recipe.learning_rate(progress.epoch)
    loss_sum = torch.tensor(progress.loss_sum, dtype=torch.float64, device=device)
    right = torch.tensor(progress.right, dtype=torch.int64, device=device)
    loss = torch.zeros((), device=device)
    begin = looked = saved = time.perf_counter()
    seconds, step_seconds, images_before = progress.seconds, progress.step_seconds, progress.images
    iterator = iter(batches)
    while progress.step < run.steps_per_epoch:
        batch = next(iterator)
        _note(run, batch.unreadable)
        count = len(batch.labels)
        if count > 1:  # batch norm has no statistics of a single image
            loss, correct = learner.step(batch, rate)
            loss_sum += loss.double() * count
            right += correct
            progress.images += count
        progress.step += 1
        now = time.perf_counter()
        due = now - saved >= listener.save_every_s
        if due or device == "cpu" or now - looked >= _LOOK_S or progress.step == run.steps_per_epoch:
            progress.loss_sum, progress.right = loss_sum.item(), int(right)
            if not math.isfinite(progress.loss_sum):
                raise DivergenceError(_diverged(run))
            looked = time.perf_counter()
            progress.seconds = seconds + looked - begin
            progress.step_seconds = step_seconds + looked - begin
            listener.step(loss.item(), (progress.images - images_before) / (looked - begin))
        if due:
            listener.save()
            saved = time.perf_counter()
    if not progress.images:
        raise DataError(_nothing_left("training", run))


def _load(run: Run, dataset: TrainingDataset | EvaluationDataset, batches: Iterable[Any]) -> Iterable[Any]:
    in_memory = isinstance(dataset, EvaluationDataset) and dataset.cached is not None
    return load(dataset, batches, 0 if in_memory else run.workers, run.learner.execution.device == "cuda")


def _note(run: Run, unreadable: Iterable[UnreadableImage]) -> None:
    run.progress.unreadable.update((each.name, each.reason) for each in unreadable)


def _best_top1(progress: RunState) -> float:
    return progress.history[progress.best_epoch - 1]["val_top1"] if progress.best_epoch else 0.0


def _nothing_left(what: str, run: Run) -> str:
    path, reason = next(iter(run.progress.unreadable.items()), ("", "no batch had two images"))
    return (
        f"none of the {what} images can be read any more ({path}: {reason}); "
        f"is {run.training.subset.source.root} still there? Give the same command again to go on"
    )


def _diverged(run: Run) -> str:
    where = f"epoch {run.progress.epoch + 1} step {run.progress.step}"
    return (
        f"the loss is not finite at {where}: training diverged, the bundle is as it was; "
        f"give a lower --lr than {run.learner.recipe.lr:g}"
    )
