"""How far apart the errors of two populations are: the two-sample Kolmogorov-Smirnov test."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.errors import require

Float = NDArray[np.float64]


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
