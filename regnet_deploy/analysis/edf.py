"""Empirical distributions of errors (EDF, arXiv 1905.13214), and their Kolmogorov-Smirnov distance."""

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

#: Number of bins of complexity. The paper uses 8 to 40 for thousands of networks; populations here have hundreds.
BINS = 10


@dataclass(frozen=True)
class ErrorDistribution:
    """The errors of a population, and their weights.

    Attributes:
        errors: top-1 errors, percent, ascending, ``(n,)``.
        weights: weights, ``(n,)``; their sum is 1.
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
        """Number of networks."""
        return len(self.errors)

    @property
    def effective_n(self) -> float:
        """Number of networks of equal weight with the same variance of the mean (Kish: 1 / sum of w^2)."""
        return float(1 / np.sum(self.weights**2))

    @property
    def minimum(self) -> float:
        """Lowest error, percent."""
        return float(self.errors[0])

    @property
    def mean(self) -> float:
        """Weighted mean of the errors, percent: the area above F from 0 to 100."""
        return float(self.weights @ self.errors)

    @property
    def median(self) -> float:
        """Weighted median, percent: mean of the smallest e with F(> e) <= 1/2 and the smallest with F(> e) < 1/2."""
        reached = np.cumsum(self.weights)
        half = 0.5 * reached[-1]
        tolerance = 1e-9  # for the rounding of sums of weights such as 1/3
        low = self.errors[np.searchsorted(reached, half - tolerance)]
        high = self.errors[np.searchsorted(reached, half + tolerance)]
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
    """Distributions of several populations, weighted so that all have the same distribution of complexity.

    Attributes:
        edges: edges of the bins of complexity, ``(bins + 1,)``.
        shared: which bins every population occupies, ``(bins,)``.
        distributions: one for each population.
    """

    edges: Float
    shared: NDArray[np.bool_]
    distributions: tuple[ErrorDistribution, ...]


def error_distribution(errors: Float) -> ErrorDistribution:
    """Return the unweighted distribution: every network has the weight ``1 / n``."""
    return ErrorDistribution(np.sort(errors), np.full(len(errors), 1 / len(errors)))


def normalized_distributions(
    errors: Sequence[Float], complexities: Sequence[Float], *, bins: int = BINS
) -> NormalizedDistribution | None:
    """Weight the networks so that all populations have the same distribution of complexity.

    The paper divides the range of complexity into k bins of equal width and gives each of the m_j networks of bin j the
    weight 1 / (k m_j), so that every bin has the mass 1 / k. This requires that every bin is occupied. Here the range
    is the intersection of the ranges of the populations, the bins are common to all, and only bins that all populations
    occupy are used: k is their number, and other networks are omitted.

    Args:
        errors: errors of each population, percent, ``(n,)`` each.
        complexities: complexity of the networks of each population, such as MACs, ``(n,)`` each; networks with NaN are
            omitted.
        bins: number of bins.

    Returns:
        the distributions; None if no bin is occupied in all populations.
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
    distributions = []
    for error, place, count in zip(errors, places, counts, strict=True):
        kept = (place >= 0) & shared[place]
        order = np.argsort(error[kept], kind="stable")
        weights = 1 / (shared.sum() * count[place[kept]])
        distributions.append(ErrorDistribution(error[kept][order], weights[order]))
    return NormalizedDistribution(edges, shared, tuple(distributions))


@dataclass(frozen=True)
class KsDistance:
    """The Kolmogorov-Smirnov distance of two populations.

    Attributes:
        first: name of one population.
        second: name of the other.
        statistic: D, the largest difference of their error EDFs, 0 to 1.
        p_value: probability of such a D if both have the same distribution, not corrected for the number of pairs.
        error: error at which they differ most, percent.
        better: the population with more networks at or below this error; None if D is 0.
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
    """Compare two populations by the two-sided test, which is exact up to 10,000 networks per population.

    Args:
        first: name of one population.
        first_errors: its errors, percent, ``(n,)``.
        second: name of the other.
        second_errors: its errors, percent, ``(m,)``.

    Raises:
        MissingExtra: scipy is not installed.
    """
    stats = require("scipy.stats", "analysis")
    with warnings.catch_warnings():  # if the exact p-value overflows, scipy warns and uses the asymptotic one
        warnings.simplefilter("ignore", RuntimeWarning)
        result = stats.ks_2samp(first_errors, second_errors, alternative="two-sided")
    better = None
    if result.statistic > 0:
        better = first if result.statistic_sign > 0 else second
    return KsDistance(
        first, second, float(result.statistic), float(result.pvalue), float(result.statistic_location), better
    )


def pairwise_distances(names: Sequence[str], errors: Sequence[Float]) -> tuple[KsDistance, ...]:
    """Compare all pairs of populations."""
    return tuple(
        ks_distance(one, one_errors, other, other_errors)
        for (one, one_errors), (other, other_errors) in itertools.combinations(zip(names, errors, strict=True), 2)
    )


def _bins_of(values: Float, edges: Float) -> NDArray[np.int64]:
    """Return the bin of each value, -1 outside the bins and for NaN, ``(n,)``; the last bin includes its end."""
    inside = (values >= edges[0]) & (values <= edges[-1])
    place = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    return np.where(inside, place, -1).astype(np.int64)
