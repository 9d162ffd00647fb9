"""Measures the phases of a training in a process of its own; used on all sides of `benchmarks/training.py`.

The process prints one line of JSON, the last of its stdout. All seconds are of the wall clock:

* ``imports_s``: from the start of the process until its libraries are imported;
* ``setup_s``: from then until the clock begins;
* ``seconds``: on the clock;
* ``after_s``: until the training returns.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from typing import Any

#: Images of the trial that says how long an epoch is; its first epoch is left out if it has more than one.
TRIAL_IMAGES = 2000


class Phases:
    """To be made when the libraries are imported.

    Args:
        started: when the process was started, as `time.time` gives it.
    """

    def __init__(self, started: float) -> None:
        self._started, self._imported = started, time.time()
        self._trial_s = 0.0
        self._phases: dict[str, float] = {}
        self._begin = self._end = self._imported
        self.curve: list[tuple[float, float]] = []

    def begin(self) -> None:
        """Begin the clock."""
        self._begin = time.time()

    def leave_out_until_now(self) -> None:
        """Leave what has been since the imports out of all phases: it was a trial."""
        self._trial_s = time.time() - self._imported

    def epoch(self, val_top1: float, at: float | None = None) -> None:
        """Add a point to the curve: the share of the validation images that are right, now or at a time before."""
        if at is None:
            at = self._end = time.time()
        self.curve.append((at - self._begin, val_top1))

    def end(self) -> None:
        """End the clock; without it, it ends with the last epoch."""
        self._end = time.time()

    def returned(self) -> None:
        """Say that the training has returned: what follows is the test."""
        self._phases = {
            "imports_s": round(self._imported - self._started, 2),
            "setup_s": round(self._begin - self._imported - self._trial_s, 2),
            "seconds": round(self._end - self._begin, 2),
            "after_s": round(time.time() - self._end, 2),
        }

    def report(self, **figures: Any) -> str:
        """Return the line of JSON, after :meth:`returned`."""
        points = [[round(at, 2), round(top1, 5)] for at, top1 in self.curve]
        return json.dumps({**self._phases, "trial_s": round(self._trial_s, 2), **figures, "curve": points})


def trial_epochs(images: int) -> int:
    """Return how many epochs a trial has."""
    return 1 if images >= 10 * TRIAL_IMAGES else math.ceil(TRIAL_IMAGES / images) + 1


def epoch_seconds(ends: Sequence[float]) -> float:
    """Return the seconds of an epoch from those at which epochs ended, since the first began: the mean of the later."""
    return ends[0] if len(ends) == 1 else (ends[-1] - ends[0]) / (len(ends) - 1)


def fitted_epochs(seconds: float, epoch_s: float) -> int:
    """Return how many epochs come nearest to a time."""
    return max(1, round(seconds / epoch_s))
