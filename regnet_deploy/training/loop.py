"""The training loop: first head, trials of the learning rate, epochs, and the best result so far."""

from __future__ import annotations

import time
from dataclasses import replace

from regnet_deploy.bundle.training import Epoch
from regnet_deploy.training.data_loader import batches_from, epoch_batches
from regnet_deploy.training.initial_head import set_initial_head
from regnet_deploy.training.rate_probe import probe_learning_rate
from regnet_deploy.training.run import TrainingCallbacks, TrainingRun, load_batches, validate, weights_of
from regnet_deploy.training.steps import set_statistics, train_steps


def fit(run: TrainingRun, callbacks: TrainingCallbacks) -> None:
    """Train from the current state of the run to its last epoch, or to the end of its patience.

    Raises:
        DivergenceError: the loss is not finite.
        DataError: no image of an epoch, or of the validation set, could be read.
        Interrupted: the callbacks said so; the checkpoint is of this moment.
    """
    recipe, state = run.trainer.recipe, run.state
    images, steps, plan = len(run.training), run.steps_per_epoch, recipe.to_json()
    at_start = (state.epoch, state.step) == (0, 0) and not (run.start or state.lr_probe)
    if recipe.probe and state.probe is None and at_start:
        set_initial_head(run, callbacks)
    if recipe.flip_probe and state.probe and not state.probe.mirror_safe:
        run.training.recipe = replace(run.training.recipe, flip=False, flip_probe=False)
    if recipe.lr_probe:
        if state.lr_probe is None:
            probe_learning_rate(run, callbacks)
        if state.lr_probe:
            recipe = replace(recipe, lr=state.lr_probe.lr)
    batches = iter(load_batches(run, run.training, batches_from(recipe, images, state.epoch, state.step)))
    while not state.is_complete(plan):
        begin, seconds_before, epoch = time.perf_counter(), state.seconds, state.epoch
        rates = [recipe.learning_rate(epoch, step, steps) for step in range(steps)]
        train_steps(run, batches, steps, rates.__getitem__, callbacks, averaging=True)
        metrics = _evaluate(run, rates[0], callbacks)
        metrics = metrics.replace(seconds=seconds_before + time.perf_counter() - begin)
        state.history.append(metrics)
        state.epoch += 1
        state.begin_steps()
        callbacks.epoch(metrics)
        callbacks.save()


def _evaluate(run: TrainingRun, lr: float, callbacks: TrainingCallbacks) -> Epoch:
    """Evaluate the weights after an epoch, and their average, and keep the best; return the metrics."""
    trainer, state = run.trainer, run.state
    batches = epoch_batches(trainer.recipe, state.epoch, len(run.training))
    set_statistics(run, trainer, batches, callbacks)
    result = validate(run, trainer, callbacks)
    averaged, average = trainer.averaged(), None
    if averaged:
        set_statistics(run, averaged, batches, callbacks)
        average = validate(run, averaged, callbacks)
    best = (state.best.val_top1, state.best.val_loss) if state.best else None
    for network, each in ((trainer, result), (averaged, average)):
        if network and each and (best is None or is_better(each.top1, each.loss, *best)):
            best = each.top1, each.loss
            state.best_epoch, state.best_averaged = state.epoch + 1, network is averaged
            run.best = weights_of(network.model)
    return Epoch(
        epoch=state.epoch + 1,
        lr=lr,
        train_loss=state.loss_sum / state.images,
        train_top1=state.right / state.images,
        val_loss=result.loss,
        val_top1=result.top1,
        val_images=result.images,
        images_per_s=state.images / state.step_seconds,
        seconds=state.seconds,
        average_val_loss=average.loss if average else None,
        average_val_top1=average.top1 if average else None,
        loaded_images_per_s=state.images / state.loading_seconds if state.loading_seconds else None,
        step_images_per_s=state.images / state.used_seconds if state.used_seconds else None,
        waiting=state.waited_seconds / state.step_seconds,
    )


def is_better(top1: float, loss: float, best_top1: float, best_loss: float) -> bool:
    """Tell whether a result on the same validation images is at least as good as the best one before.

    The loss decides between equal accuracies: with few images they are equal often.
    """
    return (top1, -loss) >= (best_top1, -best_loss)
