"""Training steps: those that are left of an epoch, or of a trial of a learning rate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch

from regnet_deploy.training.data_loader import Batch
from regnet_deploy.training.evaluate import average_statistics, set_precise_statistics
from regnet_deploy.training.interruption import Interrupted
from regnet_deploy.training.run import (
    TrainingCallbacks,
    TrainingRun,
    diverged,
    load_batches,
    nothing_left,
    record_unreadable,
    stoppable,
    until_stopped,
)
from regnet_deploy.training.slow_steps import SlowSteps
from regnet_deploy.training.step_clock import StepClock
from regnet_deploy.training.trainer import StepAbandoned, Trainer

#: Seconds between two reads of the loss from a GPU: each waits for the GPU.
_SYNC_S = 0.5


def train_steps(
    run: TrainingRun,
    batches: Iterable[Batch],
    steps: int,
    rate: Callable[[int], float],
    callbacks: TrainingCallbacks,
    *,
    averaging: bool = False,
) -> None:
    """Train from step ``run.state.step`` to ``steps``, with the learning rate ``rate(step)``.

    With ``averaging``, the average of the trainer, if it has one, takes up the weights after each step.

    Raises:
        DivergenceError: the loss is not finite.
        DataError: no image could be read.
        Interrupted: the callbacks said so; the checkpoint is of this moment.
    """
    trainer, state = run.trainer, run.state
    device = trainer.execution.device
    done = torch.tensor([state.images, state.loss_sum, state.right], dtype=torch.float64, device=device)
    loss = torch.zeros((), device=device)
    begin = synced = saved = time.perf_counter()
    seconds, step_seconds, images_before = state.seconds, state.step_seconds, state.images
    alone = run.group.size == 1
    iterator, clock = iter(batches), StepClock(state, device, run.workers)
    slow = SlowSteps(trainer, callbacks.signalled)
    while state.step < steps:
        batch = clock.waiting(lambda: next(iterator))
        record_unreadable(run, batch.unreadable)
        if len(batch.labels) > 1 or trainer.gradients:  # batch norm has no statistics of a single image
            at = state.epoch, state.step
            try:
                loss, right, images = clock.using(partial(slow.step, batch, rate(state.step), at))
            except StepAbandoned:
                callbacks.save()
                raise Interrupted from None
            done += torch.stack([images, loss * images, right])
            if averaging:
                trainer.follow()
        state.step += 1
        now = time.perf_counter()
        stopping = callbacks.stopping()
        due = stopping or now - saved >= callbacks.save_every_s
        if due or device == "cpu" or now - synced >= _SYNC_S or state.step == steps:
            seen, state.loss_sum, correct = done.tolist()
            state.images, state.right = int(seen), int(correct)
            # The processes of a group read the loss of a GPU at different steps, and have to end at the same one.
            if alone or device == "cpu" or state.step == steps:
                if not math.isfinite(state.loss_sum):
                    raise diverged(run)
                if trainer.scaling and trainer.scaling.is_lost:
                    raise diverged(run, "the gradients are not finite in fp16, whatever the loss is scaled by,")
            synced = time.perf_counter()
            state.seconds = seconds + synced - begin
            state.step_seconds = step_seconds + synced - begin
            clock.record(synced - begin)
            callbacks.step(loss.item(), (state.images - images_before) / (synced - begin))
        if due:
            callbacks.save()
            saved = time.perf_counter()
        if stopping:
            raise Interrupted
    if not state.images:
        raise nothing_left("training", run)


def set_statistics(run: TrainingRun, trainer: Trainer, batches: list[Any], callbacks: TrainingCallbacks) -> None:
    """Set the batch norm statistics of a trainer's network from the first of these training batches, if so many.

    The recipe says from how many images; with 0 they stay the running averages.

    Raises:
        Interrupted: the callbacks said so; the checkpoint is of this moment.
    """
    recipe = trainer.recipe
    used = batches[: math.ceil(recipe.precise_bn_images / recipe.batch)]
    if used:
        with stoppable(run, trainer.model, callbacks):
            set_precise_statistics(trainer, until_stopped(load_batches(run, run.training, used), callbacks))
        average_statistics(trainer, run.group)
