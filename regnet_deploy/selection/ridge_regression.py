"""Ridge regression with a penalty chosen by cross-validation, and predictions for rows that were left out of the fit.

Several groups of rows (sweeps under different conditions) share the coefficients; each group has its own intercept. The
regressors are standardized to z: the deviation from the mean of the group, divided by the standard deviation of all
rows. The coefficients minimize

    sum_i (y_i - intercept - z_i c)^2 + n p |c|^2

for the penalty p, from a grid, that has the smallest sum of squared left-out residuals (PRESS). These have a closed
form: that of row i is r_i / (1 - h_i), with r its residual in the fit to all rows and h its leverage.

Choosing the penalty in this way uses every row. For an unbiased estimate, :func:`leave_one_out` leaves a row out of
everything, including means, deviations and the choice of the penalty.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Int = NDArray[np.int64]

#: From almost no penalty to coefficients so small that the prediction is the mean.
PENALTIES = tuple(float(p) for p in np.geomspace(1e-3, 1e3, 25))
#: The penalty of ordinary least squares.
NO_PENALTY = (0.0,)
#: A column whose standard deviation is at most this is constant, up to rounding.
_CONSTANT = 1e-9
#: More rows than the first number are left out in as many folds as the second says, not one by one.
_MANY_ROWS, _FOLDS = 1000, 100


@dataclass(frozen=True)
class Ridge:
    """A fitted regression.

    Attributes:
        intercept: mean of y in each group, ``(groups,)``.
        center: mean of the regressors in each group, ``(groups, k)``.
        coefficients: change of y per unit of each regressor, ``(k,)``; 0 for a constant one.
        deviation: standard deviation of each regressor within the groups, ``(k,)``; 0 for a constant one.
        precision: quadratic form that gives the leverage of a distance from the center, ``(k, k)``.
        center_leverage: leverage of the center of each group, ``(groups,)``.
        max_leverage: largest leverage of the rows of the fit.
        penalty: the penalty that was chosen.
    """

    intercept: Float
    center: Float
    coefficients: Float
    deviation: Float
    precision: Float
    center_leverage: Float
    max_leverage: float
    penalty: float

    def predict(self, x: Float, group: Int | int) -> Float:
        """Return y of rows ``(n, k)`` with the intercept of their group."""
        y: Float = self.intercept[group] + ((x - self.center[group]) * self.coefficients).sum(axis=-1)
        return y

    def covers(self, x: Float) -> NDArray[np.bool_]:
        """Return which rows ``(n, k)`` are interpolated: their leverage in a group is at most the largest of the fit.

        The left-out errors are valid for such rows. A row that differs in a constant regressor is not covered.
        """
        covered = np.zeros(len(x), dtype=bool)
        fixed = self.deviation == 0
        for center, center_leverage in zip(self.center, self.center_leverage, strict=True):
            offset = x - center
            leverage = center_leverage + ((offset @ self.precision) * offset).sum(axis=1)
            inside = leverage <= self.max_leverage * (1 + _CONSTANT)
            covered |= inside & (np.abs(offset[:, fixed]) <= _CONSTANT).all(axis=1)
        return covered


@dataclass(frozen=True)
class _Standardized:
    """Rows in the coordinates in which ridge regression is diagonal: z = u diag(s) v', y minus its group mean."""

    intercept: Float
    center: Float
    deviation: Float
    varies: NDArray[np.bool_]
    u: Float
    s: Float
    v: Float
    y: Float
    group: Int

    @classmethod
    def of(cls, x: Float, y: Float, group: Int) -> _Standardized:
        count = np.bincount(group)
        member = group == np.arange(len(count))[:, None]
        intercept, center = (member @ values / count.reshape(-1, *[1] * (values.ndim - 1)) for values in (y, x))
        z = x - center[group]
        deviation = np.sqrt((z**2).mean(axis=0))
        varies = deviation > _CONSTANT
        deviation = np.where(varies, deviation, 0.0)
        u, s, vh = np.linalg.svd(z[:, varies] / deviation[varies], full_matrices=False)
        return cls(intercept, center, deviation, varies, u, s, vh.T, y - intercept[group], group)

    @property
    def center_leverage(self) -> Float:
        """Leverage of the mean of each group, ``(groups,)``."""
        return 1 / np.bincount(self.group).astype(np.float64)

    def left_out_residuals(self, penalties: tuple[float, ...]) -> Float:
        """Return left-out residuals, ``(n, penalties)``."""
        shrinkage = self._shrinkage(np.array(penalties))
        residual = self.y[:, None] - self.u @ ((self.u.T @ self.y)[:, None] * shrinkage)
        left_out: Float = residual / (1 - self._leverage(shrinkage))
        return left_out

    def ridge(self, penalty: float) -> Ridge:
        """Return the regression with a penalty."""
        shrinkage = self._shrinkage(np.array([penalty]))
        inverse = np.divide(shrinkage[:, 0], self.s, out=np.zeros_like(self.s), where=self.s > _CONSTANT)
        back = np.zeros((len(self.varies), len(self.s)))
        back[self.varies] = self.v / self.deviation[self.varies, None]
        squared = np.divide(inverse, self.s, out=np.zeros_like(self.s), where=self.s > _CONSTANT)
        return Ridge(
            intercept=self.intercept,
            center=self.center,
            coefficients=back @ (inverse * (self.u.T @ self.y)),
            deviation=self.deviation,
            precision=(back * squared) @ back.T,
            center_leverage=self.center_leverage,
            max_leverage=float(self._leverage(shrinkage).max()),
            penalty=penalty,
        )

    def _leverage(self, shrinkage: Float) -> Float:
        """Return the leverage of each row, ``(n, penalties)``."""
        leverage: Float = self.center_leverage[self.group, None] + self.u**2 @ shrinkage
        return leverage

    def _shrinkage(self, penalties: Float) -> Float:
        """Return the factor by which a penalty shrinks each direction, ``(directions, penalties)``."""
        square = np.where(self.s > _CONSTANT, self.s, 0)[:, None] ** 2
        penalized = square + len(self.y) * penalties
        factor: Float = np.divide(square, penalized, out=np.zeros_like(penalized), where=penalized > 0)
        return factor


def fit_ridge(x: Float, y: Float, group: Int, penalties: tuple[float, ...] = PENALTIES) -> Ridge:
    """Fit with the penalty that has the smallest PRESS, the largest of equal ones.

    Args:
        x: regressors, ``(n, k)``; k may be 0.
        y: ``(n,)``.
        group: group of each row, 0 to groups - 1, at least two rows each, ``(n,)``.
        penalties: the grid of penalties.
    """
    rows = _Standardized.of(x, y, group)
    if len(penalties) == 1:
        # A row that alone determines a coefficient has no left-out residual in closed form.
        return rows.ridge(penalties[0])
    press = (rows.left_out_residuals(penalties) ** 2).sum(axis=0)
    return rows.ridge(max(p for p, value in zip(penalties, press, strict=True) if value <= press.min()))


def leave_one_out(x: Float, y: Float, group: Int, penalties: tuple[float, ...] = PENALTIES) -> Float:
    """Return the prediction for each row by a fit without it; every fit chooses its own penalty, ``(n,)``.

    More than 1,000 rows are left out in 100 folds.
    """
    predicted = np.empty(len(y))
    fold = np.arange(len(y)) if len(y) <= _MANY_ROWS else np.random.default_rng(0).permutation(len(y)) % _FOLDS
    for left_out in range(fold.max() + 1):
        kept = fold != left_out
        ridge = fit_ridge(x[kept], y[kept], group[kept], penalties)
        for row in np.flatnonzero(~kept):
            predicted[row] = ridge.predict(x[row], int(group[row]))
    return predicted


def rank_correlation(x: Float, y: Float) -> float:
    """Return Spearman's coefficient, the correlation of mid-ranks; 0 where either input is constant."""
    a, b = (_mid_ranks(values) for values in (x, y))
    norm = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / norm) if norm else 0.0


def _mid_ranks(values: Float) -> Float:
    """Return ranks minus their mean; equal values have equal ranks."""
    _, where, count = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Float = (np.cumsum(count) - count / 2)[where] - len(values) / 2
    return ranks
