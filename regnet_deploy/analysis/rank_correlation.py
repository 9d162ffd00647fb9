"""Rank correlations of the columns of a population with the error, with confidence intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.errors import UsageError, require

Float = NDArray[np.float64]

#: Minimum number of networks: the rank correlation of two is always -1 or 1.
MIN_NETWORKS = 3
REPEATS = 2000
#: For more networks, intervals are computed by Fisher's z, because a bootstrap of all pairs would take minutes.
_MAX_BOOTSTRAP = 1000
_MAX_COUNTS = 4_000_000


@dataclass(frozen=True)
class Correlation:
    """A rank correlation, its two-sided p-value, and its 95 % bootstrap interval."""

    value: float
    p_value: float
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        """Return JSON data."""
        return {"value": self.value, "p_value": self.p_value, "ci95_low": self.low, "ci95_high": self.high}


@dataclass(frozen=True)
class RankCorrelations:
    """The rank correlations of a column with the error; -1 means that a higher value always has a lower error.

    Attributes:
        column: name of the column.
        spearman: correlation of the ranks.
        kendall: tau-b, the excess of concordant over discordant pairs.
        n: number of networks with a known value.
    """

    column: str
    spearman: Correlation
    kendall: Correlation
    n: int

    def to_json(self) -> dict[str, Any]:
        """Return JSON data."""
        return {
            "column": self.column,
            "n": self.n,
            "spearman": self.spearman.to_json(),
            "kendall": self.kendall.to_json(),
        }


def has_rank_columns(scores: Float, errors: Float) -> bool:
    """Return whether enough networks have a known value, and values and errors both vary."""
    known = np.isfinite(scores)
    return bool(known.sum() >= MIN_NETWORKS and np.ptp(scores[known]) > 0 and np.ptp(errors[known]) > 0)


def rank_correlations(
    column: str, scores: Float, errors: Float, *, repeats: int = REPEATS, seed: int = 0
) -> RankCorrelations:
    """Return the rank correlations of a column with the error.

    Args:
        column: name of the column.
        scores: values of the column, ``(n,)``; networks with NaN are omitted.
        errors: top-1 errors, percent, ``(n,)``.
        repeats: number of bootstrap samples of n networks; for many networks, intervals are computed by Fisher's z.
        seed: seed of the bootstrap.

    Raises:
        UsageError: there are too few networks, or a constant column or error.
        MissingExtra: scipy is not installed.
    """
    if not has_rank_columns(scores, errors):
        raise UsageError(
            f"no rank correlation of {column}: it needs {MIN_NETWORKS} networks that differ in {column} and in error"
        )
    stats = require("scipy.stats", "analysis")
    known = np.isfinite(scores)
    scores, errors = scores[known], errors[known]
    rho, tau = stats.spearmanr(scores, errors), stats.kendalltau(scores, errors)
    if len(scores) > _MAX_BOOTSTRAP:
        low, high = _by_fisher(float(rho.statistic), float(tau.statistic), len(scores))
    else:
        low, high = np.percentile(_resampled(scores, errors, repeats, seed), (2.5, 97.5), axis=1)
    return RankCorrelations(
        column,
        Correlation(float(rho.statistic), float(rho.pvalue), float(low[0]), float(high[0])),
        Correlation(float(tau.statistic), float(tau.pvalue), float(low[1]), float(high[1])),
        len(scores),
    )


def _by_fisher(rho: float, tau: float, n: int) -> tuple[Float, Float]:
    """Return the lower and upper limits of the 95 % intervals of both coefficients, ``(2,)`` each.

    Variances of z by Fieller, Hartley and Pearson, 1957.
    """
    z = np.arctanh(np.clip([rho, tau], -1 + 1e-12, 1 - 1e-12))
    off = 1.96 * np.sqrt([1.06 / (n - 3), 0.437 / (n - 4)])
    return np.tanh(z - off), np.tanh(z + off)


def _resampled(x: Float, y: Float, repeats: int, seed: int) -> Float:
    """Return Spearman's and Kendall's coefficients of bootstrap samples, ``(2, samples)``.

    A sample is the number of draws c of each row, ``(n,)``. Spearman's coefficient is the correlation of mid-ranks,
    weighted by c. With S_ij = sign(x_i - x_j) sign(y_i - y_j), c'Sc is twice the concordant minus the discordant pairs,
    for Kendall's tau-b. Samples in which x or y is constant have no coefficient and are omitted.
    """
    n = len(x)
    order = (np.sign(x[:, None] - x) * np.sign(y[:, None] - y)).astype(np.float32)  # counts below 2^24: exact
    generator = np.random.default_rng(seed)
    coefficients = []
    block = max(1, _MAX_COUNTS // n)
    for start in range(0, repeats, block):
        counts = generator.multinomial(n, np.full(n, 1 / n), size=min(block, repeats - start))
        (rank_x, untied_x), (rank_y, untied_y) = _ranked(x, counts), _ranked(y, counts)
        usable = (untied_x > 0) & (untied_y > 0)
        covariance = (counts * rank_x * rank_y).sum(axis=1)[usable]
        variances = ((counts * rank_x**2).sum(axis=1) * (counts * rank_y**2).sum(axis=1))[usable]
        in_order = ((counts.astype(np.float32) @ order) * counts).sum(axis=1)[usable]
        coefficients.append([covariance / np.sqrt(variances), in_order / np.sqrt(untied_x[usable] * untied_y[usable])])
    clipped: Float = np.clip(np.concatenate(coefficients, axis=1), -1, 1)
    return clipped


def _ranked(values: Float, counts: NDArray[np.int64]) -> tuple[Float, Float]:
    """Return mid-ranks minus their mean, ``(samples, n)``, and ordered pairs of different values, ``(samples,)``."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(group.max() + 1))
    drawn = np.add.reduceat(counts[:, order], starts, axis=1).astype(np.float64)
    n = len(values)
    ranks = np.cumsum(drawn, axis=1) - drawn / 2 - n / 2
    return ranks[:, group], n * n - (drawn**2).sum(axis=1)
