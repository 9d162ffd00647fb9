"""Candidates that were trained, and ranked by what that measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class MeasuredRanking:
    """What training said of the first candidates of a selection.

    Attributes:
        errors: for each tried candidate, the best first: epochs -> top-1 error, percent, of each round it was in.
        ranks: the rank that each of them had before, from 1.
        data: the images, in words.
    """

    errors: tuple[Mapping[int, float], ...]
    ranks: tuple[int, ...]
    data: str

    def error_of(self, rank: int) -> float | None:
        """Return the error of a rank's longest training, percent; None where it was not trained to an end."""
        known = self.errors[rank] if rank < len(self.errors) else {}
        return known[max(known)] if known else None

    def reason(self) -> str:
        """Say in words why the first is first."""
        epochs = max(self.errors[0])
        rounds = sorted({each for known in self.errors for each in known})
        how = "" if len(rounds) == 1 else f" (rounds of {', '.join(map(str, rounds))} epochs, the better third goes on)"
        return (
            f"least measured error of {len(self.errors)} candidates that were trained on {self.data}{how}: "
            f"{self.errors[0][epochs]:.2f} % top-1 error after {epochs} epoch{'s' * (epochs > 1)}; "
            f"it was number {self.ranks[0]} before"
        )

    def to_json(self) -> dict[str, Any]:
        """Return JSON data; errors in percent."""
        return {
            "data": self.data,
            "candidates": [
                {"rank_before": rank, "errors_percent": {str(epochs): error for epochs, error in sorted(known.items())}}
                for rank, known in zip(self.ranks, self.errors, strict=True)
            ],
        }
