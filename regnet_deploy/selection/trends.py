"""Trends of the published networks: how their parameters, and their errors on ImageNet, change with their MACs.

The authors of arXiv 2003.13678 chose each published network as the best of a random population of its size, so the 12
networks of a family show what good networks look like (section 4 of the paper derives the trends from such populations:
d and w_m are constant, w_0, w_a and g grow with MACs). With F the GMACs at 224 pixels, each parameter x is modeled as

    ln x = c_0 + c_1 ln F + s e,    e ~ N(0, 1),    c_1 = 0 for d and w_m,

fitted by least squares; s^2 is the residual sum of squares divided by the degrees of freedom. The score of a candidate
is its log-likelihood under the five models,

    score = sum over x of [ -z_x^2 / 2 - ln(s_x sqrt(2 pi)) ],    z_x = (ln x - c_0 - c_1 ln F) / s_x.

``benchmarks/ranking.py`` measures how well the score finds a network that was left out of the fit.

The top-1 error (percent) of a family is modeled as floor + scale F^-power, fitted by least squares to the same
networks (100 epochs, no enhancements; errors of the pycls model zoo). Its uncertainty is the mean absolute error with
which a fit to 11 networks predicts the one that was left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.bundle.manifest import ExpectedError
from regnet_deploy.space.population import Population
from regnet_deploy.space.published import PublishedNetwork, baselines

Float = NDArray[np.float64]

#: The parameters, in the order of all arrays here, and whether each changes with the MACs.
PARAMETERS = {"d": False, "w_0": True, "w_a": True, "w_m": False, "g": True}
#: The conditions under which the expected errors hold.
RECIPE = "ImageNet-1k, the paper's recipe: 100 epochs of SGD, no enhancements, 224 pixels"


@dataclass(frozen=True)
class Trends:
    """Trends of the parameters of a family.

    Attributes:
        family: ``x`` or ``y``.
        intercept: of ln x over ln F, ``(5,)``.
        slope: of ln x over ln F, ``(5,)``.
        spread: residual standard deviation of ln x, ``(5,)``.
    """

    family: str
    intercept: Float
    slope: Float
    spread: Float

    def expected(self, macs: NDArray[np.int64] | float) -> Float:
        """Return ln of the expected parameters at these MACs (at 224 pixels), ``(..., 5)``."""
        ln_f = np.log(np.asarray(macs, dtype=np.float64) / 1e9)
        return self.intercept + self.slope * ln_f[..., None]

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
    for i, changes in enumerate(PARAMETERS.values()):
        design = np.stack([np.ones_like(ln_f), ln_f], axis=1)[:, : 2 if changes else 1]
        coefficients = np.linalg.lstsq(design, ln_x[:, i], rcond=None)[0]
        residual = ln_x[:, i] - design @ coefficients
        intercept[i] = coefficients[0]
        slope[i] = coefficients[1] if changes else 0.0
        spread[i] = np.sqrt((residual**2).sum() / (len(ln_f) - design.shape[1]))
    return Trends(networks[0].family, intercept, slope, spread)


def score_population(trends: Trends, population: Population) -> tuple[Float, Float]:
    """Return the score of each row, and the w_a it is computed with: the most likely of those that give the network.

    Returns:
        scores and w_a, ``(n,)`` each; w_a has as few decimals as are needed to generate the network.
    """
    most_likely = np.exp(trends.expected(population.reference_macs)[:, 2])
    w_a = _round_inside(most_likely, population.w_a_low, population.w_a_high)
    parameters = np.stack([population.d, population.w_0, w_a, population.w_m, population.g], axis=1).astype(np.float64)
    return trends.log_likelihood(parameters, population.reference_macs), w_a


@dataclass(frozen=True)
class ErrorCurve:
    """Top-1 error, percent, over GMACs: floor + scale F^-power, fitted from ``lowest`` to ``highest`` MACs."""

    floor: float
    scale: float
    power: float
    lowest: int
    highest: int

    def at(self, macs: float) -> float:
        """Return the expected top-1 error, percent, at these MACs (at 224 pixels)."""
        return float(self.floor + self.scale * (macs / 1e9) ** -self.power)


def fit_error(networks: Sequence[PublishedNetwork]) -> ErrorCurve:
    """Fit the curve: the power is searched on a grid of 0.01, floor and scale follow by linear least squares."""
    known = [(p.macs, p.top1_error) for p in networks if p.top1_error is not None]
    macs = np.array([m for m, _ in known], dtype=np.float64)
    errors = np.array([e for _, e in known], dtype=np.float64)
    best: tuple[float, ErrorCurve] | None = None
    for power in np.arange(5, 150) / 100:
        design = np.stack([np.ones_like(macs), (macs / 1e9) ** -power], axis=1)
        (floor, scale), *_ = np.linalg.lstsq(design, errors, rcond=None)
        squared = float(((design @ (floor, scale) - errors) ** 2).sum())
        if best is None or squared < best[0]:
            curve = ErrorCurve(float(floor), float(scale), float(power), int(macs.min()), int(macs.max()))
            best = squared, curve
    assert best is not None  # the grid is not empty
    return best[1]


def leave_one_out_errors(networks: Sequence[PublishedNetwork]) -> list[float]:
    """Return, for each network, the error predicted by the others minus its own, in percentage points."""
    differences = []
    for left_out in networks:
        if left_out.top1_error is not None:
            curve = fit_error([p for p in networks if p is not left_out])
            differences.append(curve.at(left_out.macs) - left_out.top1_error)
    return differences


def expected_error(family: str, reference_macs: float) -> ExpectedError:
    """Return the error to expect of ``family`` (``x`` or ``y``) with these MACs at 224 pixels."""
    networks = baselines(family)
    curve = fit_error(networks)
    return ExpectedError(
        family=family,
        top1_error=round(curve.at(reference_macs), 2),
        leave_one_out_error=round(float(np.mean(np.abs(leave_one_out_errors(networks)))), 2),
        reference_gmacs=reference_macs / 1e9,
        extrapolated=not 0.95 * curve.lowest <= reference_macs <= 1.05 * curve.highest,
        recipe=RECIPE,
    )


def _round_inside(value: Float, low: Float, high: Float) -> Float:
    """Clip values to their intervals and round them to 1 to 6 decimals, at a distance from the ends.

    The network changes at the ends; a number that equals an end up to rounding could generate either network.
    """
    margin = np.minimum(1e-6, (high - low) / 4)
    low, high = low + margin, high - margin
    inside = np.clip(value, low, high)
    rounded = inside.copy()
    for decimals in (6, 4, 2, 1):
        # Near an end the nearest short number may be outside: the next one towards the middle is as likely.
        step = 10.0**-decimals
        shorter = np.round(inside, decimals)
        shorter = np.where(shorter < low, shorter + step, np.where(shorter > high, shorter - step, shorter))
        shorter = np.round(shorter, decimals)
        rounded = np.where((shorter >= low) & (shorter <= high), shorter, rounded)
    return rounded
