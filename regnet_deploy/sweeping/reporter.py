"""Who is told how a sweep goes."""

from __future__ import annotations

from typing import Protocol


class Reporter(Protocol):
    """Takes lines for the person, and how far a long piece of work is."""

    def say(self, line: str) -> None:
        """Take a line for the person."""

    def advance(self, what: str, done: float, total: int, note: str = "") -> None:
        """Take what is done of a long piece of work."""
