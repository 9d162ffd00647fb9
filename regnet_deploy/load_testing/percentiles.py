"""Percentiles of latencies: of all samples, each one a latency that was measured, nothing interpolated."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray


def percentile(ascending: NDArray[np.float64], percent: str) -> float:
    """Return the smallest sample that at least ``percent`` of all samples do not exceed (the nearest rank).

    Args:
        ascending: samples, at least one.
        percent: such as ``99.9``; as text, for 0.999 is no binary fraction and its rank would be one too many.
    """
    rank = math.ceil(Fraction(percent) / 100 * len(ascending))
    return float(ascending[max(rank, 1) - 1])


@dataclass(frozen=True)
class Latencies:
    """Percentiles of ``count`` latencies, ms.

    With fewer than 1000 samples the 99.9th percentile is the slowest of them, with fewer than 100 the 99th too:
    ``count`` says so.
    """

    count: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float

    @classmethod
    def of(cls, seconds: NDArray[np.float64]) -> Latencies | None:
        """Return the percentiles of latencies in seconds, in any order; None of none."""
        if not len(seconds):
            return None
        ascending = np.sort(seconds) * 1000
        p50, p90, p99, p999 = (percentile(ascending, percent) for percent in ("50", "90", "99", "99.9"))
        return cls(len(ascending), p50, p90, p99, p999, float(ascending[-1]))

    def to_json(self) -> dict[str, float]:
        """Return JSON data."""
        return asdict(self)
