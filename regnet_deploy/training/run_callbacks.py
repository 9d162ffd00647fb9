"""What a run shows of itself while it trains: lines, progress and trackers such as TensorBoard."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from regnet_deploy.bundle.training import Epoch, LearningRateProbe, LinearProbe, PixelBaseline, Retry
from regnet_deploy.progress import Progress
from regnet_deploy.tracking.trackers import Trackers
from regnet_deploy.training.initial_head import PROBE_BATCH
from regnet_deploy.training.rate_probe import FACTORS, trial_steps
from regnet_deploy.training.run import TrainingCallbacks, TrainingRun
from regnet_deploy.training.run_messages import (
    epoch_line,
    length_line,
    lr_probe_line,
    pixels_line,
    probe_line,
    retry_line,
)

#: Seconds between two values of the loss in trackers.
_LOSS_INTERVAL_S = 1.0


def run_callbacks(
    run: TrainingRun,
    save: Callable[[], None],
    trackers: Trackers,
    progress: Progress,
    checkpoint_s: float,
    quiet: TrainingCallbacks,
) -> TrainingCallbacks:
    """Return the callbacks that show a run, save it as this function does, and stop it as the quiet callbacks do."""
    recipe = run.trainer.recipe
    last_loss_s = -math.inf
    shown = ""

    def step(loss: float, images_per_s: float) -> None:
        nonlocal last_loss_s, shown
        state = run.state
        if run.start:
            name, done, total = (
                f"learning rate {len(state.rate_trials) + 1}/{len(FACTORS)}",
                state.step,
                trial_steps(run),
            )
        else:
            name, done = f"epoch {state.epoch + 1}/{recipe.epochs}", run.steps_done
            total = recipe.total_steps(run.steps_per_epoch)
        if shown != name:
            shown = name
            progress.step(name, total)
        val = f", val top-1 {state.history[-1].val_top1:.1%}" if state.history else ""
        progress.update(done, note=f"loss {loss:.3f}{val}, {images_per_s:,.0f} images/s")
        if not run.start and time.monotonic() - last_loss_s >= _LOSS_INTERVAL_S:
            trackers.scalars({"step/loss": loss}, run.steps_done)
            last_loss_s = time.monotonic()

    def epoch(values: Epoch) -> None:
        progress.message(epoch_line(values, recipe.epochs, run.state))
        long = length_line(run.state, recipe.epochs, recipe.minutes) if values.epoch == 1 else None
        if long:
            progress.message(long)
        scalars = {
            name: value for name, value in values.to_json().items() if name not in ("epoch", "val_images", "averaged")
        }
        trackers.scalars({f"epoch/{name}": value for name, value in scalars.items()}, run.steps_done)

    def features(done: int, images: int) -> None:
        if done <= PROBE_BATCH:
            progress.step("images for the first classifier", images)
        progress.update(done)

    def probe(result: LinearProbe | None) -> None:
        progress.message(probe_line(result))
        if result:
            trackers.scalars({"epoch/val_top1": result.val_top1, "epoch/val_loss": result.val_loss}, 0)

    def pixels(result: PixelBaseline | None) -> None:
        progress.message(pixels_line(result, recipe))

    def retry(result: Retry) -> None:
        progress.message(retry_line(result))

    def lr_probe(result: LearningRateProbe) -> None:
        progress.message(lr_probe_line(result))

    checkpoints = _Checkpoints(save, checkpoint_s)
    return TrainingCallbacks(
        step,
        epoch,
        checkpoints.save,
        checkpoint_s,
        checkpoints.save_if_cheap,
        quiet.stopping,
        quiet.signalled,
        features,
        probe,
        lr_probe,
        pixels,
        retry,
    )


class _Checkpoints:
    """Writes checkpoints, and leaves them out where they would take more than a twentieth of the time.

    An epoch of few small images is shorter than writing its checkpoint.
    """

    def __init__(self, save: Callable[[], None], every_s: float) -> None:
        self._save, self._every_s = save, every_s
        self._took = 0.0
        self._saved = -math.inf

    def save(self) -> None:
        begin = time.monotonic()
        self._save()
        self._saved = time.monotonic()
        self._took = self._saved - begin

    def save_if_cheap(self) -> None:
        if time.monotonic() - self._saved >= min(self._every_s, 20 * self._took):
            self.save()


def quiet_callbacks(stopping: Callable[[], bool], signalled: Callable[[], bool]) -> TrainingCallbacks:
    """Return the callbacks of a process that neither shows nor saves the run: the first of its group does."""

    def nothing(*_: object) -> None:
        pass

    return TrainingCallbacks(nothing, nothing, nothing, math.inf, nothing, stopping, signalled)
