"""Predicts how long an inference takes on a device from networks that were measured on it.

The time of a network is a sum of its work (``operators.py``), each column times its cost, and costs are not negative:

    t(network) = sum over columns of c_k w_k(network),    c_k >= 0.

The costs minimize the squared relative error with a small penalty, so that of two columns which say the same of the
measured networks both are used rather than one at random:

    sum over networks of (t / t_measured - 1)^2  +  lambda sum over columns of (c_k max w_k / t_measured)^2.

Few dozen networks determine it, because a sum of non-negative parts cannot oscillate between them. How far it can be
trusted is measured: each network is predicted by a model of the others (leave-one-out), and a network whose work is
outside of that of the measured ones is said to be extrapolated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.errors import UsageError, require
from regnet_deploy.latency.operators import COLUMNS

Float = NDArray[np.float64]

#: lambda is the square of this: small beside the errors of the fit, so that it decides only between columns that the
#: measured networks do not tell apart.
_PENALTY = 0.1
#: Smallest number of networks of a model. With fewer, errors of networks left out say little.
MIN_NETWORKS = 8
#: A network counts as extrapolated where a column is above the largest measured one by more than this factor, or its
#: time below the shortest measured one divided by it.
_REACH = 1.25


@dataclass(frozen=True)
class LatencyModel:
    """A model of one execution on one device.

    Attributes:
        costs: ms per unit of each column of :data:`~regnet_deploy.latency.operators.COLUMNS`, ``(columns,)``.
        errors: of each measured network, predicted by a model of the others: predicted / measured - 1, ``(n,)``.
        largest: largest value of each column among the measured networks, ``(columns,)``.
        shortest_ms: shortest measured time.
        longest_ms: longest measured time.
    """

    costs: Float
    errors: Float
    largest: Float
    shortest_ms: float
    longest_ms: float

    @property
    def networks(self) -> int:
        """Number of networks that it is fitted to."""
        return len(self.errors)

    @property
    def mean_error(self) -> float:
        """Mean absolute relative error of networks that were left out of the fit."""
        return float(np.abs(self.errors).mean())

    @property
    def largest_error(self) -> float:
        """Largest absolute relative error of networks that were left out of the fit."""
        return float(np.abs(self.errors).max())

    def costs_by_name(self) -> dict[str, float]:
        """Return the costs that are not 0, ms per unit, by the name of the column."""
        return {name: float(cost) for name, cost in zip(COLUMNS, self.costs, strict=True) if cost > 0}

    def predict(self, work: Float) -> Float:
        """Return the time of networks in ms, ``(n,)``.

        Args:
            work: ``(n, columns)``, of :func:`~regnet_deploy.latency.operators.operator_work`.
        """
        times: Float = work @ self.costs
        return times

    def extrapolated(self, work: Float) -> NDArray[np.bool_]:
        """Tell which networks are outside of the measured ones, ``(n,)``: larger in a column, or faster or slower."""
        times = self.predict(work)
        larger = (work > _REACH * self.largest).any(axis=1)
        outside: NDArray[np.bool_] = larger | (times > _REACH * self.longest_ms) | (times < self.shortest_ms / _REACH)
        return outside


def fit_latency_model(work: Float, measured_ms: Sequence[float] | Float) -> LatencyModel:
    """Fit a model to measured networks.

    Args:
        work: ``(n, columns)``.
        measured_ms: ``(n,)``.

    Raises:
        UsageError: there are too few networks.
        MissingExtra: SciPy is not installed.
    """
    times = np.asarray(measured_ms, dtype=np.float64)
    if len(times) < MIN_NETWORKS:
        raise UsageError(f"a latency model needs {MIN_NETWORKS} measured networks or more, got {len(times)}")
    others = [np.arange(len(times)) != i for i in range(len(times))]
    left_out = [float(work[i] @ _costs(work[kept], times[kept])) for i, kept in enumerate(others)]
    return LatencyModel(
        costs=_costs(work, times),
        errors=np.asarray(left_out) / times - 1,
        largest=work.max(axis=0),
        shortest_ms=float(times.min()),
        longest_ms=float(times.max()),
    )


def _costs(work: Float, times: Float) -> Float:
    """Return the costs, ``(columns,)``, by non-negative least squares."""
    relative = work / times[:, None]
    scale = relative.max(axis=0)
    scale[scale == 0] = 1.0
    penalty = _PENALTY * np.eye(len(COLUMNS))
    design = np.concatenate([relative / scale, penalty])
    target = np.concatenate([np.ones(len(times)), np.zeros(len(COLUMNS))])
    costs = require("scipy.optimize", "latency").nnls(design, target)[0]
    scaled: Float = costs / scale
    return scaled
