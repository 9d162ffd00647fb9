"""The range of a parameter in which the best networks lie: the empirical bootstrap of arXiv 2003.13678."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.errors import UsageError

Float = NDArray[np.float64]
Int = NDArray[np.int64]

SHARE, REPEATS = 0.25, 10_000
PERCENTILES = (2.5, 50.0, 97.5)
#: Rows drawn at once, so that large populations do not need memory for all repeats.
_DRAWN_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class BestRange:
    """Where the best value of a column lies, in the column's own unit.

    Attributes:
        column: name of the column.
        low: 2.5th percentile.
        median: 50th percentile, the likely best value.
        high: 97.5th percentile.
        least: least value in the population.
        most: greatest value in the population.
        n: networks of which the column is known.
    """

    column: str
    low: float
    median: float
    high: float
    least: float
    most: float
    n: int

    def to_json(self) -> dict[str, Any]:
        """Return JSON data, in the unit of the column (counts, channels, blocks)."""
        return {
            "column": self.column,
            "n": self.n,
            "p2_5": self.low,
            "p50": self.median,
            "p97_5": self.high,
            "least": self.least,
            "most": self.most,
        }


def check_bootstrap(share: float, repeats: int) -> None:
    """Refuse what cannot be drawn.

    Raises:
        UsageError: a share outside (0, 1] or fewer than one repeat.
    """
    if not 0 < share <= 1:
        raise UsageError(f"the share of networks drawn in each repeat must be above 0 and at most 1, got {share:g}")
    if repeats < 1:
        raise UsageError(f"the bootstrap must be repeated at least once, got {repeats}")


def drawn_each_time(n: int, share: float = SHARE) -> int:
    """Return how many of ``n`` networks a repeat draws: ``share`` of them rounded down, at least one (as pycls)."""
    return max(1, int(n * share + 1e-9))  # 0.29 * 100 is 28.999...


def winners(errors: Float, *, share: float = SHARE, repeats: int = REPEATS, seed: int = 0) -> Int:
    """Draw a share of the networks with replacement and keep the one of least error; again and again.

    Of equal errors the one that was drawn first is kept.

    Args:
        errors: ``(n,)``.
        share: networks drawn in each repeat, as a share of n.
        repeats: how often.
        seed: of the draws.

    Returns:
        the row that was kept in each repeat, ``(repeats,)``.
    """
    n = len(errors)
    drawn = drawn_each_time(n, share)
    generator = np.random.default_rng(seed)
    kept = np.empty(repeats, dtype=np.int64)
    block = max(1, _DRAWN_AT_ONCE // drawn)
    for start in range(0, repeats, block):
        rows = generator.integers(n, size=(min(block, repeats - start), drawn))
        best = errors[rows].argmin(axis=1)
        kept[start : start + block] = rows[np.arange(len(rows)), best]
    return kept


def best_range(
    column: str, values: Float, errors: Float, *, share: float = SHARE, repeats: int = REPEATS, seed: int = 0
) -> BestRange:
    """Return the 95 % interval and the median of a column over the winners.

    The percentiles are values of networks (the inverse of the distribution, not interpolated): b stays one of 1, 2, 4.

    Args:
        column: name of the column.
        values: ``(n,)``; rows with NaN are left out before anything is drawn.
        errors: ``(n,)``.
        share: networks drawn in each repeat, as a share of those left.
        repeats: how often.
        seed: of the draws.

    Raises:
        UsageError: no value is known, or the share or the repeats cannot be used.
    """
    check_bootstrap(share, repeats)
    known = np.isfinite(values)
    if not known.any():
        raise UsageError(f"{column} is not known of any network; leave it out")
    values, errors = values[known], errors[known]
    best = values[winners(errors, share=share, repeats=repeats, seed=seed)]
    low, median, high = np.percentile(best, PERCENTILES, method="inverted_cdf").tolist()
    return BestRange(column, low, median, high, float(values.min()), float(values.max()), len(values))
