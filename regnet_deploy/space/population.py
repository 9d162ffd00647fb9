"""Populations: RegNets side by side as arrays, one row each."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Int = NDArray[np.int64]
Float = NDArray[np.float64]


@dataclass(frozen=True)
class Population:
    """RegNets side by side, one row each; rows may be the same network from different parameters.

    ``w_a`` is anywhere from ``w_a_low`` to ``w_a_high``: the network is the same. ``reference_macs`` are its MACs at
    224 pixels, which the trends are about.
    """

    d: Int
    w_0: Int
    w_m: Float
    g: Int
    w_a_low: Float
    w_a_high: Float
    depths: Int
    widths: Int
    group_widths: Int
    macs: Int
    parameters: Int
    activations: Int
    reference_macs: Int

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.d)

    def take(self, rows: NDArray[np.bool_] | Int) -> Population:
        """Return the rows that an index or a mask picks."""
        return Population(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    @staticmethod
    def join(pieces: list[Population]) -> Population:
        """Stack populations; of none, return an empty one."""
        if not pieces:
            none, stages = np.zeros(0, dtype=np.int64), np.zeros((0, 4), dtype=np.int64)
            real = none.astype(np.float64)
            return Population(none, none, real, none, real, real, stages, stages, stages, none, none, none, none)
        return Population(
            **{field.name: np.concatenate([getattr(p, field.name) for p in pieces]) for field in fields(Population)}
        )

    def distinct_rows(self, score: Float) -> tuple[Int, Float]:
        """Find each network once, by its row with the highest score.

        Args:
            score: ``(n,)``.

        Returns:
            the rows, from the highest score down, and their scores.
        """
        # Widths below 2^21, depths below 2^6 and group widths below 2^12 pack into three exact keys.
        widths = (self.widths[:, :3] << (21 * np.arange(3))).sum(axis=1)
        depths = (self.depths << (6 * np.arange(4))).sum(axis=1) + (self.widths[:, 3] << 24)
        keys = np.stack([widths, depths, (self.group_widths << (12 * np.arange(4))).sum(axis=1)])
        order = np.lexsort((-score, *keys))
        new = np.ones(len(order), dtype=bool)
        new[1:] = (keys[:, order[1:]] != keys[:, order[:-1]]).any(axis=0)
        best = order[new]
        best = best[np.argsort(-score[best], kind="stable")]
        return best, score[best]
