"""How the time of training steps divides into waiting for images and using them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import torch

from regnet_deploy.training.checkpoint import RunState
from regnet_deploy.training.data_loader import Batch

T = TypeVar("T")


class StepClock:
    """Measures the steps of an epoch, or of the rest of one that continues, and records them in the state of its run.

    A GPU computes while the process already waits for the next images. Therefore its steps are timed by events of its
    own, and it has waited for no longer than it was idle.
    """

    def __init__(self, state: RunState, device: str, workers: int) -> None:
        self._state, self._cuda, self._loaders = state, device == "cuda", max(1, workers)
        self._waited_before, self._used_before = state.waited_seconds, state.used_seconds
        self._waited = self._used = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def waiting(self, load: Callable[[], Batch]) -> Batch:
        """Return the next batch, which ``load`` waits for."""
        begun = time.perf_counter()
        batch = load()
        self._waited += time.perf_counter() - begun
        self._state.loading_seconds += batch.seconds / self._loaders
        return batch

    def using(self, step: Callable[[], T]) -> T:
        """Return the result of a step."""
        if self._cuda:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            result = step()
            end.record()
            self._events.append((begin, end))
            return result
        begun = time.perf_counter()
        result = step()
        self._used += time.perf_counter() - begun
        return result

    def record(self, elapsed: float) -> None:
        """Record the times in the state, now that the device has finished its steps, ``elapsed`` s after the first."""
        self._used += sum(begin.elapsed_time(end) for begin, end in self._events) / 1e3
        self._events.clear()
        waited = min(self._waited, max(0.0, elapsed - self._used)) if self._cuda else self._waited
        self._state.waited_seconds = self._waited_before + waited
        self._state.used_seconds = self._used_before + self._used
