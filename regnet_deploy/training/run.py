"""A run: its network, its images, how far it is, and what the parts of the training loop share."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import numpy as np
from torch import Tensor, nn

from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.bundle.training import Epoch, LearningRateProbe, LinearProbe, PixelBaseline, Retry
from regnet_deploy.errors import DataError, UsageError
from regnet_deploy.training.checkpoint import RunState
from regnet_deploy.training.data_loader import (
    EvaluationDataset,
    TrainingDataset,
    UnreadableImage,
    load,
    number_batches,
)
from regnet_deploy.training.distributed import ALONE, ProcessGroup
from regnet_deploy.training.evaluate import Evaluation, evaluate, evaluation_of
from regnet_deploy.training.interruption import Interrupted
from regnet_deploy.training.layer_calls import between_layers
from regnet_deploy.training.recipe import steps_per_epoch
from regnet_deploy.training.trainer import Trainer

T = TypeVar("T")


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
        unaugmented: the training images as they are evaluated, for a linear probe of the features or of pixels; None if
            the recipe has none, or the head is of their classes already.
        state: how far the run is; changed in place.
        best: weights and statistics of the best result so far, on the CPU.
        start: weights and statistics that the trials of the learning rate start from, on the CPU; empty before and
            after them.
        initial: weights and statistics that the run starts from, on the CPU, to which it may go back; empty if the
            recipe has no retries.
        group: the processes that train together; the state of the run is the same in all of them.
    """

    trainer: Trainer
    training: TrainingDataset
    validation: EvaluationDataset
    preprocessing: Preprocessing
    workers: int
    unaugmented: EvaluationDataset | None = None
    state: RunState = field(default_factory=RunState)
    best: dict[str, Tensor] = field(default_factory=dict)
    start: dict[str, Tensor] = field(default_factory=dict)
    initial: dict[str, Tensor] = field(default_factory=dict)
    group: ProcessGroup = ALONE

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch."""
        return steps_per_epoch(len(self.training), self.trainer.recipe.batch)

    @property
    def steps_done(self) -> int:
        """Steps since the start of the first epoch."""
        return 0 if self.start else self.state.epoch * self.steps_per_epoch + self.state.step


@dataclass(frozen=True)
class TrainingCallbacks:
    """Functions that the loop calls.

    Attributes:
        step: after some steps, with the loss of the last one and images/s.
        epoch: after each epoch, with its metrics.
        save: when a checkpoint is due.
        save_every_s: seconds after which a checkpoint is due.
        save_epoch: at the end of an epoch: a checkpoint may be due.
        stopping: whether the run is to end now, for example after a signal; all processes ask equally often.
        signalled: whether it is to end, as far as this process knows; it may ask at any time.
        features: after each batch whose features are computed, with the images so far and those in all.
        probe: when the linear probe is evaluated; None if it would take too long and there is none.
        lr_probe: when the learning rate is chosen.
        pixels: when the logistic regression on small pixels is evaluated; None if it would take too long.
        retry: when the run goes back to earlier weights and a lower rate.
    """

    step: Callable[[float, float], None]
    epoch: Callable[[Epoch], None]
    save: Callable[[], None]
    save_every_s: float
    save_epoch: Callable[[], None]
    stopping: Callable[[], bool] = lambda: False
    signalled: Callable[[], bool] = lambda: False
    features: Callable[[int, int], None] = lambda _done, _total: None
    probe: Callable[[LinearProbe | None], None] = lambda _: None
    lr_probe: Callable[[LearningRateProbe], None] = lambda _: None
    pixels: Callable[[PixelBaseline | None], None] = lambda _: None
    retry: Callable[[Retry], None] = lambda _: None


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of weights and statistics by name, on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def load_batches(
    run: TrainingRun, dataset: TrainingDataset | EvaluationDataset, batches: Iterable[Any]
) -> Iterable[Any]:
    """Return the batches of these keys or numbers, loaded as the run loads its images: this process's share of each."""
    batches = map(run.group.share, batches)
    in_memory = isinstance(dataset, EvaluationDataset) and dataset.cached is not None
    return load(dataset, batches, 0 if in_memory else run.workers, run.trainer.execution.device == "cuda")


def until_stopped(batches: Iterable[Any], callbacks: TrainingCallbacks) -> Iterator[Any]:
    """Yield batches for an evaluation.

    Of a checkpoint that is written here, the steps before the evaluation are complete: the run continues with it.

    Raises:
        Interrupted: the callbacks said so.
    """
    for batch in batches:
        yield batch
        stop_if_asked(callbacks)


def stoppable(
    run: TrainingRun, model: nn.Module, callbacks: TrainingCallbacks
) -> contextlib.AbstractContextManager[None]:
    """Return a context in which inferences of a network end between two layers, as :func:`until_stopped` does.

    That is on a CPU with one process; several have small shares of a batch, and agree on the end after each.
    """
    if run.group.size > 1 or run.trainer.execution.device != "cpu":
        return contextlib.nullcontext()
    return between_layers(model, lambda: stop_if_asked(callbacks))


def stop_if_asked(callbacks: TrainingCallbacks) -> None:
    """Write a checkpoint and end, if the callbacks say so.

    Raises:
        Interrupted: they did.
    """
    if callbacks.stopping():
        callbacks.save()
        raise Interrupted


def in_each_process(run: TrainingRun, callbacks: TrainingCallbacks, compute: Callable[[Callable[[], None]], T]) -> T:
    """Return the first process's result of what every process computes, from the same values, without the others.

    ``compute`` calls its argument every few seconds: that ends it after a signal, and all processes then end together.

    Raises:
        Interrupted: the callbacks said so; the checkpoint is of this moment.
    """

    def look() -> None:
        if callbacks.signalled():
            raise Interrupted

    own, ended = None, False
    try:
        own = compute(look)
    except Interrupted:
        ended = True
    if any(run.group.gather(ended)):
        callbacks.save()
        raise Interrupted
    return run.group.first(lambda: cast(T, own))  # the last bits of the others may differ


def validate(run: TrainingRun, trainer: Trainer, callbacks: TrainingCallbacks, mirrored: bool = False) -> Evaluation:
    """Evaluate the network of a trainer on the validation images, or on their mirror images.

    Raises:
        DataError: none of them could be read.
        DivergenceError: the loss is not finite.
    """
    numbers = number_batches(len(run.validation), trainer.recipe.batch)
    batches = until_stopped(load_batches(run, run.validation, numbers), callbacks)
    if mirrored:
        batches = (batch._replace(pixels=batch.pixels.flip(2)) for batch in batches)
    with stoppable(run, trainer.model, callbacks):
        own = evaluate(trainer, batches, run.preprocessing)
    result = _of_all(run.group, own)
    record_unreadable(run, result.unreadable)
    for unreadable in run.group.gather(run.state.unreadable):
        run.state.unreadable.update(unreadable)
    if not result.images:
        raise nothing_left("validation", run)
    if not math.isfinite(result.loss):
        raise diverged(run)
    return result


def _of_all(group: ProcessGroup, own: Evaluation) -> Evaluation:
    """Return the result on the images of all processes."""
    if group.size == 1:
        return own
    (loss_sum,) = group.sum([own.loss * own.images])
    of_each = [by_class for by_class in group.gather(own.by_class) if by_class]  # some had no images
    counts = np.sum(of_each, axis=0).tolist() if of_each else []
    return evaluation_of(loss_sum, tuple((images, right) for images, right in counts), own.unreadable)


def record_unreadable(run: TrainingRun, unreadable: Iterable[UnreadableImage]) -> None:
    """Record images that can no longer be read in the state of the run."""
    run.state.unreadable.update((each.name, each.reason) for each in unreadable)


def nothing_left(what: str, run: TrainingRun) -> DataError:
    """Return the error that none of the training or validation images can be read."""
    name, reason = next(iter(run.state.unreadable.items()), ("", "no batch had two images"))
    return DataError(
        f"none of the {what} images can be read any more ({name}: {reason}); "
        f"does {run.training.subset.source.root} still exist? Repeat the command to continue"
    )


def diverged(run: TrainingRun, what: str = "the loss is not finite") -> DivergenceError:
    """Return the error that the loss, or something else, is not finite."""
    state = run.state
    where, tried = f"at epoch {state.epoch + 1} step {state.step}", run.trainer.recipe.lr
    if state.lr_probe:
        tried = state.lr_probe.lr
    elif state.rate_trials:
        where, tried = "in any trial of a learning rate", min(trial.lr for trial in state.rate_trials)
    if state.retries:
        tried = state.retries[-1].lr
    return DivergenceError(
        f"{what} {where}: training diverged, the bundle is unchanged; give a lower --lr than {tried:g}"
    )
