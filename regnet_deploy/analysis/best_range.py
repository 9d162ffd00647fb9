"""The range of a parameter in which the best networks lie: the empirical bootstrap of arXiv 2003.13678."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.errors import UsageError
from regnet_deploy.populations.trials import Trials
from regnet_deploy.space.narrowing import narrow_space, with_relation
from regnet_deploy.space.spaces import Space

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


def refined_space(
    space: Space,
    trials: Trials,
    name: str,
    across: Sequence[tuple[str, str]] = (),
    *,
    share: float = SHARE,
    repeats: int = REPEATS,
    seed: int = 0,
) -> Space:
    """Return the space with each free parameter narrowed to the 95 % interval of its best values.

    Args:
        space: that the population was drawn from.
        trials: the population.
        name: of the new space.
        across: relations between stages to add, as (part, relation).
        share: networks drawn in each repeat of the bootstrap, as a share of the population.
        repeats: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        UsageError: the population has none of the parameters that the space draws.
    """
    ranges = refined_ranges(space, trials, share=share, repeats=repeats, seed=seed)
    made = narrow_space(space, {column: (low, high) for column, (low, _, high) in ranges.items()}, name)
    for part, relation in across:
        made = with_relation(made, part, relation)
    return made


def refined_ranges(
    space: Space, trials: Trials, *, share: float = SHARE, repeats: int = REPEATS, seed: int = 0
) -> dict[str, tuple[float, float, float]]:
    """Return low (2.5 %), median and high (97.5 %) of each free parameter of a space, in its order and unit.

    Every column is drawn with the same seed, so that columns without gaps come from the same networks.

    Args:
        space: that the population was drawn from.
        trials: the population.
        share: networks drawn in each repeat of the bootstrap, as a share of the population.
        repeats: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        UsageError: the population was drawn from another space, or has none of them.
    """
    strange = [name for name in trials.drawn if name not in space.symbols and name != "d"]
    if strange:
        raise UsageError(f"{trials.space} was not drawn from {space.name}, which does not draw {', '.join(strange)}")
    wanted = [name for name, free in space.symbols.items() if free]
    known = [name for name in wanted if name in trials.columns and np.isfinite(trials.columns[name]).any()]
    if not known:
        raise UsageError(
            f"{trials.space} has none of the columns that {space.name} draws, {', '.join(wanted)}: there is nothing to "
            "refine"
        )
    ranges = [
        best_range(name, trials.columns[name], trials.error, share=share, repeats=repeats, seed=seed) for name in known
    ]
    return {r.column: (r.low, r.median, r.high) for r in ranges}
