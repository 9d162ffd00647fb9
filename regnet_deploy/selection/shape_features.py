"""The shape of a network in few numbers that networks of any budget and any of the spaces have.

A sweep is small and cheap, a budget is not: what is learnt from one must be said so that it means the same at the
other. Group widths, parameters and activations grow with the MACs, and the published networks say how. So every
number here is

    ln x - (c_0 + c_1 ln F),    c_1 = 0 for depth, width growth and bottleneck,

F being the MACs of stem and stages at 224 pixels, with c_0 and c_1 fitted by least squares to the 12 published networks
of the family: 0 is "as published networks of these MACs are", at any F. Neither the head (which the classes decide) nor
the resolution that a network was trained at has a part in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from regnet_deploy.space.complexity import Cost, complexity
from regnet_deploy.space.enumeration import STAGES
from regnet_deploy.space.network import REFERENCE_RESOLUTION, SE_RATIO, Network
from regnet_deploy.space.population import Population
from regnet_deploy.space.published import baselines

Float = NDArray[np.float64]

#: What a shape says, in the order of all arrays, and whether it follows the MACs. At given MACs a network is left to
#: choose its depth, how its widths grow (slope of ln w_i over the stages), its groups and bottlenecks (means over the
#: blocks of ln g and ln b), and at which stages its blocks are: early ones show in activations, late ones in
#: parameters, the two that the paper bounds. Further numbers (first width, growth of depth) follow from these and the
#: MACs, all but a little: few trials cannot tell that little from chance, and at other MACs it puts every candidate
#: beyond what was swept.
SHAPE = {
    "depth": False,
    "width growth": False,
    "group width": True,
    "bottleneck": False,
    "parameters": True,
    "activations": True,
}
#: The regressors: the shape, and the square of its depth, for the paper finds depth best in the middle (about 20).
REGRESSORS = (*SHAPE, "depth squared")
#: Slope over stages 0, 1, 2, 3 by least squares.
_OVER_STAGES = np.arange(STAGES) - (STAGES - 1) / 2
_OVER_STAGES /= (_OVER_STAGES**2).sum()


@dataclass(frozen=True)
class StageArrays:
    """Networks of 4 stages side by side: each array is ``(n, 4)``."""

    depths: NDArray[np.int64]
    widths: NDArray[np.int64]
    group_widths: NDArray[np.int64]
    bottlenecks: Float

    @classmethod
    def of_networks(cls, networks: Sequence[Network]) -> StageArrays:
        """Stack networks; all must have 4 stages."""
        return cls(
            np.array([network.depths for network in networks], dtype=np.int64).reshape(-1, STAGES),
            np.array([network.widths for network in networks], dtype=np.int64).reshape(-1, STAGES),
            np.array([network.group_widths for network in networks], dtype=np.int64).reshape(-1, STAGES),
            np.array([network.bottlenecks for network in networks], dtype=np.float64).reshape(-1, STAGES),
        )

    @classmethod
    def of_population(cls, population: Population) -> StageArrays:
        """Take candidates, which are RegNets of b = 1."""
        return cls(population.depths, population.widths, population.group_widths, np.ones(population.depths.shape))

    def body(self, family: str) -> Cost:
        """Return the cost of stem and stages at 224 pixels with a stem of stride 2, ``(n,)`` each."""
        counted = complexity(
            self.depths,
            self.widths,
            self.group_widths,
            self.bottlenecks,
            resolution=REFERENCE_RESOLUTION,
            se_ratio=SE_RATIO if family == "y" else 0.0,
        )
        cost = counted.stem
        for stage in counted.stages:
            cost = cost + stage
        return cost


@dataclass(frozen=True)
class Baseline:
    """What is usual at which MACs: intercepts and slopes of :data:`SHAPE` over ln F, ``(6,)`` each."""

    family: str
    intercept: Float
    slope: Float

    def shapes(self, stages: StageArrays) -> Float:
        """Return the shape of each network, ``(n, 6)``: 0 is as published networks of its MACs."""
        values, ln_f = _absolute(stages, self.family)
        shapes: Float = values - self.intercept - self.slope * ln_f[:, None]
        return shapes


def fit_baseline(family: str) -> Baseline:
    """Fit what is usual to the published networks of a family, ``x`` or ``y``."""
    values, ln_f = _absolute(StageArrays.of_networks([entry.network for entry in baselines(family)]), family)
    follows = np.array(list(SHAPE.values()))
    away = ln_f - ln_f.mean()
    slope = np.where(follows, away @ values / (away**2).sum(), 0.0)
    return Baseline(family, values.mean(axis=0) - slope * ln_f.mean(), slope)


def regressors(shapes: Float) -> Float:
    """Return :data:`REGRESSORS` of shapes, ``(n, 7)``."""
    return np.concatenate([shapes, shapes[:, :1] ** 2], axis=1)


def _absolute(stages: StageArrays, family: str) -> tuple[Float, Float]:
    """Return the logarithms that :data:`SHAPE` names, ``(n, 6)``, and ln of the body's MACs, ``(n,)``."""
    body = stages.body(family)

    def over_blocks(values: ArrayLike) -> Float:
        mean: Float = (np.log(values) * stages.depths).sum(axis=1) / stages.depths.sum(axis=1)
        return mean

    values = [
        np.log(stages.depths.sum(axis=1)),
        np.log(stages.widths) @ _OVER_STAGES,
        over_blocks(stages.group_widths),
        over_blocks(stages.bottlenecks),
        np.log(body.parameters),
        np.log(body.activations),
    ]
    return np.stack(values, axis=1), np.log(body.macs)
