"""Empirical distributions of error, plain and normalized by complexity (arXiv 1905.13214)."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from regnet_deploy.errors import require

Float = NDArray[np.float64]

#: Bins of complexity. The paper's authors take 8 to 40 for thousands of networks; a population here has hundreds.
BINS = 10


@dataclass(frozen=True)
class ErrorDistribution:
    """The errors of a population and how much each counts.

    Attributes:
        errors: top-1 errors, percent, ascending, ``(n,)``.
        weights: weight of each, ``(n,)``; their sum is 1.
    """

    errors: Float
    weights: Float

    def share_below(self, error: ArrayLike) -> Float:
        """Return F(e), the weight of networks with an error below ``error``; any shape."""
        heights = np.concatenate([[0.0], np.cumsum(self.weights)])
        share: Float = heights[np.searchsorted(self.errors, error, side="left")]
        return share

    @property
    def n(self) -> int:
        """Networks."""
        return len(self.errors)

    @property
    def effective_n(self) -> float:
        """Networks of equal weight that would estimate a mean as well as these (Kish: 1 / sum of w^2)."""
        return float(1 / np.sum(self.weights**2))

    @property
    def minimum(self) -> float:
        """Least error, percent."""
        return float(self.errors[0])

    @property
    def mean(self) -> float:
        """Weighted mean of the errors, percent: the area above F from 0 to 100."""
        return float(self.weights @ self.errors)

    @property
    def median(self) -> float:
        """Weighted median, percent: midway between the least e with F(> e) <= 1/2 and the least with F(> e) < 1/2."""
        reached = np.cumsum(self.weights)
        half = 0.5 * reached[-1]
        slack = 1e-9  # sums of weights such as 1/3 miss one half by rounding
        low = self.errors[np.searchsorted(reached, half - slack)]
        high = self.errors[np.searchsorted(reached, half + slack)]
        return float((low + high) / 2)

    def to_json(self) -> dict[str, Any]:
        """Return the summary; errors in percent."""
        return {
            "n": self.n,
            "effective_n": self.effective_n,
            "min_error_percent": self.minimum,
            "mean_error_percent": self.mean,
            "median_error_percent": self.median,
        }


@dataclass(frozen=True)
class NormalizedDistribution:
    """Distributions of several populations as if all had the same spread of complexity.

    Attributes:
        edges: edges of the bins of complexity, ``(bins + 1,)``.
        shared: which bins every population occupies, ``(bins,)``.
        distributions: one a population.
    """

    edges: Float
    shared: NDArray[np.bool_]
    distributions: tuple[ErrorDistribution, ...]


def error_distribution(errors: Float) -> ErrorDistribution:
    """Return the plain distribution: every network counts ``1 / n``."""
    return ErrorDistribution(np.sort(errors), np.full(len(errors), 1 / len(errors)))


def normalized_distributions(
    errors: Sequence[Float], complexities: Sequence[Float], *, bins: int = BINS
) -> NormalizedDistribution | None:
    """Weigh the networks so that complexity is spread alike in all populations.

    The paper cuts the range of complexity into k bins of equal width and gives each of the m_j networks of bin j the
    weight 1 / (k m_j), so that every bin has the mass 1 / k. That needs every bin occupied. Here the range is the one
    that the populations share (from the greatest of their minima to the least of their maxima), the bins are common to
    all, and only bins that all of them occupy count: k is their number, and networks elsewhere are left out.

    Args:
        errors: by population, percent, ``(n,)`` each.
        complexities: such as MACs, by population, ``(n,)`` each; networks with NaN are left out.
        bins: bins of the range.

    Returns:
        the distributions; None where no bin is occupied in all populations.
    """
    known = [np.isfinite(values) for values in complexities]
    if not known or not all(rows.any() for rows in known):
        return None
    low = max(float(values[rows].min()) for values, rows in zip(complexities, known, strict=True))
    high = min(float(values[rows].max()) for values, rows in zip(complexities, known, strict=True))
    if low > high:
        return None
    edges = np.linspace(low, high, (bins if low < high else 1) + 1)
    places = [_bins_of(values, edges) for values in complexities]
    counts = np.stack([np.bincount(place[place >= 0], minlength=len(edges) - 1) for place in places])
    shared: NDArray[np.bool_] = np.asarray((counts > 0).all(axis=0))
    if not shared.any():
        return None
    made = []
    for error, place, count in zip(errors, places, counts, strict=True):
        kept = (place >= 0) & shared[place]
        order = np.argsort(error[kept], kind="stable")
        weights = 1 / (shared.sum() * count[place[kept]])
        made.append(ErrorDistribution(error[kept][order], weights[order]))
    return NormalizedDistribution(edges, shared, tuple(made))


@dataclass(frozen=True)
class KsDistance:
    """Two populations compared.

    Attributes:
        first: name of one population.
        second: name of the other.
        statistic: D, the greatest difference of their error EDFs, 0 to 1.
        p_value: chance of a D as great if both came from one distribution; of this pair alone, not corrected for the
            number of pairs.
        error: error at which they differ most, percent.
        better: the population with more networks at or below that error; None where D is 0.
    """

    first: str
    second: str
    statistic: float
    p_value: float
    error: float
    better: str | None

    def to_json(self) -> dict[str, Any]:
        """Return JSON data; the error is in percent."""
        return {
            "first": self.first,
            "second": self.second,
            "ks_statistic": self.statistic,
            "p_value": self.p_value,
            "largest_difference_at_error_percent": self.error,
            "better": self.better,
        }


def ks_distance(first: str, first_errors: Float, second: str, second_errors: Float) -> KsDistance:
    """Compare two populations by the two-sided test, exact up to 10,000 networks a population.

    Args:
        first: name of one population.
        first_errors: its errors, percent, ``(n,)``.
        second: name of the other.
        second_errors: its errors, percent, ``(m,)``.

    Raises:
        MissingExtra: scipy is not installed.
    """
    stats = require("scipy.stats", "analysis")
    with warnings.catch_warnings():  # where the exact p-value overflows, scipy takes the asymptotic one and warns
        warnings.simplefilter("ignore", RuntimeWarning)
        result = stats.ks_2samp(first_errors, second_errors, alternative="two-sided")
    better = None
    if result.statistic > 0:
        better = first if result.statistic_sign > 0 else second
    return KsDistance(
        first, second, float(result.statistic), float(result.pvalue), float(result.statistic_location), better
    )


def pairwise_distances(names: Sequence[str], errors: Sequence[Float]) -> tuple[KsDistance, ...]:
    """Compare every population with every later one."""
    return tuple(
        ks_distance(one, one_errors, other, other_errors)
        for (one, one_errors), (other, other_errors) in itertools.combinations(zip(names, errors, strict=True), 2)
    )


def _bins_of(values: Float, edges: Float) -> NDArray[np.int64]:
    """Return the bin of each value, the last one closed, -1 outside and for NaN, ``(n,)``."""
    inside = (values >= edges[0]) & (values <= edges[-1])
    place = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    return np.where(inside, place, -1).astype(np.int64)
