"""The interface of trackers: what a run tells them, and how they fail."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from regnet_deploy.durable_files import write_whole

#: How a run leaves its trackers: it has ended, it was interrupted and can be continued, or an error ended it.
Status = Literal["finished", "interrupted", "failed"]
#: Project or experiment of the runs, unless a variable of the environment names another.
PROJECT = "regnet-deploy"


class TrackerError(Exception):
    """A tracker cannot store a run at the moment, for example for lack of a network or disk space; says why."""


@dataclass(frozen=True)
class TrackedRun:
    """A run as trackers see it when they are opened.

    Attributes:
        name: to show, for example ``regnet-bundle run-1``.
        directory: folder of the run; trackers keep their files and the numbers of their runs in it.
        resumed_at: steps that are done; 0 for a new run.
        parameters: recipe, images and execution, by names such as ``recipe/lr``.
    """

    name: str
    directory: Path
    resumed_at: int
    parameters: Mapping[str, str | int | float | bool]


class Tracker(Protocol):
    """Shows a run. Every method may raise :class:`TrackerError`."""

    @property
    def place(self) -> str:
        """Where the run is shown, in words; empty where that needs no words."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Show values by name, such as ``epoch/val_top1``, at a step counted from the start of the run."""

    def result(self, values: Mapping[str, str | int | float]) -> None:
        """Show the final values, by names such as ``final/val_top1``, when the weights are in the bundle."""

    def close(self, status: Status) -> None:
        """Send what is left, and end."""


def stored_run(run: TrackedRun, tracker: str) -> dict[str, Any]:
    """Return what :func:`store_run` wrote about a run in a tracker; empty if it is not known there, or not readable."""
    try:
        data = json.loads((run.directory / f"{tracker}.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def store_run(run: TrackedRun, tracker: str, data: Mapping[str, str]) -> None:
    """Store which run of a tracker this run is, so that it is continued there.

    Raises:
        TrackerError: it cannot be written.
    """
    try:
        run.directory.mkdir(exist_ok=True)
        write_whole(run.directory / f"{tracker}.json", json.dumps(dict(data)).encode())
    except OSError as error:
        raise TrackerError(f"cannot write {run.directory / f'{tracker}.json'}: {error.strerror}") from None


def one_line(error: BaseException) -> str:
    """Return the text of an error of another library in one line, at most 500 characters."""
    return f"{' '.join(str(error).split()) or type(error).__name__:.500}"
