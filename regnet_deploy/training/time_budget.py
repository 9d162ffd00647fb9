"""How many steps fit into a time: the speed of steps and of validation is measured before the first epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from regnet_deploy.training.data_loader import EvaluationDataset, TrainingDataset, batches_from, load, number_batches
from regnet_deploy.training.distributed import ALONE, ProcessGroup
from regnet_deploy.training.evaluate import evaluate
from regnet_deploy.training.rate_probe import FACTORS, SHARE
from regnet_deploy.training.recipe import Recipe, steps_per_epoch
from regnet_deploy.training.trainer import Trainer

#: Share of the time for which steps are measured, and the fewest seconds and steps of that.
_SHARE, _SECONDS, _STEPS = 0.02, 1.0, 3
#: Validation images that are measured.
_VALIDATED = 256
#: Share of the time, and seconds, that are kept for what is not steps: the pixel baseline, checkpoints, the bundle.
_RESERVE, _RESERVE_S = 0.04, 2.0


@dataclass(frozen=True)
class Plan:
    """How a run gets its length.

    Attributes:
        recipe: the fitted recipe for a number of steps; None for those of its epochs.
        given: the values that the user gave.
        begun: ``time.perf_counter()`` when the command began.
        recipe_name: of a recipe that has one.
    """

    recipe: Callable[[int | None], Recipe]
    given: Recipe
    begun: float
    recipe_name: str | None = None


def with_steps(recipe: Recipe | Mapping[str, Any], steps: int) -> Recipe | Mapping[str, Any]:
    """Return a recipe, or some values of one, with a number of steps."""
    return replace(recipe, steps=steps) if isinstance(recipe, Recipe) else {**recipe, "steps": steps}


def planned_steps(given: Recipe, before: Mapping[str, Any] | None) -> int | None:
    """Return the steps that an earlier run had, or has, if its time was the same; None if they are to be measured."""
    if given.minutes is None or before is None or before.get("minutes") != given.minutes:
        return given.steps
    steps: int | None = before.get("steps")
    return steps


@dataclass(frozen=True)
class FittedSteps:
    """How many steps fit into a time, 1 or more, and the measured images/s of steps."""

    steps: int
    images_per_s: float

    def __str__(self) -> str:
        """Return it in words."""
        return f"{self.steps:,} step{'' if self.steps == 1 else 's'} fit, at {self.images_per_s:,.0f} images/s"


def steps_that_fit(
    trainer: Trainer,
    training: TrainingDataset,
    validation: EvaluationDataset,
    workers: int,
    seconds: float,
    group: ProcessGroup = ALONE,
) -> FittedSteps:
    """Return how many training steps, with the evaluation after each epoch, take so many seconds.

    Counted are also the training images that the network only looks at: those for batch norm statistics in every epoch,
    and once those of a linear probe. They take as long as images for validation.

    Args:
        trainer: is changed: it runs steps with learning rate 0.
        training: images of the steps.
        validation: images of each validation.
        workers: processes that load images.
        seconds: time of the run that is left.
        group: the processes that train together, each of which measures; the first one decides.
    """
    recipe, pin = trainer.recipe, trainer.execution.device == "cuda"
    per_epoch = steps_per_epoch(len(training), recipe.batch)
    begun, measured = time.perf_counter(), 0
    step_begun = begun
    for batch in load(training, map(group.share, batches_from(recipe, training.labels, 0, 0)), workers, pin):
        if len(batch.labels) > 1 or trainer.gradients:
            trainer.step(batch, 0.0)
        trainer.synchronize()
        if not measured:  # the first one prepares buffers
            step_begun = time.perf_counter()
        measured += 1
        elapsed = time.perf_counter() - step_begun
        enough = measured > _STEPS and elapsed >= max(_SECONDS, _SHARE * seconds)
        if group.first(lambda enough=enough: enough):  # type: ignore[misc]
            break
    now = time.perf_counter()
    step_s = (now - step_begun) / (measured - 1) if measured > 1 else now - begun
    count = min(len(validation), _VALIDATED)
    begin = time.perf_counter()
    evaluate(
        trainer,
        load(validation, map(group.share, number_batches(count, recipe.batch)), 0, pin),
        validation.preprocessing,
    )
    image_s = (time.perf_counter() - begin) / count
    looked_at = len(validation) + min(recipe.precise_bn_images, per_epoch * recipe.batch)
    once_s = image_s * len(training) if recipe.probe else 0.0
    left = seconds * (1 - _RESERVE) - _RESERVE_S - once_s - (time.perf_counter() - begun)
    trials = 1 + (len(FACTORS) * SHARE if recipe.lr_probe else 0)
    steps = math.floor(left / (step_s * trials + image_s * looked_at / per_epoch))
    return group.first(lambda: FittedSteps(max(1, steps), recipe.batch / step_s))
