"""A sweep: networks are drawn from a design space and trained, in this process or on Ray, until each has an outcome."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from regnet_deploy.bundle.training import Execution
from regnet_deploy.cpu import available_cores
from regnet_deploy.errors import UsageError
from regnet_deploy.images.dataset import ImageDataset
from regnet_deploy.populations.store import (
    DIVERGED,
    DONE,
    FAILED,
    Store,
    Trial,
    TrialOutcome,
    check_store_path,
    lock_store,
    open_store,
)
from regnet_deploy.progress import Progress
from regnet_deploy.space.sampling import Band, draw_networks, networks_of
from regnet_deploy.space.space_file import space_data
from regnet_deploy.space.spaces import Space
from regnet_deploy.sweeping.sweep_images import SweepImages, check_folder, list_folder, load_images
from regnet_deploy.sweeping.trial import TrialCallback, run_locally
from regnet_deploy.training.recipe import Recipe

#: A sweep stops after so many failures in a row: before any trial of the run succeeded, and later.
_MAX_FIRST_FAILURES, _MAX_FAILURES = 3, 10
#: Runs trials and yields each with its outcome, in any order.
Executor = Callable[
    [Iterable[Trial], SweepImages, Recipe, Execution, TrialCallback], Generator[tuple[Trial, TrialOutcome], None, None]
]


@dataclass(frozen=True)
class SweepOptions:
    """How the networks of a sweep are trained, and where the results are stored.

    Attributes:
        data: folder of images.
        store: the store, a file.
        recipe: the recipe of all trials.
        val_split: fraction of each class that is held out where the folder has no validation images; None means 0.1.
        execution: device and precision.
        executor: what runs the trials.
        threads: CPU threads of a trial; None means all cores.
        retry: whether trials that diverged or failed are trained again.
        test_split: fraction of each class that is held out to test on; None means none. These images are checked
            like all others, and no network is trained or evaluated on them.
    """

    data: Path
    store: Path
    recipe: Recipe
    val_split: float | None = None
    execution: Execution = field(default_factory=lambda: Execution("cpu", channels_last=True))
    executor: Executor = run_locally
    threads: int | None = None
    retry: bool = False
    test_split: float | None = None


@dataclass(frozen=True)
class SweepStatus:
    """The status of a sweep.

    Attributes:
        store: the store with the results.
        planned: number of trials.
        errors: top-1 errors of the completed trials, percent, by number.
        diverged: number of trials whose loss was not finite.
        failed: number of trials that could not be trained.
        seconds: total time of the trials that have an outcome.
        messages: error messages of the failed trials, by number.
    """

    store: Path
    planned: int
    errors: dict[int, float]
    diverged: int
    failed: int
    seconds: float
    messages: dict[int, str]

    @property
    def pending(self) -> int:
        """Number of trials without an outcome."""
        return self.planned - len(self.errors) - self.diverged - self.failed

    def __str__(self) -> str:
        """Return the status as one line."""
        parts = [f"{len(self.errors)} of {self.planned} trials done"]
        parts += [f"{n} {what}" for n, what in ((self.diverged, "diverged"), (self.failed, "failed")) if n]
        if self.errors:
            values = list(self.errors.values())
            parts.append(f"top-1 error best {min(values):.2f} %, median {statistics.median(values):.2f} %")
        return "; ".join(parts)


def sweep(space: Space, band: Band, n: int, options: SweepOptions, progress: Progress, *, seed: int = 0) -> SweepStatus:
    """Draw networks, train those without an outcome, and return the status of the sweep.

    The number of classes is that of the folder, not that of the band. After an interruption, the same call continues
    with the remaining trials.

    Args:
        space: the space to draw from.
        band: the range of MACs.
        n: number of networks.
        options: data, recipe, store and executor.
        progress: receives the progress.
        seed: seed of the draws.

    Raises:
        UsageError: the options contradict each other, or the store belongs to another sweep.
        DataError: the images cannot be used, or the store cannot be written.
    """
    check_store_path(options.store)
    torch.set_num_threads(options.threads or available_cores())
    listing = list_folder(options.data, options.val_split, options.test_split, progress=progress)
    band = replace(band, classes=len(listing.train), stem_stride=band.stride)
    trials = planned_trials(space, band, options.recipe.epochs, n, seed, progress)
    with lock_store(options.store):
        folder = check_folder(
            listing, options.val_split, options.recipe.seed, options.store, progress, options.test_split
        )
        report_oversized_batch(options.recipe, folder, progress)
        identity = {
            **sweep_identity(folder, options, band.resolution),
            "space": space_data(space),
            "seed": seed,
            "mmacs": [band.lowest / 1e6, band.highest / 1e6],
            "stem_stride": band.stride,
        }
        with open_store(options.store, identity) as store:
            if options.retry:
                reset_failures(store, progress)
            store.add(trials)
            if sweep_status(store, trials).pending:
                images = load_images(folder, options.recipe, band.resolution, progress)
                run_pending_trials(store, trials, images, options, progress)
            return sweep_status(store, trials)


def planned_trials(space: Space, band: Band, epochs: int, n: int, seed: int, progress: Progress) -> list[Trial]:
    """Draw the networks of a sweep.

    Raises:
        UsageError: the space has fewer networks in the band.
    """
    drawn = draw_networks(space, n, band, seed, progress)
    costs = zip(drawn.macs.tolist(), drawn.parameters.tolist(), drawn.activations.tolist(), strict=True)
    columns = {name: column.tolist() for name, column in drawn.columns.items()}
    return [
        Trial(number, network, {name: column[number] for name, column in columns.items()}, *cost, epochs)
        for number, (network, cost) in enumerate(zip(networks_of(space, drawn, band.stride), costs, strict=True))
    ]


def sweep_identity(folder: ImageDataset, options: SweepOptions, resolution: int) -> dict[str, Any]:
    """Return what determines the outcome of a trial besides its network and its epochs."""
    fitted = options.recipe.fitted(len(folder.train)).to_json()
    return {
        "data": {
            "digest": folder.digest,
            "split": folder.split,
            "classes": len(folder.classes),
            "train_images": len(folder.train),
            "val_images": len(folder.val),
            **({"test_digest": folder.test_digest} if folder.test else {}),
        },
        "resolution": resolution,
        "recipe": {name: value for name, value in fitted.items() if name != "fine_tune"},
        "execution": options.execution.to_json(),
    }


def run_pending_trials(
    store: Store, trials: Sequence[Trial], images: SweepImages, options: SweepOptions, progress: Progress
) -> None:
    """Run the trials that have no outcome in the store, and store each outcome immediately.

    Raises:
        UsageError: too many trials failed in a row, so that a common cause is likely.
        DataError: the images can no longer be read, or the store cannot be written.
    """
    outcomes = _outcomes(store, trials)
    pending = [trial for trial in trials if trial.number not in outcomes]
    sweep_progress = _SweepProgress(len(trials), outcomes, progress)
    if outcomes:
        progress.message(
            f"{store.path}: {len(outcomes)} of {len(trials)} trials have an outcome, {len(pending)} remain"
        )
    failures, successes, earlier = 0, 0, list(outcomes.values())
    running = options.executor(pending, images, options.recipe, options.execution, sweep_progress.step)
    with contextlib.closing(running) as completed:
        for trial, outcome in completed:
            store.record(trial.number, outcome)
            sweep_progress.completed(trial, outcome)
            if not successes + failures:
                _report_other_machine(outcome, earlier, progress)
            successes, failures = (successes, failures + 1) if outcome.state == FAILED else (successes + 1, 0)
            if failures >= (_MAX_FAILURES if successes else _MAX_FIRST_FAILURES):
                raise UsageError(
                    f"{failures} trials failed in a row, probably for the same reason: {outcome.message}; correct it "
                    "and run the same command with --retry"
                )


def report_oversized_batch(recipe: Recipe, folder: ImageDataset, progress: Progress) -> None:
    """Report a batch size that is larger than the number of training images."""
    oversized = recipe.oversized_batch(len(folder.train))
    if oversized:
        progress.message(oversized)


def reset_failures(store: Store, progress: Progress) -> None:
    """Mark the trials that diverged or failed as pending."""
    progress.message(f"{store.reset((DIVERGED, FAILED))} trials that diverged or failed are trained again")


def sweep_status(store: Store, trials: Sequence[Trial]) -> SweepStatus:
    """Return the status of these trials of a store."""
    outcomes = _outcomes(store, trials)
    return SweepStatus(
        store=store.path,
        planned=len(trials),
        errors={n: each.error for n, each in outcomes.items() if each.state == DONE and each.error is not None},
        diverged=sum(each.state == DIVERGED for each in outcomes.values()),
        failed=sum(each.state == FAILED for each in outcomes.values()),
        seconds=sum(each.seconds for each in outcomes.values()),
        messages={number: each.message for number, each in outcomes.items() if each.state == FAILED},
    )


def _report_other_machine(outcome: TrialOutcome, earlier: Sequence[TrialOutcome], progress: Progress) -> None:
    """Report a machine that differs from that of earlier trials: rounding, and so the errors, may differ."""
    for name in ("device", "gpus", "torch"):
        values = {str(each.machine.get(name)) for each in earlier} - {str(outcome.machine.get(name))}
        if values:
            now = outcome.machine.get(name)
            progress.message(f"earlier trials ran with {name} {', '.join(sorted(values))}, these run with {now}")


def _outcomes(store: Store, trials: Sequence[Trial]) -> dict[int, TrialOutcome]:
    known = store.outcomes()
    return {trial.number: known[trial.number] for trial in trials if trial.number in known}


class _SweepProgress:
    """Progress of a sweep: completed trials, best and median error so far, images/s of the running trials."""

    def __init__(self, total: int, outcomes: dict[int, TrialOutcome], progress: Progress) -> None:
        self._total, self._done, self._progress = total, len(outcomes), progress
        self._errors = [each.error for each in outcomes.values() if each.error is not None]
        self._running: dict[int, tuple[float, float]] = {}
        self._start, self._done_in_this_run = time.perf_counter(), 0
        self._best = _best_and_median(self._errors)
        progress.step("trials", total)

    def step(self, trial: Trial, fraction: float, rate: float) -> None:
        """Receive the completed fraction of a running trial and its images/s."""
        self._running[trial.number] = (fraction, rate)
        self._update()

    def completed(self, trial: Trial, outcome: TrialOutcome) -> None:
        """Report the outcome of a trial in one line."""
        self._running.pop(trial.number, None)
        self._done += 1
        self._done_in_this_run += 1
        cost = f"{trial.macs / 1e6:.2f} MMACs, {trial.parameters / 1e3:.0f} k parameters"
        if outcome.error is not None:
            self._errors.append(outcome.error)
            self._best = _best_and_median(self._errors)
            result = f"error {outcome.error:.2f} %"
        else:
            result = f"{outcome.state} ({outcome.message})"
        seconds_per_trial = (time.perf_counter() - self._start) / self._done_in_this_run
        remaining = _duration(seconds_per_trial * (self._total - self._done))
        self._progress.message(
            f"trial {trial.number} ({self._done}/{self._total}): {result}, {cost}, {outcome.seconds:.0f} s, "
            f"{outcome.images_per_s:.0f} images/s; {self._best}{remaining} left"
        )
        self._update()

    def _update(self) -> None:
        fraction = sum(fraction for fraction, _ in self._running.values())
        rate = sum(rate for _, rate in self._running.values())
        note = self._best + (f"{rate:.0f} images/s" if rate else "")
        self._progress.update(self._done + fraction, self._total, note)


def _best_and_median(errors: Sequence[float]) -> str:
    return f"best {min(errors):.2f} %, median {statistics.median(errors):.2f} %; " if errors else ""


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
