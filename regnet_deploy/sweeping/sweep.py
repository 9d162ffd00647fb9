"""A sweep: networks drawn from a design space, trained one by one or on Ray, until every one has an outcome."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from regnet_deploy.cpu import available_cores
from regnet_deploy.errors import UsageError
from regnet_deploy.images.dataset import ImageDataset
from regnet_deploy.populations.store import (
    DIVERGED,
    DONE,
    FAILED,
    Outcome,
    Store,
    Trial,
    check_store_path,
    lock_store,
    open_store,
)
from regnet_deploy.space.sampling import Band, draw_networks, networks_of
from regnet_deploy.space.space_file import space_data
from regnet_deploy.space.spaces import Space
from regnet_deploy.sweeping.local_executor import Watch, run_locally
from regnet_deploy.sweeping.reporter import Reporter
from regnet_deploy.sweeping.sweep_images import SweepImages, check_folder, list_folder, load_images
from regnet_deploy.training.execution import Execution
from regnet_deploy.training.recipe import Recipe

#: So many failures are no accident: of a run before anything is done, and one after the other later.
_AT_ONCE, _IN_A_ROW = 3, 10
#: Runs trials and yields each with its outcome, in any order.
Executor = Callable[
    [Iterable[Trial], SweepImages, Recipe, Execution, Watch], Generator[tuple[Trial, Outcome], None, None]
]


@dataclass(frozen=True)
class SweepOptions:
    """What a sweep needs to know besides space, band and data.

    Attributes:
        n: networks.
        seed: of the draws.
        val_split: share of each class to hold out where the folder has no validation images; None is 0.1.
        execution: how a step is run.
        executor: what runs the trials.
        threads: of the CPU for one trial; None is every core.
        retry: train those again that diverged or failed.
    """

    n: int
    seed: int = 0
    val_split: float | None = None
    execution: Execution = field(default_factory=lambda: Execution("cpu", channels_last=True))
    executor: Executor = run_locally
    threads: int | None = None
    retry: bool = False


@dataclass(frozen=True)
class SweepStatus:
    """How a sweep stands.

    Attributes:
        store: where its results are.
        planned: trials in all.
        errors: top-1 errors of the trials that are done, percent, by number.
        diverged: trials whose loss was not finite.
        failed: trials that could not be run.
        seconds: time of all trials that have an outcome.
        messages: what those that failed said, by number.
    """

    store: Path
    planned: int
    errors: dict[int, float]
    diverged: int
    failed: int
    seconds: float
    messages: dict[int, str]

    @property
    def left(self) -> int:
        """Trials without an outcome."""
        return self.planned - len(self.errors) - self.diverged - self.failed

    def __str__(self) -> str:
        """Return it in a line."""
        parts = [f"{len(self.errors)} of {self.planned} trials done"]
        parts += [f"{n} {what}" for n, what in ((self.diverged, "diverged"), (self.failed, "failed")) if n]
        if self.errors:
            values = list(self.errors.values())
            parts.append(f"top-1 error best {min(values):.2f} %, median {statistics.median(values):.2f} %")
        return "; ".join(parts)


def sweep(
    space: Space, band: Band, data: Path, recipe: Recipe, options: SweepOptions, path: Path, reporter: Reporter
) -> SweepStatus:
    """Draw networks, train those that have no outcome yet, and return how the sweep stands.

    The number of classes is that of the folder, whatever the band says. Interrupted or killed, the same call goes on
    with what is left.

    Raises:
        UsageError: options that do not fit each other, or a store of another sweep.
        DataError: the images cannot be used, or the store cannot be written.
    """
    check_store_path(path)
    torch.set_num_threads(options.threads or available_cores())
    listing = list_folder(data, options.val_split)
    band = replace(band, classes=len(listing.train), stem_stride=band.stride)
    trials = planned_trials(space, band, recipe.epochs, options.n, options.seed, reporter)
    with lock_store(path):
        folder = check_folder(listing, options.val_split, recipe.seed, path, reporter)
        identity = sweep_identity(folder, recipe, options.execution, band.resolution)
        identity |= {
            "space": space_data(space),
            "seed": options.seed,
            "mmacs": [band.lowest / 1e6, band.highest / 1e6],
            "stem_stride": band.stride,
        }
        return _sweep(trials, folder, identity, recipe, options, path, reporter)


def _sweep(
    trials: Sequence[Trial],
    folder: ImageDataset,
    identity: Mapping[str, Any],
    recipe: Recipe,
    options: SweepOptions,
    path: Path,
    reporter: Reporter,
) -> SweepStatus:
    with open_store(path, identity) as store:
        if options.retry:
            forget_failures(store, reporter)
        store.plan(trials)
        if sweep_status(store, trials).left:
            images = load_images(folder, recipe, identity["resolution"], reporter)
            run_pending_trials(store, trials, images, recipe, options, reporter)
        return sweep_status(store, trials)


def planned_trials(space: Space, band: Band, epochs: int, n: int, seed: int, reporter: Reporter) -> list[Trial]:
    """Draw the networks of a sweep.

    Raises:
        UsageError: the space has fewer in the band.
    """
    drawn = draw_networks(space, n, band, seed, lambda done, total: reporter.advance("drawing networks", done, total))
    costs = zip(drawn.macs.tolist(), drawn.parameters.tolist(), drawn.activations.tolist(), strict=True)
    columns = {name: column.tolist() for name, column in drawn.columns.items()}
    return [
        Trial(number, network, {name: column[number] for name, column in columns.items()}, *cost, epochs)
        for number, (network, cost) in enumerate(zip(networks_of(space, drawn, band.stride), costs, strict=True))
    ]


def sweep_identity(folder: ImageDataset, recipe: Recipe, execution: Execution, resolution: int) -> dict[str, Any]:
    """Return what decides the outcome of a trial besides its network and its epochs."""
    fitted = recipe.fitted(len(folder.train)).to_json()
    return {
        "data": {
            "digest": folder.digest,
            "split": folder.split,
            "classes": len(folder.classes),
            "train_images": len(folder.train),
            "val_images": len(folder.val),
        },
        "resolution": resolution,
        "recipe": {name: value for name, value in fitted.items() if name != "fine_tune"},
        "execution": execution.to_json(),
    }


def run_pending_trials(
    store: Store,
    trials: Sequence[Trial],
    images: SweepImages,
    recipe: Recipe,
    options: SweepOptions,
    reporter: Reporter,
) -> None:
    """Run those of the trials that have no outcome in the store, and write each outcome as soon as there is one.

    Raises:
        UsageError: trial after trial failed, so that something is wrong with all of them.
        DataError: the images cannot be read any more, or the store cannot be written.
    """
    outcomes = _outcomes(store, trials)
    left = [trial for trial in trials if trial.number not in outcomes]
    progress = _Progress(len(trials), outcomes, reporter)
    if outcomes:
        reporter.say(f"{store.path}: {len(outcomes)} of {len(trials)} trials have an outcome, {len(left)} are left")
    failed, done, elsewhere = 0, 0, list(outcomes.values())
    with contextlib.closing(options.executor(left, images, recipe, options.execution, progress.watch)) as ended:
        for trial, outcome in ended:
            store.record(trial.number, outcome)
            progress.ended(trial, outcome)
            if not done + failed:
                _tell_other_machine(outcome, elsewhere, reporter)
            done, failed = (done, failed + 1) if outcome.state == FAILED else (done + 1, 0)
            if failed >= (_IN_A_ROW if done else _AT_ONCE):
                raise UsageError(
                    f"{failed} trials failed one after the other, so something is wrong with all of them: "
                    f"{outcome.message}; put it right and give the same command with --retry"
                )


def forget_failures(store: Store, reporter: Reporter) -> None:
    """Have those trained again that diverged or failed."""
    reporter.say(f"{store.forget((DIVERGED, FAILED))} trials that diverged or failed are trained again")


def _tell_other_machine(outcome: Outcome, before: Sequence[Outcome], reporter: Reporter) -> None:
    """Say what is not as it was for earlier trials of the store: last bits, and so errors, may differ by it."""
    for name in ("device", "gpus", "torch"):
        values = {str(each.machine.get(name)) for each in before} - {str(outcome.machine.get(name))}
        if values:
            now = outcome.machine.get(name)
            reporter.say(f"earlier trials ran with {name} {', '.join(sorted(values))}, these with {now}")


def sweep_status(store: Store, trials: Sequence[Trial]) -> SweepStatus:
    """Return how these trials of a store stand."""
    outcomes = _outcomes(store, trials)
    errors = {n: each.error for n, each in outcomes.items() if each.state == DONE and each.error is not None}
    return SweepStatus(
        store.path,
        len(trials),
        errors,
        sum(each.state == DIVERGED for each in outcomes.values()),
        sum(each.state == FAILED for each in outcomes.values()),
        sum(each.seconds for each in outcomes.values()),
        {number: each.message for number, each in outcomes.items() if each.state == FAILED},
    )


def _outcomes(store: Store, trials: Sequence[Trial]) -> dict[int, Outcome]:
    known = store.outcomes()
    return {trial.number: known[trial.number] for trial in trials if trial.number in known}


class _Progress:
    """Tells how a sweep goes: trials done, best and median error so far, images/s."""

    def __init__(self, total: int, outcomes: dict[int, Outcome], reporter: Reporter) -> None:
        self._total, self._done, self._reporter = total, len(outcomes), reporter
        self._errors = [each.error for each in outcomes.values() if each.error is not None]
        self._running: dict[int, tuple[float, float]] = {}
        self._started, self._here = time.perf_counter(), 0
        self._best = _best(self._errors)

    def watch(self, trial: Trial, share: float, rate: float) -> None:
        """Take how far a running trial is."""
        self._running[trial.number] = (share, rate)
        self._tell()

    def ended(self, trial: Trial, outcome: Outcome) -> None:
        """Take the outcome of a trial, and say it in a line."""
        self._running.pop(trial.number, None)
        self._done += 1
        self._here += 1
        cost = f"{trial.macs / 1e6:.2f} MMACs, {trial.parameters / 1e3:.0f} k parameters"
        if outcome.error is not None:
            self._errors.append(outcome.error)
            self._best = _best(self._errors)
            said = f"error {outcome.error:.2f} %"
        else:
            said = f"{outcome.state} ({outcome.message})"
        pace = (time.perf_counter() - self._started) / self._here
        left = _duration(pace * (self._total - self._done))
        self._reporter.say(
            f"trial {trial.number} ({self._done}/{self._total}): {said}, {cost}, {outcome.seconds:.0f} s, "
            f"{outcome.images_per_s:.0f} images/s; {self._best}{left} left"
        )
        self._tell()

    def _tell(self) -> None:
        share = sum(share for share, _ in self._running.values())
        rate = sum(rate for _, rate in self._running.values())
        note = self._best + (f"{rate:.0f} images/s" if rate else "")
        self._reporter.advance("trials", self._done + share, self._total, note)


def _best(errors: Sequence[float]) -> str:
    return f"best {min(errors):.2f} %, median {statistics.median(errors):.2f} %; " if errors else ""


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
