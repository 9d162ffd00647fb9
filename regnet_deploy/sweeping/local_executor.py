"""Trials one after the other in this process."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable

from regnet_deploy.populations.store import Outcome, Trial
from regnet_deploy.sweeping.sweep_images import SweepImages
from regnet_deploy.sweeping.trial import run_trial
from regnet_deploy.training.execution import Execution
from regnet_deploy.training.recipe import Recipe

#: Called with a trial, the share of it that is done, and images/s.
Watch = Callable[[Trial, float, float], None]


def run_locally(
    trials: Iterable[Trial], images: SweepImages, recipe: Recipe, execution: Execution, watch: Watch
) -> Generator[tuple[Trial, Outcome], None, None]:
    """Yield each trial with its outcome as soon as it has one."""
    for trial in trials:

        def heard(share: float, rate: float, trial: Trial = trial) -> None:
            watch(trial, share, rate)

        yield trial, run_trial(trial, images, recipe, execution, heard)
