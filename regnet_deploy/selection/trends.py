"""The fitted parameterization: how d, w_0, w_a, w_m and g of the published networks go with their MACs.

The authors of arXiv 2003.13678 picked each published network as the best of a random population in its regime, so the
12 of a family are what good networks look like (section 4 of the paper reads the trends off such populations: d and w_m
stay, w_0, w_a and g grow with MACs). With F the GMACs at 224 pixels, each parameter x is modelled as

    ln x = c_0 + c_1 ln F + s e,    e ~ N(0, 1),    c_1 = 0 for d and w_m,

fitted by least squares, s^2 being the residual sum of squares over the degrees of freedom. A candidate's score is its
log-likelihood under the five,

    score = sum over x of [ -z_x^2 / 2 - ln(s_x sqrt(2 pi)) ],    z_x = (ln x - c_0 - c_1 ln F) / s_x.

How well that finds a network that was left out of the fit is measured by ``benchmarks/ranking.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.space.population import Population
from regnet_deploy.space.published import PublishedNetwork

Float = NDArray[np.float64]

#: The parameters in the order of all arrays here, and whether each follows the MACs.
PARAMETERS = {"d": False, "w_0": True, "w_a": True, "w_m": False, "g": True}


@dataclass(frozen=True)
class Trends:
    """Fitted trends of a family: intercepts and slopes of ln x over ln F, and spreads, ``(5,)`` each."""

    family: str
    intercept: Float
    slope: Float
    spread: Float

    def expected(self, macs: NDArray[np.int64] | float) -> Float:
        """Return ln of the expected parameters at these MACs (at 224 pixels), ``(..., 5)``."""
        giga = np.log(np.asarray(macs, dtype=np.float64) / 1e9)
        return self.intercept + self.slope * giga[..., None]

    def log_likelihood(self, parameters: Float, macs: NDArray[np.int64] | float) -> Float:
        """Return the score of parameters ``(..., 5)`` in the order of :data:`PARAMETERS`."""
        z = (np.log(parameters) - self.expected(macs)) / self.spread
        score: Float = -(z**2 / 2 + np.log(self.spread * np.sqrt(2 * np.pi))).sum(axis=-1)
        return score


def fit_trends(networks: Sequence[PublishedNetwork]) -> Trends:
    """Fit the trends to published networks of one family (their MACs must be those at 224 pixels)."""
    ln_x = np.log(np.array([[p.d, p.w_0, p.w_a, p.w_m, p.g] for p in networks], dtype=np.float64))
    ln_f = np.log([p.macs / 1e9 for p in networks])
    intercept, slope, spread = (np.zeros(len(PARAMETERS)) for _ in range(3))
    for i, follows in enumerate(PARAMETERS.values()):
        design = np.stack([np.ones_like(ln_f), ln_f], axis=1)[:, : 2 if follows else 1]
        coefficients = np.linalg.lstsq(design, ln_x[:, i], rcond=None)[0]
        residual = ln_x[:, i] - design @ coefficients
        intercept[i] = coefficients[0]
        slope[i] = coefficients[1] if follows else 0.0
        spread[i] = np.sqrt((residual**2).sum() / (len(ln_f) - design.shape[1]))
    return Trends(networks[0].family, intercept, slope, spread)


def score_population(trends: Trends, population: Population) -> tuple[Float, Float]:
    """Return each row's score and the w_a that gives it: of all slopes that make its network, the likeliest.

    Returns:
        scores and w_a, ``(n,)`` each; w_a has as few decimals as tell its network from others.
    """
    likeliest = np.exp(trends.expected(population.reference_macs)[:, 2])
    w_a = _round_inside(likeliest, population.w_a_low, population.w_a_high)
    parameters = np.stack([population.d, population.w_0, w_a, population.w_m, population.g], axis=1).astype(np.float64)
    return trends.log_likelihood(parameters, population.reference_macs), w_a


def _round_inside(value: Float, low: Float, high: Float) -> Float:
    """Move values into their intervals and round them, to 1 to 6 decimals, keeping clear of the ends.

    The ends are where the network changes; a number that is equal to one up to rounding is on neither side for sure.
    """
    clear = (high - low) / 4
    low, high = low + np.minimum(1e-6, clear), high - np.minimum(1e-6, clear)
    inside = np.clip(value, low, high)
    rounded = inside.copy()
    for decimals in (6, 4, 2, 1):
        # Near an end the nearest short number may lie outside: the next one towards the middle is as likely.
        step = 10.0**-decimals
        shorter = np.round(inside, decimals)
        shorter = np.where(shorter < low, shorter + step, np.where(shorter > high, shorter - step, shorter))
        shorter = np.round(shorter, decimals)
        rounded = np.where((shorter >= low) & (shorter <= high), shorter, rounded)
    return rounded
