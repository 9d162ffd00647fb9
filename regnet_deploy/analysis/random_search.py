"""The efficiency of random search: the expected error of the best of m random networks.

Radosavovic et al. (arXiv 1905.13214) draw groups of m networks and average their lowest errors. The mean over all
groups has a closed form. With errors e_1 <= ... <= e_n, the lowest of m drawn without replacement is e_i with
probability

    P(i) = C(n - i, m - 1) / C(n, m),

and the sum of P(i) e_i is an unbiased estimate for m new networks of the space (a U-statistic).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


@dataclass(frozen=True)
class SearchCurve:
    """Lowest error of m networks, for m = 1 .. n.

    Attributes:
        expected: mean over all draws, percent, ``(n,)``.
        deviation: standard deviation over all draws, percent, ``(n,)``. Draws of almost n networks have most networks
            in common, so that for m near n it underestimates the deviation for new networks; at m = n it is 0.
    """

    expected: Float
    deviation: Float

    def to_json(self) -> dict[str, Any]:
        """Return JSON data; entry i is for i + 1 networks."""
        return {
            "expected_error_percent": self.expected.tolist(),
            "standard_deviation_percent": self.deviation.tolist(),
        }


def search_curve(errors: Float) -> SearchCurve:
    """Return the efficiency curve of random search over a population.

    Args:
        errors: top-1 errors, percent, ``(n,)``.
    """
    n = len(errors)
    least = float(errors.min())
    m = np.arange(1, n + 1)
    chance = m / n
    first, second = np.zeros(n), np.zeros(n)
    for i, error in enumerate(np.sort(errors) - least, start=1):
        first += chance * error
        second += chance * error**2
        if i < n:  # P(i + 1) from P(i), which is 0 from i = n - m + 2 on
            chance = chance * np.maximum(0, n - i - m + 1) / (n - i)
    return SearchCurve(least + first, np.sqrt(np.maximum(0, second - first**2)))
