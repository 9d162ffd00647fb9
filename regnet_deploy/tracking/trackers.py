"""The trackers that a run is shown in: opened together, and each of them may fail without the others or the run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType

from regnet_deploy.errors import UsageError
from regnet_deploy.progress import Progress
from regnet_deploy.tracking.mlflow_tracker import load_mlflow, open_mlflow
from regnet_deploy.tracking.tensorboard_tracker import load_tensorboard, open_tensorboard
from regnet_deploy.tracking.tracker import Status, TrackedRun, Tracker, TrackerError
from regnet_deploy.tracking.wandb_tracker import load_wandb, open_wandb

#: Name -> name to show, and the functions that import its library and open it.
_TRACKERS: dict[str, tuple[str, Callable[[], ModuleType], Callable[[TrackedRun], Tracker]]] = {
    "tensorboard": ("TensorBoard", load_tensorboard, open_tensorboard),
    "mlflow": ("MLflow", load_mlflow, open_mlflow),
    "wandb": ("W&B", load_wandb, open_wandb),
}
TRACKERS = tuple(_TRACKERS)
DEFAULT_TRACKERS = ("tensorboard",)


class Trackers:
    """Open trackers; an error of one of them is said once, and the run goes on."""

    def __init__(self, opened: Mapping[str, Tracker], progress: Progress) -> None:
        self._opened, self._progress = opened, progress
        self._failed: set[str] = set()

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Show values by name, such as ``epoch/val_top1``, at a step counted from the start of the run."""
        self._each(lambda tracker: tracker.scalars(values, step))

    def result(self, values: Mapping[str, str | int | float]) -> None:
        """Show the final values of the run, by names such as ``final/val_top1``."""
        self._each(lambda tracker: tracker.result(values))

    def close(self, status: Status) -> None:
        """Send what is left, and end all of them."""
        self._each(lambda tracker: tracker.close(status))

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in self._opened.items():
            try:
                call(tracker)
            except TrackerError as error:
                if name not in self._failed:
                    self._failed.add(name)
                    self._progress.message(f"{_TRACKERS[name][0]} misses values of this run: {error}; training goes on")


@contextlib.contextmanager
def open_trackers(names: Sequence[str], run: TrackedRun, progress: Progress) -> Iterator[Trackers]:
    """Open trackers by name, and close them with how the context ends.

    A tracker that cannot be reached is said in a line, and left out.

    Raises:
        UsageError: a setting of a tracker is wrong.
        MissingExtra: a tracker is not installed.
    """
    opened: dict[str, Tracker] = {}
    trackers = Trackers(opened, progress)
    status: Status = "failed"
    try:
        for name in dict.fromkeys(names):
            shown, _, open_tracker = _TRACKERS[name]
            try:
                opened[name] = open_tracker(run)
            except TrackerError as error:
                progress.message(f"{shown} does not show this run: {error}; training goes on without it")
                continue
            if opened[name].place:
                progress.message(f"{shown}: {opened[name].place}")
        yield trackers
        status = "finished"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        trackers.close(status)


def ensure_known(names: Sequence[str]) -> None:
    """Check the names of trackers.

    Raises:
        UsageError: one is none of :data:`TRACKERS`.
    """
    if isinstance(names, str):
        raise UsageError(f"track must be a tuple of names, such as ('mlflow',), got {names!r:.60}")
    for name in names:
        if name not in _TRACKERS:
            raise UsageError(f"{name!r:.60} is no tracker: give {', '.join(TRACKERS)}")


def ensure_installed(names: Sequence[str]) -> None:
    """Check, before long work, that the libraries of trackers are installed.

    Raises:
        MissingExtra: one is not.
    """
    for name in names:
        _TRACKERS[name][1]()
