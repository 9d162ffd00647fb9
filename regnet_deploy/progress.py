"""Progress of long operations: one protocol, implemented by the command line and by whoever calls the library."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives the progress of a long operation. Every method may be called from any thread."""

    def step(self, description: str, total: float | None = None) -> None:
        """Start the next step.

        Args:
            description: what is done, for example ``epoch 3/100``.
            total: number of units in the step; None where it is not known yet.
        """

    def update(self, completed: float, total: float | None = None, note: str = "") -> None:
        """Set how much of the current step is completed.

        Args:
            completed: units that are done.
            total: number of units in the step; None leaves it as it is.
            note: a figure or a word to show beside the step, for example ``loss 0.31``.
        """

    def message(self, line: str) -> None:
        """Show one line to the user, for example a warning that does not stop the operation."""


class NoProgress:
    """Ignores all progress."""

    def step(self, description: str, total: float | None = None) -> None:
        """Ignore a step."""

    def update(self, completed: float, total: float | None = None, note: str = "") -> None:
        """Ignore an update."""

    def message(self, line: str) -> None:
        """Ignore a message."""
