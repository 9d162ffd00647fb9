"""What the workers of a training on Ray tell the process of the user, and what that process tells them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from regnet_deploy.errors import require

#: Time between two updates of a progress bar, and between two looks at whether the training is to stop.
_INTERVAL_S = 0.5


@dataclass(frozen=True)
class News:
    """What has happened since the last look.

    Attributes:
        events: calls of a Progress, in their order: name of the method, and its arguments.
        losses: why workers ended before the training did, once for each time that all were started again.
        trains: whether the workers train now, so that they will see that they are to stop.
        ended: (error or None, what the first worker returned) of each worker that has ended.
    """

    events: Sequence[tuple[str, tuple[Any, ...]]]
    losses: Sequence[str]
    trains: bool
    ended: Sequence[tuple[BaseException | None, Any]]


class RayBoard:
    """An actor that the workers write to and the process of the user reads."""

    def __init__(self) -> None:
        self._events: list[tuple[str, tuple[Any, ...]]] = []
        self._losses: list[str] = []
        self._ended: list[tuple[BaseException | None, Any]] = []
        self._trains = self._stop = False

    def put(self, method: str, *arguments: Any) -> None:
        """Add a call of a Progress."""
        self._events.append((method, arguments))

    def lose(self, reason: str) -> None:
        """Set down that a worker ended before the training did."""
        self._losses.append(reason)
        self._trains = False

    def end(self, error: BaseException | None, result: Any = None) -> None:
        """Set down that a worker has ended, with an error for the user or without."""
        self._ended.append((error, result))

    def is_done(self) -> bool:
        """Tell whether the first worker has ended without an error: the bundle is trained."""
        return any(error is None for error, _ in self._ended)

    def stop(self) -> None:
        """Ask the workers to stop after their step."""
        self._stop = True

    def is_to_stop(self) -> bool:
        """Tell a worker that trains whether it is to stop."""
        self._trains = True
        return self._stop

    def news(self) -> News:
        """Return what has happened since the last call; ``ended`` and ``trains`` hold from the start."""
        events, losses = self._events, self._losses
        self._events, self._losses = [], []
        return News(events, losses, self._trains, list(self._ended))


@dataclass
class BoardProgress:
    """The Progress of the first worker: shown by the process of the user."""

    board: Any
    _updated: float = 0.0

    def step(self, description: str, total: float | None = None) -> None:
        """Start the next step."""
        self._updated = 0.0
        self.board.put.remote("step", description, total)

    def update(self, completed: float, total: float | None = None, note: str = "") -> None:
        """Set how much of the step is completed, not more often than a person reads."""
        now = time.monotonic()
        if now - self._updated >= _INTERVAL_S:
            self._updated = now
            self.board.put.remote("update", completed, total, note)

    def message(self, line: str) -> None:
        """Show one line."""
        self.board.put.remote("message", line)


@dataclass
class StopRequest:
    """Tells whether the user has asked the training to stop; asks the board now and then."""

    board: Any
    _asked: float = 0.0
    _answer: bool = False

    def __call__(self) -> bool:
        """Tell it."""
        ray = require("ray", "tune")
        now = time.monotonic()
        if not self._answer and now - self._asked >= _INTERVAL_S:
            self._asked = now
            self._answer = ray.get(self.board.is_to_stop.remote())
        return self._answer
