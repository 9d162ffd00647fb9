"""Candidates worth trying side by side: the best, and the best of those that are not nearly the same network."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.selection.selection import Selection

Float = NDArray[np.float64]

#: Distance in spreads of the trends (root of the sum of squares over d, w_0, w_a, w_m and g) that tells shapes apart.
APART = 1.0


def diverse_ranks(selection: Selection, n: int) -> list[int]:
    """Return ``n`` ranks, or all there are: each the best that is apart from those before it.

    Neighbours in the ranking differ by a block or a step of w_m, and training would tell their seeds apart and not
    them. Where there are fewer shapes than ``n``, the distance is halved until there are enough.
    """
    rows = selection.population
    parameters = np.stack([rows.d, rows.w_0, selection.slopes, rows.w_m, rows.g], axis=1).astype(np.float64)
    places = np.log(parameters) / selection.trends.spread
    n = min(n, selection.considered)
    taken = [0]
    distance = APART
    while len(taken) < n:
        nearest = _nearest(places, taken)
        while len(taken) < n and (nearest >= distance).any():
            taken.append(int(np.argmax(nearest >= distance)))
            nearest = np.minimum(nearest, _nearest(places, taken[-1:]))
        distance /= 2
    return sorted(taken)


def _nearest(places: Float, taken: list[int]) -> Float:
    """Return the distance of each place to the nearest of those that are taken, ``(n,)``."""
    gaps = places[:, None] - places[taken][None]
    distances: Float = np.sqrt((gaps**2).sum(axis=2)).min(axis=1)
    return distances
