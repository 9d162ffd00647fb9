"""How well a quantized line fits the widths of a network: e_fit of arXiv 2003.13678, section 3.3.

The line has the depth of the network. w_0, w_a and w_m are searched on a grid for the minimum of

    e_fit = mean over blocks j of |ln(w_j predicted / w_j observed)|,

where the predicted widths are those of :mod:`regnet_deploy.space.regnet`, multiples of 8, before they are fitted to
group widths. The grid search and the mean log-ratio are those of the paper; the steps of the grid and the absolute
value are chosen here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.space.network import Network
from regnet_deploy.space.regnet import level_widths

Float = NDArray[np.float64]
Int = NDArray[np.int64]

#: The grid covers the ranges of the paper (w_0, w_a < 256, 1.5 <= w_m <= 3). Wider networks have a larger e_fit: of the
#: 24 published ones only RegNetX-32GF (w_0 = 320) with 0.093; the others have 0.007 to 0.083.
W_0 = np.arange(8, 257, 8)
W_A = np.geomspace(1, 256, 64)
W_M = np.round(np.arange(1.5, 3.001, 0.05), 2)
#: Fits whose e_fit differs by at most this are equal; among them the distance of the line decides.
_TOLERANCE = 1e-12


@dataclass(frozen=True)
class LineFit:
    """The best-fitting quantized line of a network: its e_fit (0 is perfect), first width, slope and step."""

    e_fit: float
    w_0: int
    w_a: float
    w_m: float

    def to_json(self) -> dict[str, Any]:
        """Return JSON data: ``e_fit`` is a mean |ln ratio|, w_0 in channels, w_a in channels per block."""
        return {"e_fit": self.e_fit, "w_0": self.w_0, "w_a": self.w_a, "w_m": self.w_m}


def fit_lines(networks: Sequence[Network]) -> tuple[LineFit, ...]:
    """Fit a line to each network; networks of the same depth share the predictions of the grid."""
    by_depth: dict[int, set[tuple[int, ...]]] = {}
    for network in networks:
        widths = network.block_widths()
        by_depth.setdefault(len(widths), set()).add(widths)
    fitted: dict[tuple[int, ...], LineFit] = {}
    for depth, observed in by_depth.items():
        predicted = _log_predictions(depth)
        for widths in observed:
            fitted[widths] = _nearest(predicted, np.log(np.array(widths, dtype=np.float64)))
    return tuple(fitted[network.block_widths()] for network in networks)


def fit_line(network: Network) -> LineFit:
    """Fit a line to one network."""
    return fit_lines([network])[0]


def _log_predictions(depth: int) -> Float:
    """Return ln of the predicted width of each block on the grid, ``(depth, w_0, w_a, w_m)``."""
    u_over_w_0 = 1 + W_A * np.arange(depth)[:, None, None] / W_0[:, None]
    levels = np.round(np.log(u_over_w_0)[..., None] / np.log(W_M)).astype(np.int64)
    # A width depends only on w_0, w_m and the level, and there are few levels.
    table = np.log(level_widths(W_0[:, None, None], W_M[:, None], np.arange(levels.max() + 1)).astype(np.float64))
    i, k = np.arange(len(W_0))[:, None, None], np.arange(len(W_M))
    return np.stack([table[i, k, level] for level in levels])


def _nearest(predicted: Float, observed: Float) -> LineFit:
    total = np.zeros(predicted.shape[1:])
    for of_block, width in zip(predicted, observed, strict=True):
        total += np.abs(of_block - width)
    error = total / len(observed)
    best = float(error.min())
    i, j, k = np.nonzero(error <= best + _TOLERANCE)
    # Different lines can have the same quantized widths: choose the one nearest to the observed widths.
    u = W_0[i, None] + W_A[j, None] * np.arange(len(observed))
    pick = np.abs(np.log(u) - observed).mean(axis=1).argmin()
    return LineFit(best, int(W_0[i[pick]]), float(W_A[j[pick]]), float(W_M[k[pick]]))
