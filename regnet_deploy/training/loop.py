"""The training loop: steps, epochs, evaluation, the best weights so far."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.bundle.training import Epoch, LinearProbe
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
from regnet_deploy.training.evaluate import Evaluation, evaluate, features_of, set_precise_statistics
from regnet_deploy.training.interruption import Interrupted
from regnet_deploy.training.linear_probe import fit_linear_classifier, probe_images
from regnet_deploy.training.trainer import Trainer

#: Seconds between two reads of the loss from a GPU: each waits for the GPU.
_SYNC_S = 0.5
#: Images in a batch for the features of the linear probe.
PROBE_BATCH = 64


class DivergenceError(UsageError):
    """The loss is not finite."""


@dataclass
class TrainingRun:
    """A run: what it trains, on which images, and how far it is.

    Attributes:
        trainer: the network that is trained.
        training: augmented training images.
        validation: validation images.
        preprocessing: of the bundle.
        workers: processes that load images.
        unaugmented: the training images as they are evaluated, if a linear probe is to initialize the head; None if the
            head is of their classes already.
        state: how far the run is; changed in place.
        best: weights and statistics of the best epoch so far, or with the linear probe as head, on the CPU.
    """

    trainer: Trainer
    training: TrainingDataset
    validation: EvaluationDataset
    preprocessing: Preprocessing
    workers: int
    unaugmented: EvaluationDataset | None = None
    state: RunState = field(default_factory=RunState)
    best: dict[str, Tensor] = field(default_factory=dict)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch."""
        return steps_per_epoch(len(self.training), self.trainer.recipe.batch)

    @property
    def steps_done(self) -> int:
        """Steps since the start of the first epoch."""
        return self.state.epoch * self.steps_per_epoch + self.state.step


@dataclass(frozen=True)
class TrainingCallbacks:
    """Functions that the loop calls.

    Attributes:
        step: after some steps, with the loss of the last one and images/s.
        epoch: after each epoch, with its metrics.
        save: when a checkpoint is due.
        save_every_s: seconds after which a checkpoint is due; it is always due at the end of an epoch.
        stopping: whether the run is to end now, for example after a signal.
        features: after each batch whose features are computed, with the images so far and those in all.
        probe: when the linear probe is evaluated; None if it would take too long and there is none.
    """

    step: Callable[[float, float], None]
    epoch: Callable[[Epoch], None]
    save: Callable[[], None]
    save_every_s: float
    stopping: Callable[[], bool] = lambda: False
    features: Callable[[int, int], None] = lambda _done, _total: None
    probe: Callable[[LinearProbe | None], None] = lambda _: None


def fit(run: TrainingRun, callbacks: TrainingCallbacks) -> None:
    """Train from the current state of the run to its last epoch.

    Raises:
        DivergenceError: the loss is not finite.
        DataError: no image of an epoch, or of the validation set, could be read.
        Interrupted: the callbacks said so; the checkpoint is of this moment.
    """
    recipe, state = run.trainer.recipe, run.state
    images = len(run.training)
    if recipe.probe and state.probe is None and (state.epoch, state.step) == (0, 0):
        _probe(run, callbacks)
    left = batches_from(recipe, images, state.epoch, state.step)
    batches = _load(run, run.training, left)
    while state.epoch < recipe.epochs:
        start, seconds_before = time.perf_counter(), state.seconds
        _train_epoch(run, batches, callbacks)
        precise = epoch_batches(recipe, state.epoch, images)[: math.ceil(recipe.precise_bn_images / recipe.batch)]
        if precise:
            set_precise_statistics(run.trainer, _until_stopped(_load(run, run.training, precise), callbacks))
        result = _validate(run, callbacks)
        metrics = Epoch(
            epoch=state.epoch + 1,
            lr=recipe.learning_rate(state.epoch),
            train_loss=state.loss_sum / state.images,
            train_top1=state.right / state.images,
            val_loss=result.loss,
            val_top1=result.top1,
            val_images=result.images,
            images_per_s=state.images / state.step_seconds,
            seconds=seconds_before + time.perf_counter() - start,
        )
        if not math.isfinite(result.loss):
            raise DivergenceError(_diverged(run))
        state.history.append(metrics)
        if result.top1 >= _best_top1(state):
            state.best_epoch = state.epoch + 1
            run.best = _weights(run)
        state.epoch, state.step = state.epoch + 1, 0
        state.loss_sum, state.right, state.images = 0.0, 0, 0
        state.seconds = state.step_seconds = 0.0
        callbacks.epoch(metrics)
        callbacks.save()


def _probe(run: TrainingRun, callbacks: TrainingCallbacks) -> None:
    """Initialize the head by a linear probe of the training images, unless it fits already, and evaluate it."""
    begin = time.perf_counter()
    fitted = _fit_head(run, callbacks) if run.unaugmented else (0, None)
    if fitted is None:
        callbacks.probe(None)
        return
    result = _validate(run, callbacks)
    images, l2 = fitted
    run.state.probe = LinearProbe(
        val_top1=result.top1,
        val_loss=result.loss,
        val_images=result.images,
        train_images=images,
        l2=l2,
        seconds=time.perf_counter() - begin,
    )
    run.best = _weights(run)
    callbacks.probe(run.state.probe)
    callbacks.save()


def _fit_head(run: TrainingRun, callbacks: TrainingCallbacks) -> tuple[int, float | None] | None:
    """Return the number of images that the head is fitted to, and the regularization; None if it would take too long.

    Raises:
        DataError: no training image could be read.
        DivergenceError: the features are not finite.
    """
    dataset, trainer = run.unaugmented, run.trainer
    if dataset is None:
        raise ValueError("the run has no images to fit its head to")
    head = trainer.model.get_submodule("head.fc")
    if not isinstance(head, nn.Linear):
        raise TypeError("the head is not linear")
    labels = [image.label for image in dataset.subset.images]
    numbers = probe_images(labels, head.in_features, head.out_features, trainer.recipe.seed)
    if not numbers:
        return None
    batches = [[numbers[i] for i in batch] for batch in number_batches(len(numbers), PROBE_BATCH)]

    def counted() -> Iterator[Any]:
        done = 0
        for batch in _until_stopped(_load(run, dataset, batches), callbacks):
            yield batch
            done += len(batch.labels) + len(batch.unreadable)
            callbacks.features(done, len(numbers))

    features = features_of(trainer, counted(), run.preprocessing)
    _record_unreadable(run, features.unreadable)
    if not len(features.labels):
        raise DataError(_nothing_left("training", run))
    if not features.values.isfinite().all():
        raise DivergenceError("the features of the bundle's weights are not finite: train with --from-scratch")

    def stop() -> None:
        if callbacks.stopping():
            callbacks.save()
            raise Interrupted

    fitted = fit_linear_classifier(
        features.values, features.labels, head.out_features, trainer.recipe.seed, between=stop
    )
    with torch.no_grad():
        head.weight.copy_(fitted.weight)
        head.bias.copy_(fitted.bias)
    return len(features.labels), fitted.l2


def _validate(run: TrainingRun, callbacks: TrainingCallbacks) -> Evaluation:
    """Evaluate on the validation images.

    Raises:
        DataError: none of them could be read.
    """
    numbers = number_batches(len(run.validation), run.trainer.recipe.batch)
    result = evaluate(run.trainer, _until_stopped(_load(run, run.validation, numbers), callbacks), run.preprocessing)
    _record_unreadable(run, result.unreadable)
    if not result.images:
        raise DataError(_nothing_left("validation", run))
    return result


def _weights(run: TrainingRun) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in run.trainer.model.state_dict().items()}


def _train_epoch(run: TrainingRun, batches: Iterable[Any], callbacks: TrainingCallbacks) -> None:
    """Run the remaining steps of the current epoch."""
    trainer, state = run.trainer, run.state
    device = trainer.execution.device
    rate = trainer.recipe.learning_rate(state.epoch)
    loss_sum = torch.tensor(state.loss_sum, dtype=torch.float64, device=device)
    right = torch.tensor(state.right, dtype=torch.int64, device=device)
    loss = torch.zeros((), device=device)
    begin = synced = saved = time.perf_counter()
    seconds, step_seconds, images_before = state.seconds, state.step_seconds, state.images
    iterator = iter(batches)
    while state.step < run.steps_per_epoch:
        batch = next(iterator)
        _record_unreadable(run, batch.unreadable)
        count = len(batch.labels)
        if count > 1:  # batch norm has no statistics of a single image
            loss, correct = trainer.step(batch, rate)
            loss_sum += loss.double() * count
            right += correct
            state.images += count
        state.step += 1
        now = time.perf_counter()
        stopping = callbacks.stopping()
        due = stopping or now - saved >= callbacks.save_every_s
        if due or device == "cpu" or now - synced >= _SYNC_S or state.step == run.steps_per_epoch:
            state.loss_sum, state.right = loss_sum.item(), int(right)
            if not math.isfinite(state.loss_sum):
                raise DivergenceError(_diverged(run))
            synced = time.perf_counter()
            state.seconds = seconds + synced - begin
            state.step_seconds = step_seconds + synced - begin
            callbacks.step(loss.item(), (state.images - images_before) / (synced - begin))
        if due:
            callbacks.save()
            saved = time.perf_counter()
        if stopping:
            raise Interrupted
    if not state.images:
        raise DataError(_nothing_left("training", run))


def _until_stopped(batches: Iterable[Any], callbacks: TrainingCallbacks) -> Iterator[Any]:
    """Yield batches for the evaluation of an epoch.

    Of a checkpoint that is written here, the steps of the epoch are complete: the run continues with its evaluation.
    """
    for batch in batches:
        yield batch
        if callbacks.stopping():
            callbacks.save()
            raise Interrupted


def _load(run: TrainingRun, dataset: TrainingDataset | EvaluationDataset, batches: Iterable[Any]) -> Iterable[Any]:
    in_memory = isinstance(dataset, EvaluationDataset) and dataset.cached is not None
    return load(dataset, batches, 0 if in_memory else run.workers, run.trainer.execution.device == "cuda")


def _record_unreadable(run: TrainingRun, unreadable: Iterable[UnreadableImage]) -> None:
    run.state.unreadable.update((each.name, each.reason) for each in unreadable)


def _best_top1(state: RunState) -> float:
    return state.best.val_top1 if state.best else 0.0


def _nothing_left(what: str, run: TrainingRun) -> str:
    name, reason = next(iter(run.state.unreadable.items()), ("", "no batch had two images"))
    return (
        f"none of the {what} images can be read any more ({name}: {reason}); "
        f"does {run.training.subset.source.root} still exist? Repeat the command to continue"
    )


def _diverged(run: TrainingRun) -> str:
    where = f"epoch {run.state.epoch + 1} step {run.state.step}"
    return (
        f"the loss is not finite at {where}: training diverged, the bundle is unchanged; "
        f"give a lower --lr than {run.trainer.recipe.lr:g}"
    )
