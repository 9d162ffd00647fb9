"""The training loop: first head, trials of the learning rate, epochs, and the best result so far."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from regnet_deploy.bundle.training import Epoch, Retry
from regnet_deploy.training.checkpoint import RunState
from regnet_deploy.training.data_loader import batches_from, epoch_batches
from regnet_deploy.training.evaluate import Evaluation
from regnet_deploy.training.initial_head import set_initial_head
from regnet_deploy.training.pixel_baseline import measure_pixel_baseline
from regnet_deploy.training.rate_probe import probe_learning_rate
from regnet_deploy.training.recipe import Recipe, for_aligned_images
from regnet_deploy.training.run import (
    DivergenceError,
    TrainingCallbacks,
    TrainingRun,
    load_batches,
    validate,
    weights_of,
)
from regnet_deploy.training.steps import set_statistics, train_steps

#: Factor of the learning rate when a run goes back.
RETRY_FACTOR = 0.25
#: With fewer validation images than this, an epoch has to recognize so many more than the linear probe did: of ten
#: images, one more or a lower loss is chance, and the probe is the safer choice.
FEW_VALIDATED, MORE_RIGHT = 100, 2
#: Share of its steps, and fewest, after which a run that is no better than a constant answer has learned nothing.
_LEARNED, _FEWEST_STEPS = 0.2, 100


def fit(run: TrainingRun, callbacks: TrainingCallbacks) -> None:
    """Train from the current state of the run to its last epoch, or to the end of its patience.

    Where the recipe allows retries, a run that diverges, or that has learned nothing in a fifth of its steps, 100 at
    least, goes back to its best weights, or to those that it started from, and continues with a quarter of the learning
    rate. After that it has as many steps again.

    Raises:
        DivergenceError: the loss is not finite, and no retry is left.
        DataError: no image of an epoch, or of the validation set, could be read.
        Interrupted: the callbacks said so; the checkpoint is of this moment.
    """
    state, plan = run.state, run.trainer.recipe.to_json()
    recipe = _after_probes(run, callbacks)
    batches = _batches_left(run, recipe)
    while not state.is_complete(plan):
        begin, seconds_before, epoch = time.perf_counter(), state.seconds, state.epoch
        current, steps = replace(recipe, lr=_rate(run, recipe)), run.steps_per_epoch
        rates = [current.learning_rate(epoch, step, steps) for step in range(steps)]
        steps = min(steps, recipe.total_steps(steps) - epoch * steps)
        try:
            train_steps(run, batches, steps, rates.__getitem__, callbacks, averaging=True)
            metrics = _evaluate(run, rates[0], callbacks)
        except DivergenceError:
            lost = run.trainer.scaling is not None and run.trainer.scaling.is_lost
            reason = "the gradients were not finite in fp16" if lost else "the loss was not finite"
            if not _retry(run, recipe, reason, callbacks):
                raise
            batches = _batches_left(run, recipe)
            continue
        metrics = metrics.replace(seconds=seconds_before + time.perf_counter() - begin)
        state.history.append(metrics)
        state.epoch += 1
        state.begin_steps()
        callbacks.epoch(metrics)
        if _has_to_have_learned(run, recipe) and not state.is_complete(plan) and not _has_learned(run):
            _retry(run, recipe, "it was no better than a constant answer", callbacks)
        if state.is_complete(plan):
            callbacks.save()
        else:
            callbacks.save_epoch()


def _after_probes(run: TrainingRun, callbacks: TrainingCallbacks) -> Recipe:
    """Measure what the recipe wants to be measured before the first epoch; return the recipe that follows from it."""
    recipe, state = run.trainer.recipe, run.state
    at_start = (state.epoch, state.step) == (0, 0) and not (run.start or state.lr_probe or state.retries)
    if recipe.pixel_probe and state.pixels is None and at_start:
        measure_pixel_baseline(run, callbacks)
    if recipe.probe and state.probe is None and at_start:
        set_initial_head(run, callbacks)
    tested = state.probe or state.pixels
    if tested and not tested.mirror_safe:
        run.training.recipe = for_aligned_images(run.training.recipe)
    if recipe.lr_probe:
        if state.lr_probe is None:
            probe_learning_rate(run, callbacks)
        if state.lr_probe:
            recipe = replace(recipe, lr=state.lr_probe.lr)
    return recipe


def _batches_left(run: TrainingRun, recipe: Recipe) -> Iterator[Any]:
    state, labels = run.state, run.training.labels
    return iter(load_batches(run, run.training, batches_from(recipe, labels, state.epoch, state.step)))


def _rate(run: TrainingRun, recipe: Recipe) -> float:
    """Return the learning rate for 128 images that the run has now."""
    return run.state.retries[-1].lr if run.state.retries else recipe.lr


def _retry(run: TrainingRun, recipe: Recipe, reason: str, callbacks: TrainingCallbacks) -> bool:
    """Go back to the best weights, or to those of the start, with a lower rate; return whether a retry was left."""
    state = run.state
    if len(state.retries) == recipe.retries:
        return False
    retry = Retry(epoch=state.epoch + 1, lr=_rate(run, recipe) * RETRY_FACTOR, reason=reason)
    state.retries.append(retry)
    state.begin_steps()
    run.trainer.reset(run.best if run.best and _has_learned(run) else run.initial)
    callbacks.retry(retry)
    return True


def _has_to_have_learned(run: TrainingRun, recipe: Recipe) -> bool:
    """Tell whether the run has had enough steps, since it last went back, for something to be learned."""
    state = run.state
    epochs = state.epoch - (state.retries[-1].epoch - 1 if state.retries else 0)
    steps = recipe.total_steps(run.steps_per_epoch)
    return epochs * run.steps_per_epoch >= max(_FEWEST_STEPS, _LEARNED * steps)


def _has_learned(run: TrainingRun) -> bool:
    """Tell whether the best result so far is better than the best answer that is the same for all images.

    That has the share of the largest class as its accuracy, and the entropy of the shares as its loss. A recipe that
    makes up for small classes may be worse in both, and better in the mean over the classes: it gives up right answers
    of large classes for those of small ones.
    """
    best = run.state.best
    if best is None:
        return False
    counts = Counter(image.label for image in run.validation.subset.images).values()
    shares = [count / sum(counts) for count in counts]
    of_classes = [epoch.val_class_top1 for epoch in run.state.history if epoch.val_class_top1 is not None]
    if run.trainer.recipe.balances_classes and of_classes and max(of_classes) > 1 / len(shares):
        return True
    return best.val_top1 > max(shares) or best.val_loss < -sum(share * math.log(share) for share in shares)


def _evaluate(run: TrainingRun, lr: float, callbacks: TrainingCallbacks) -> Epoch:
    """Evaluate the weights after an epoch, or their average if there is one, and keep the best; return the metrics."""
    trainer, state = run.trainer.averaged() or run.trainer, run.state
    batches = epoch_batches(trainer.recipe, state.epoch, run.training.labels)
    set_statistics(run, trainer, batches, callbacks)
    result = validate(run, trainer, callbacks)
    if is_best(state, result, averaged=run.trainer.average is not None):
        state.best_epoch = state.epoch + 1
        run.best = weights_of(trainer.model)
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
        averaged=True if run.trainer.average else None,
        loaded_images_per_s=state.images / state.loading_seconds if state.loading_seconds else None,
        step_images_per_s=state.images / state.used_seconds if state.used_seconds else None,
        waiting=state.waited_seconds / state.step_seconds,
        val_class_top1=result.class_top1,
    )


def is_best(state: RunState, result: Evaluation, *, averaged: bool) -> bool:
    """Tell whether a result is the one to keep so far; few validation images decide no more than they can.

    Args:
        state: of the run, with the epochs before.
        result: on the validation images.
        averaged: whether it is that of the moving average of the weights, which gets better up to the last epochs.
    """
    best = state.best
    if best is None:
        return True
    if result.images >= FEW_VALIDATED:
        return is_better(result.top1, result.loss, best.val_top1, best.val_loss)
    if averaged and state.probe is None and state.history:
        most = max(epoch.val_top1 for epoch in state.history)
        chance = max(MORE_RIGHT, round(0.5 * math.sqrt(result.images)))
        return round((most - result.top1) * result.images) <= chance
    if not state.best_epoch:  # the best is the network before the first epoch
        return round((result.top1 - best.val_top1) * result.images) >= MORE_RIGHT
    return is_better(result.top1, result.loss, best.val_top1, best.val_loss)


def is_better(top1: float, loss: float, best_top1: float, best_loss: float) -> bool:
    """Tell whether a result on the same validation images is at least as good as the best one before.

    The loss decides between equal accuracies: with few images they are equal often.
    """
    return (top1, -loss) >= (best_top1, -best_loss)
