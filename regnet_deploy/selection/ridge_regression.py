"""Ridge regression that is judged by what it left out, and by nothing else.

Several groups of rows (sweeps under other conditions) share the coefficients; each has a level of its own. With
regressors standardised to z (deviation from the mean of the group over the deviation of all), the coefficients minimise

    sum_i (y_i - level - z_i c)^2 + n p |c|^2

for the penalty p, of a grid, with the least sum of squared left-out residuals (PRESS). These have a closed form: that
of row i is r_i / (1 - h_i), with r its residual in the fit to all rows and h its leverage.

The penalty was then chosen with every row in sight. Honest left-out predictions leave a row out of everything, means,
deviations and the choice of the penalty included: that is :func:`leave_one_out`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Int = NDArray[np.int64]

#: From hardly a penalty to coefficients so small that the prediction is the mean.
PENALTIES = tuple(float(p) for p in np.geomspace(1e-3, 1e3, 25))
#: The penalty of an ordinary fit.
NONE = (0.0,)
#: Deviations up to this are of a constant, to rounding.
_CONSTANT = 1e-9
#: More rows than these are left out in so many parts, not one by one.
_MANY, _PARTS = 1000, 100


@dataclass(frozen=True)
class Ridge:
    """A fitted regression.

    Attributes:
        level: mean of y of each group, ``(groups,)``.
        centre: mean of the regressors of each group, ``(groups, k)``.
        coefficients: change of y with one unit of each regressor, ``(k,)``; 0 for one that does not vary.
        deviation: of each regressor within the groups, ``(k,)``; 0 for one that does not vary.
        precision: what makes leverage of distance from the centre, ``(k, k)``.
        alone: leverage of the centre of each group, ``(groups,)``.
        most: greatest leverage of the rows that it was fitted to.
        penalty: that was chosen.
    """

    level: Float
    centre: Float
    coefficients: Float
    deviation: Float
    precision: Float
    alone: Float
    most: float
    penalty: float

    def predict(self, x: Float, group: Int | int) -> Float:
        """Return y of rows ``(n, k)`` at the level of their group."""
        y: Float = self.level[group] + ((x - self.centre[group]) * self.coefficients).sum(axis=-1)
        return y

    def knows(self, x: Float) -> NDArray[np.bool_]:
        """Return which rows ``(n, k)`` are among those of some group: no more leverage than the most that it had there.

        What the left-out errors say is true of such rows. A row that differs where no other did is not among them.
        """
        known = np.zeros(len(x), dtype=bool)
        fixed = self.deviation == 0
        for centre, alone in zip(self.centre, self.alone, strict=True):
            away = x - centre
            leverage = alone + ((away @ self.precision) * away).sum(axis=1)
            known |= (leverage <= self.most * (1 + _CONSTANT)) & (np.abs(away[:, fixed]) <= _CONSTANT).all(axis=1)
        return known


@dataclass(frozen=True)
class _Standardised:
    """Rows in the coordinates in which ridge regression is diagonal: z = u diag(s) v', y less its group's mean."""

    level: Float
    centre: Float
    deviation: Float
    varies: NDArray[np.bool_]
    u: Float
    s: Float
    v: Float
    y: Float
    group: Int

    @classmethod
    def of(cls, x: Float, y: Float, group: Int) -> _Standardised:
        count = np.bincount(group)
        member = group == np.arange(len(count))[:, None]
        level, centre = (member @ values / count.reshape(-1, *[1] * (values.ndim - 1)) for values in (y, x))
        z = x - centre[group]
        deviation = np.sqrt((z**2).mean(axis=0))
        varies = deviation > _CONSTANT
        deviation = np.where(varies, deviation, 0.0)
        u, s, vh = np.linalg.svd(z[:, varies] / deviation[varies], full_matrices=False)
        return cls(level, centre, deviation, varies, u, s, vh.T, y - level[group], group)

    @property
    def alone(self) -> Float:
        """Leverage of the mean of each group, ``(groups,)``."""
        return 1 / np.bincount(self.group).astype(np.float64)

    def left_out(self, penalties: tuple[float, ...]) -> Float:
        """Return left-out residuals, ``(n, penalties)``."""
        kept = self._kept(np.array(penalties))
        residual = self.y[:, None] - self.u @ ((self.u.T @ self.y)[:, None] * kept)
        made: Float = residual / (1 - self._leverage(kept))
        return made

    def ridge(self, penalty: float) -> Ridge:
        kept = self._kept(np.array([penalty]))
        inverse = np.divide(kept[:, 0], self.s, out=np.zeros_like(self.s), where=self.s > _CONSTANT)
        back = np.zeros((len(self.varies), len(self.s)))
        back[self.varies] = self.v / self.deviation[self.varies, None]
        squared = np.divide(inverse, self.s, out=np.zeros_like(self.s), where=self.s > _CONSTANT)
        return Ridge(
            level=self.level,
            centre=self.centre,
            coefficients=back @ (inverse * (self.u.T @ self.y)),
            deviation=self.deviation,
            precision=(back * squared) @ back.T,
            alone=self.alone,
            most=float(self._leverage(kept).max()),
            penalty=penalty,
        )

    def _leverage(self, kept: Float) -> Float:
        """Return the leverage of each row, ``(n, penalties)``."""
        leverage: Float = self.alone[self.group, None] + self.u**2 @ kept
        return leverage

    def _kept(self, penalties: Float) -> Float:
        """Return the share of each direction that a penalty leaves, ``(directions, penalties)``."""
        square = np.where(self.s > _CONSTANT, self.s, 0)[:, None] ** 2
        whole = square + len(self.y) * penalties
        kept: Float = np.divide(square, whole, out=np.zeros_like(whole), where=whole > 0)
        return kept


def fit_ridge(x: Float, y: Float, group: Int, penalties: tuple[float, ...] = PENALTIES) -> Ridge:
    """Fit with the penalty of the least PRESS; of equal ones the largest.

    Args:
        x: regressors, ``(n, k)``; k may be 0.
        y: ``(n,)``.
        group: of each row, 0 to groups - 1, two rows or more each, ``(n,)``.
        penalties: to choose from.
    """
    rows = _Standardised.of(x, y, group)
    if len(penalties) == 1:
        return rows.ridge(
            penalties[0]
        )  # a row that alone decides a coefficient has no left-out residual in closed form
    press = (rows.left_out(penalties) ** 2).sum(axis=0)
    return rows.ridge(max(p for p, value in zip(penalties, press, strict=True) if value <= press.min()))


def leave_one_out(x: Float, y: Float, group: Int, penalties: tuple[float, ...] = PENALTIES) -> Float:
    """Return what is predicted of each row without it, the penalty being chosen anew each time, ``(n,)``.

    Of many rows as many are left out at once as make a hundred parts: what a hundredth less teaches is not to be seen.
    """
    made = np.empty(len(y))
    part = np.arange(len(y)) if len(y) <= _MANY else np.random.default_rng(0).permutation(len(y)) % _PARTS
    for out in range(part.max() + 1):
        kept = part != out
        ridge = fit_ridge(x[kept], y[kept], group[kept], penalties)
        for row in np.flatnonzero(~kept):
            made[row] = ridge.predict(x[row], int(group[row]))
    return made


def rank_correlation(x: Float, y: Float) -> float:
    """Return Spearman's coefficient: the correlation of mid-ranks; 0 where either is constant."""
    a, b = (_mid_ranks(values) for values in (x, y))
    norm = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / norm) if norm else 0.0


def _mid_ranks(values: Float) -> Float:
    """Return ranks less their mean; equal values share theirs."""
    _, where, count = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Float = (np.cumsum(count) - count / 2)[where] - len(values) / 2
    return ranks
