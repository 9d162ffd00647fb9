"""The learning-rate probe: short trials of three rates, of which the best is trained with.

Each trial starts from the same weights, sees the same images in the same order, and has the whole schedule, warm-up and
cosine, within a tenth of the steps of the run. It is judged by the loss on the validation images: of a few steps the
accuracy says too little. These images choose among three numbers only, as they choose among epochs.
"""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import replace

from regnet_deploy.bundle.training import LearningRateProbe, RateTrial
from regnet_deploy.training.data_loader import batches_from, epoch_batches
from regnet_deploy.training.recipe import cosine_rate
from regnet_deploy.training.run import (
    DivergenceError,
    TrainingCallbacks,
    TrainingRun,
    diverged,
    load_batches,
    validate,
    weights_of,
)
from regnet_deploy.training.steps import set_statistics, train_steps

#: Rates that are tried, as multiples of that of the recipe.
FACTORS = (0.25, 1.0, 4.0)
#: Share of the steps of the run that a trial has, and the share of its steps that are for warm-up.
SHARE = 0.1
_WARMUP = 0.2
#: Another rate than that of the recipe has to have a loss that is lower by this share, over the root of the number of
#: validation images: means of few images differ by chance.
_MARGIN = 0.5


def probe_learning_rate(run: TrainingRun, callbacks: TrainingCallbacks) -> None:
    """Try the rates that are left to try, and choose one; the weights are then those of before.

    Raises:
        DivergenceError: the loss is finite with none of the rates.
        DataError: no image could be read.
        Interrupted: the callbacks said so; the checkpoint is of this moment.
    """
    state, trainer = run.state, run.trainer
    if not run.start:
        run.start = weights_of(trainer.model)
    while len(state.rate_trials) < len(FACTORS):
        begin, before = time.perf_counter(), state.seconds
        state.rate_trials.append(_trial(run, trainer.recipe.lr * FACTORS[len(state.rate_trials)], callbacks))
        state.trial_seconds += before + time.perf_counter() - begin
        state.begin_steps()
        trainer.reset(run.start)
        callbacks.save()
    chosen = best_rate(state.rate_trials, trainer.recipe.lr, len(run.validation))
    if chosen is None:
        if not trainer.recipe.retries:
            raise diverged(run)
        chosen = min(trial.lr for trial in state.rate_trials) * FACTORS[0]
    state.lr_probe = LearningRateProbe(
        lr=chosen, steps=trial_steps(run), trials=tuple(state.rate_trials), seconds=state.trial_seconds
    )
    run.start = {}
    callbacks.lr_probe(state.lr_probe)
    callbacks.save()


def trial_steps(run: TrainingRun) -> int:
    """Return the number of steps of a trial."""
    return max(1, round(SHARE * run.trainer.recipe.total_steps(run.steps_per_epoch)))


def best_rate(trials: list[RateTrial], default: float, images: int) -> float | None:
    """Return the rate of the least loss, or ``default`` if that is nearly as good; None if all have diverged.

    Args:
        trials: of different rates, on so many validation ``images``.
        default: rate of the recipe.
        images: number of validation images, 1 or more.
    """
    losses = {trial.lr: math.inf if trial.val_loss is None else trial.val_loss for trial in trials}
    best = min(losses, key=lambda rate: losses[rate])
    if losses[best] == math.inf:
        return None
    margin = _MARGIN / math.sqrt(images)
    return best if losses[best] < (1 - margin) * losses[default] else default


def _trial(run: TrainingRun, lr: float, callbacks: TrainingCallbacks) -> RateTrial:
    """Train with a rate from where the trial is, and evaluate it."""
    recipe, state, labels = replace(run.trainer.recipe, lr=lr), run.state, run.training.labels
    steps = trial_steps(run)
    warmup = round(_WARMUP * steps)
    left = batches_from(recipe, labels, *divmod(state.step, run.steps_per_epoch))
    batches = load_batches(run, run.training, itertools.islice(left, steps - state.step))
    try:
        train_steps(run, batches, steps, lambda step: cosine_rate(recipe.peak_rate, step, steps, warmup), callbacks)
        set_statistics(run, run.trainer, epoch_batches(recipe, 0, labels), callbacks)
        result = validate(run, run.trainer, callbacks)
    except DivergenceError:
        return RateTrial(lr=lr, val_loss=None, val_top1=None)
    return RateTrial(lr=lr, val_loss=result.loss, val_top1=result.top1)
