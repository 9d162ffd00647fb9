"""The candidates of a budget: all of them as one table, and each as a record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.space.network import Network
from regnet_deploy.space.population import Population
from regnet_deploy.space.regnet import RegNet

Float = NDArray[np.float64]


@dataclass(frozen=True)
class CandidateTable(Population):
    """The distinct networks that meet a budget, the best first.

    A further measure of the candidates is a further column: ``take`` sorts and filters it with the others.

    Attributes:
        w_a: the most likely slope of those that give the network, ``(n,)``.
        score: log-likelihood under the trends, ``(n,)``.
        predicted_error: top-1 error that evidence predicts, percent, ``(n,)``; None without evidence.
        extrapolated: whether the shape is outside the shapes of the trials of the evidence, ``(n,)``; None without.
        measured_error: top-1 error of the longest training, percent, NaN where there was none, ``(n,)``; None where no
            candidate was trained.
    """

    w_a: Float
    score: Float
    predicted_error: Float | None = None
    extrapolated: NDArray[np.bool_] | None = None
    measured_error: Float | None = None

    def regnet(self, row: int, family: str) -> RegNet:
        """Return the parameters of a row."""
        return RegNet(
            d=int(self.d[row]),
            w_0=int(self.w_0[row]),
            w_a=round(float(self.w_a[row]), 6),
            w_m=round(float(self.w_m[row]), 3),
            g=int(self.g[row]),
            family=family,
        )

    def parameters_of_trends(self) -> Float:
        """Return d, w_0, w_a, w_m and g, the parameters that the trends describe, ``(n, 5)``."""
        return np.stack([self.d, self.w_0, self.w_a, self.w_m, self.g], axis=1).astype(np.float64)


@dataclass(frozen=True)
class Candidate:
    """A network with its generating parameters, its counts at the budget's resolution, and its score.

    ``regnet`` and ``score`` are None for a published network of which only the stages are known. ``predicted_error``
    (percent) is None unless evidence ranks the candidates, ``measured_error`` (percent) unless the network was trained.
    """

    regnet: RegNet | None
    network: Network
    macs: int
    parameters: int
    activations: int
    reference_macs: int
    score: float | None
    predicted_error: float | None = None
    measured_error: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return JSON data."""
        generated = {name: getattr(self.regnet, name, None) for name in ("w_0", "w_a", "w_m", "g")}
        return {
            "family": self.network.family,
            "d": sum(self.network.depths),
            **generated,
            "b": self.network.bottlenecks[0],
            "depths": list(self.network.depths),
            "widths": list(self.network.widths),
            "group_widths": list(self.network.group_widths),
            "macs": self.macs,
            "parameters": self.parameters,
            "activations": self.activations,
            "score": None if self.score is None else round(self.score, 4),
            **({} if self.predicted_error is None else {"predicted_error": round(self.predicted_error, 4)}),
            **({} if self.measured_error is None else {"measured_error": round(self.measured_error, 4)}),
        }
