"""The shape of a network as a few numbers that are comparable between budgets and between design spaces.

A sweep usually has fewer MACs than the budget, so its results must be expressed independently of the MACs. Group
widths, parameters and activations grow with the MACs, as the published networks show. Every number here is therefore

    ln x - (c_0 + c_1 ln F),    c_1 = 0 for depth, width growth and bottleneck,

with F the MACs of stem and stages at 224 pixels, and c_0 and c_1 fitted by least squares to the 12 published networks
of the family: 0 means "like the published networks with these MACs". The head (which depends on the number of classes)
and the resolution of the training have no influence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from regnet_deploy.space.complexity import Cost, NetworkConfig, complexity
from regnet_deploy.space.enumeration import STAGES
from regnet_deploy.space.network import SE_RATIO, Network
from regnet_deploy.space.population import Population
from regnet_deploy.space.published import baselines

Float = NDArray[np.float64]

#: The numbers of a shape, in the order of all arrays, and whether each changes with the MACs. At given MACs, networks
#: differ in depth, in how their widths grow (slope of ln w_i over the stages), in groups and bottlenecks (means of ln g
#: and ln b over the blocks), and in the stages that hold the blocks: early blocks add activations, late ones
#: parameters, which are the two that the paper bounds. Further numbers (first width, growth of depth) almost follow
#: from these and the MACs: a few trials cannot tell the rest from chance, and at other MACs it makes every candidate an
#: extrapolation.
SHAPE = {
    "depth": False,
    "width growth": False,
    "group width": True,
    "bottleneck": False,
    "parameters": True,
    "activations": True,
}
#: The regressors: the shape, and the square of its depth, because the paper finds a medium depth (about 20) best.
REGRESSORS = (*SHAPE, "depth squared")
#: Slope over stages 0, 1, 2, 3 by least squares.
_OVER_STAGES = np.arange(STAGES) - (STAGES - 1) / 2
_OVER_STAGES /= (_OVER_STAGES**2).sum()


@dataclass(frozen=True)
class StageArrays:
    """The stages of networks with 4 stages as arrays, ``(n, 4)`` each."""

    depths: NDArray[np.int64]
    widths: NDArray[np.int64]
    group_widths: NDArray[np.int64]
    bottlenecks: Float

    @classmethod
    def of_networks(cls, networks: Sequence[Network]) -> StageArrays:
        """Return the stages of networks."""
        return cls(
            np.array([network.depths for network in networks], dtype=np.int64).reshape(-1, STAGES),
            np.array([network.widths for network in networks], dtype=np.int64).reshape(-1, STAGES),
            np.array([network.group_widths for network in networks], dtype=np.int64).reshape(-1, STAGES),
            np.array([network.bottlenecks for network in networks], dtype=np.float64).reshape(-1, STAGES),
        )

    @classmethod
    def of_population(cls, population: Population) -> StageArrays:
        """Return the stages of a population, whose bottleneck ratios are 1."""
        return cls(population.depths, population.widths, population.group_widths, np.ones(population.depths.shape))

    def body_cost(self, family: str) -> Cost:
        """Return the cost of stem and stages at 224 pixels with a stem of stride 2, ``(n,)`` each."""
        counted = complexity(
            self.depths,
            self.widths,
            self.group_widths,
            self.bottlenecks,
            NetworkConfig(se_ratio=SE_RATIO if family == "y" else 0.0),
        )
        cost = counted.stem
        for stage in counted.stages:
            cost = cost + stage
        return cost


@dataclass(frozen=True)
class Baseline:
    """The shapes of the published networks: intercepts and slopes of :data:`SHAPE` over ln F, ``(6,)`` each."""

    family: str
    intercept: Float
    slope: Float

    def shapes(self, stages: StageArrays) -> Float:
        """Return the shape of each network, ``(n, 6)``; 0 is that of published networks with its MACs."""
        values, ln_f = _log_features(stages, self.family)
        shapes: Float = values - self.intercept - self.slope * ln_f[:, None]
        return shapes


def fit_baseline(family: str) -> Baseline:
    """Fit the baseline to the published networks of a family, ``x`` or ``y``."""
    values, ln_f = _log_features(StageArrays.of_networks([entry.network for entry in baselines(family)]), family)
    changes = np.array(list(SHAPE.values()))
    offset = ln_f - ln_f.mean()
    slope = np.where(changes, offset @ values / (offset**2).sum(), 0.0)
    return Baseline(family, values.mean(axis=0) - slope * ln_f.mean(), slope)


def regressors(shapes: Float) -> Float:
    """Return the :data:`REGRESSORS` of shapes, ``(n, 7)``."""
    return np.concatenate([shapes, shapes[:, :1] ** 2], axis=1)


def _log_features(stages: StageArrays, family: str) -> tuple[Float, Float]:
    """Return the logarithms of the numbers in :data:`SHAPE`, ``(n, 6)``, and ln of the MACs of the body, ``(n,)``."""
    body = stages.body_cost(family)

    def mean_over_blocks(values: ArrayLike) -> Float:
        mean: Float = (np.log(values) * stages.depths).sum(axis=1) / stages.depths.sum(axis=1)
        return mean

    values = [
        np.log(stages.depths.sum(axis=1)),
        np.log(stages.widths) @ _OVER_STAGES,
        mean_over_blocks(stages.group_widths),
        mean_over_blocks(stages.bottlenecks),
        np.log(body.parameters),
        np.log(body.activations),
    ]
    return np.stack(values, axis=1), np.log(body.macs)
