"""The range of a parameter that contains the best networks, by the bootstrap of arXiv 2003.13678; refined spaces."""

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
#: With fewer networks, the 95 % interval of the best value contains the best value less often than it says:
#: ``benchmarks/population_size.py`` measures how often.
MIN_NETWORKS = 20
PERCENTILES = (2.5, 50.0, 97.5)
#: Rows drawn at a time, which limits the memory.
_MAX_ROWS = 4_000_000


@dataclass(frozen=True)
class BestRange:
    """The range of the best value of a column, in the unit of the column.

    Attributes:
        column: name of the column.
        low: 2.5th percentile.
        median: 50th percentile, the most likely best value.
        high: 97.5th percentile.
        least: smallest value in the population.
        most: largest value in the population.
        n: number of networks with a known value.
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
    """Check the parameters of the bootstrap.

    Raises:
        UsageError: the share is outside (0, 1], or there is less than one repeat.
    """
    if not 0 < share <= 1:
        raise UsageError(f"the size of a bootstrap sample is a fraction above 0 and at most 1, got {share:g}")
    if repeats < 1:
        raise UsageError(f"the bootstrap needs at least 1 repeat, got {repeats}")


def too_few(name: str, n: int, needed: int) -> str:
    """Return the text that a population has too few networks to conclude anything from it."""
    return f"{name} has too few networks, {n} of {needed} that are needed"


def sample_size(n: int, share: float = SHARE) -> int:
    """Return the size of a bootstrap sample of ``n`` networks: ``share`` of them, rounded down, at least 1."""
    return max(1, int(n * share + 1e-9))  # 0.29 * 100 is 28.999...


def best_of_samples(errors: Float, *, share: float = SHARE, repeats: int = REPEATS, seed: int = 0) -> Int:
    """Draw bootstrap samples with replacement, and return the network with the lowest error of each.

    Of equal errors, the first one drawn is returned.

    Args:
        errors: ``(n,)``.
        share: size of a sample, as a fraction of n.
        repeats: number of samples.
        seed: seed of the draws.

    Returns:
        the row of the best network of each sample, ``(repeats,)``.
    """
    n = len(errors)
    drawn = sample_size(n, share)
    generator = np.random.default_rng(seed)
    kept = np.empty(repeats, dtype=np.int64)
    block = max(1, _MAX_ROWS // drawn)
    for start in range(0, repeats, block):
        rows = generator.integers(n, size=(min(block, repeats - start), drawn))
        best = errors[rows].argmin(axis=1)
        kept[start : start + block] = rows[np.arange(len(rows)), best]
    return kept


def best_range(
    column: str, values: Float, errors: Float, *, share: float = SHARE, repeats: int = REPEATS, seed: int = 0
) -> BestRange:
    """Return the 95 % interval and the median of a column over the best networks of bootstrap samples.

    The percentiles are values of networks (not interpolated): b is always 1, 2 or 4.

    Args:
        column: name of the column.
        values: ``(n,)``; rows with NaN are removed before the draws.
        errors: ``(n,)``.
        share: size of a sample, as a fraction of the remaining rows.
        repeats: number of samples.
        seed: seed of the draws.

    Raises:
        UsageError: no value is known, or the share or the repeats are not valid.
    """
    check_bootstrap(share, repeats)
    known = np.isfinite(values)
    if not known.any():
        raise UsageError(f"{column} is not known for any network: omit it")
    values, errors = values[known], errors[known]
    best = values[best_of_samples(errors, share=share, repeats=repeats, seed=seed)]
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
    min_networks: int = MIN_NETWORKS,
) -> Space:
    """Return the space with each free parameter narrowed to the 95 % interval of its best values.

    Args:
        space: the space that the population was drawn from.
        trials: the population.
        name: name of the new space.
        across: relations between stages to add, as (part, relation).
        share: size of a bootstrap sample, as a fraction of the population.
        repeats: number of bootstrap samples.
        seed: seed of the bootstrap.
        min_networks: smallest number of networks from which a space is refined.

    Raises:
        UsageError: the population has too few networks, was drawn from another space, or has none of its parameters.
    """
    if len(trials) < min_networks:
        raise UsageError(
            f"{too_few(trials.space, len(trials), min_networks)} to narrow a space: train more with `sweep --n`, or "
            "accept fewer with --min-networks"
        )
    ranges = refined_ranges(space, trials, share=share, repeats=repeats, seed=seed)
    refined = narrow_space(space, {column: (low, high) for column, (low, _, high) in ranges.items()}, name)
    for part, relation in across:
        refined = with_relation(refined, part, relation)
    return refined


def refined_ranges(
    space: Space, trials: Trials, *, share: float = SHARE, repeats: int = REPEATS, seed: int = 0
) -> dict[str, tuple[float, float, float]]:
    """Return the 2.5th, 50th and 97.5th percentile of the best values of each free parameter of a space.

    Every column has the same seed, so that columns without missing values are computed from the same samples.

    Args:
        space: the space that the population was drawn from.
        trials: the population.
        share: size of a bootstrap sample, as a fraction of the population.
        repeats: number of bootstrap samples.
        seed: seed of the bootstrap.

    Raises:
        UsageError: the population was drawn from another space, or has none of its parameters.
    """
    unknown = [name for name in trials.drawn if name not in space.symbols and name != "d"]
    if unknown:
        raise UsageError(f"{trials.space} was not drawn from {space.name}, which does not draw {', '.join(unknown)}")
    free_parameters = [name for name, free in space.symbols.items() if free]
    known = [name for name in free_parameters if name in trials.columns and np.isfinite(trials.columns[name]).any()]
    if not known:
        raise UsageError(
            f"{trials.space} has none of the columns that {space.name} draws, {', '.join(free_parameters)}: there is "
            "nothing to refine"
        )
    ranges = [
        best_range(name, trials.columns[name], trials.error, share=share, repeats=repeats, seed=seed) for name in known
    ]
    return {r.column: (r.low, r.median, r.high) for r in ranges}
