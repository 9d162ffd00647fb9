"""Closed-form complexity of AnyNets, for one network or a whole population at once.

MACs, parameters and activations by the rules of pycls (facebookresearch/pycls, ``pycls/models/blocks.py``), which are
the paper's: one multiply-add is one MAC; convolutions, the final linear and their biases count, batch norm, pooling,
activation functions and additions do not; activations are the elements that convolutions and the linear put out, for
one image. Everything is integer arithmetic, exact to the unit.

All functions take and return NumPy integer arrays of any one shape, one element a network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from regnet_deploy.space.network import STEM_WIDTH, Network, check_block

Int = NDArray[np.int64]


class Cost(NamedTuple):
    """MACs, parameters (weights) and activations (elements), each an integer array."""

    macs: Int
    parameters: Int
    activations: Int

    def __add__(self, other: object) -> Cost:
        """Add two costs element by element."""
        if not isinstance(other, Cost):
            return NotImplemented
        return Cost(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, count: ArrayLike) -> Cost:
        """Return the cost of ``count`` such things."""
        return Cost(*(value * np.asarray(count, dtype=np.int64) for value in self))


@dataclass(frozen=True)
class Complexity:
    """Cost of a network, whole and in its parts (``stages`` has one cost a stage)."""

    stem: Cost
    stages: tuple[Cost, ...]
    head: Cost

    @property
    def total(self) -> Cost:
        """Cost of the whole network."""
        total = self.stem + self.head
        for stage in self.stages:
            total = total + stage
        return total


def halved(resolution: int) -> int:
    """Return the side of the output of a 3x3 convolution (padding 1) or a 1x1 with stride 2."""
    return (resolution - 1) // 2 + 1


def stage_resolutions(resolution: int, stem_stride: int, stages: int) -> list[int]:
    """Return the side after the stem and after each stage, in pixels: ``stages + 1`` values."""
    sides = [halved(resolution) if stem_stride == 2 else resolution]
    for _ in range(stages):
        sides.append(halved(sides[-1]))
    return sides


def stem_cost(resolution: int, stem_stride: int, stem_width: int = STEM_WIDTH) -> Cost:
    """Return the cost of the stem: a 3x3 convolution of 3 colours and its batch norm."""
    area = stage_resolutions(resolution, stem_stride, 0)[0] ** 2
    weights = 27 * stem_width
    return _cost(weights * area, weights + 2 * stem_width, stem_width * area)


def head_cost(width: ArrayLike, classes: int) -> Cost:
    """Return the cost of the final linear with its bias."""
    width = np.asarray(width, dtype=np.int64)
    both = width * classes + classes
    return Cost(both, both, np.full_like(both, classes))


def block_cost(
    width_in: ArrayLike,
    width: ArrayLike,
    inner: ArrayLike,
    group_width: ArrayLike,
    *,
    side: int,
    first: bool,
    se_ratio: float,
    side_in: int | None = None,
) -> Cost:
    """Return the cost of a residual bottleneck block with output of ``side`` pixels a side.

    Args:
        width_in: channels that enter.
        width: channels that leave.
        inner: channels of the bottleneck.
        group_width: channels per group of its 3x3 convolution.
        side: pixels a side of the output.
        first: whether it opens its stage: stride 2 in the 3x3 and a projection shortcut.
        se_ratio: squeezed channels over ``width_in``, rounded half to even; 0 for none.
        side_in: pixels a side of the input; ``side`` unless given.
    """
    w_i, w_o, w_b, g = (np.asarray(value, dtype=np.int64) for value in (width_in, width, inner, group_width))
    area, area_in = side**2, (side if side_in is None else side_in) ** 2
    a, b, c = w_i * w_b, 9 * w_b * g, w_b * w_o
    macs = a * area_in + (b + c) * area
    parameters = a + b + c + 4 * w_b + 2 * w_o
    activations = w_b * area_in + (w_b + w_o) * area
    if se_ratio:
        w_se = np.round(se_ratio * w_i).astype(np.int64)
        squeeze = 2 * w_b * w_se + w_se + w_b
        macs = macs + squeeze
        parameters = parameters + squeeze
        activations = activations + w_se + w_b
    cost = Cost(macs, parameters, activations)
    return cost + _projection_cost(w_i, w_o, area) if first else cost


def plain_block_cost(width_in: ArrayLike, width: ArrayLike, *, side: int, first: bool, residual: bool) -> Cost:
    """Return the cost of a block of one 3x3 convolution (V, or VR with ``residual``).

    Args:
        width_in: channels that enter.
        width: channels that leave.
        side: pixels a side of the output.
        first: whether it opens its stage: stride 2 and, of a residual block, a projection shortcut.
        residual: whether it has a shortcut.
    """
    w_i, w_o = (np.asarray(value, dtype=np.int64) for value in (width_in, width))
    area = side**2
    cost = Cost(9 * w_i * w_o * area, 9 * w_i * w_o + 2 * w_o, w_o * area)
    return cost + _projection_cost(w_i, w_o, area) if first and residual else cost


def complexity(
    depths: ArrayLike,
    widths: ArrayLike,
    group_widths: ArrayLike,
    bottlenecks: ArrayLike = 1,
    *,
    resolution: int,
    se_ratio: float = 0.0,
    stem_stride: int = 2,
    stem_width: int = STEM_WIDTH,
    classes: int = 1000,
    block: str = "bottleneck",
) -> Complexity:
    """Return the complexity of a population at ``(3, resolution, resolution)``.

    Args:
        depths: blocks, ``(..., stages)``.
        widths: output channels, ``(..., stages)``.
        group_widths: channels per group, ``(..., stages)``.
        bottlenecks: width over bottleneck width, broadcast to the others.
        resolution: pixels a side of the input image.
        se_ratio: 0.25 for RegNetY, 0 for RegNetX.
        stem_stride: 1 or 2.
        stem_width: channels of the stem.
        classes: outputs of the final linear.
        block: kind of the blocks, one for the population; ``v`` and ``vr`` have no group widths, bottlenecks or SE, and
            what these arguments say is not looked at.

    Raises:
        UsageError: there is no such kind of block.
    """
    check_block(block)
    d, w, g = (np.asarray(value, dtype=np.int64) for value in (depths, widths, group_widths))
    inner = np.round(w / np.asarray(bottlenecks, dtype=np.float64)).astype(np.int64)
    stages = w.shape[-1]
    sides = stage_resolutions(resolution, stem_stride, stages)
    costs = []
    before = np.full(w.shape[:-1], stem_width, dtype=np.int64)
    for i in range(stages):
        first, other = _stage_block_costs(
            block, before, w[..., i], inner[..., i], g[..., i], side=sides[i + 1], side_in=sides[i], se_ratio=se_ratio
        )
        costs.append(first + other.times(d[..., i] - 1))
        before = w[..., i]
    return Complexity(stem_cost(resolution, stem_stride, stem_width), tuple(costs), head_cost(before, classes))


def network_complexity(network: Network, resolution: int, classes: int) -> Complexity:
    """Return the complexity of one network at ``(3, resolution, resolution)``, as 0-dimensional arrays."""
    return complexity(
        network.depths,
        network.widths,
        network.group_widths,
        network.bottlenecks,
        resolution=resolution,
        se_ratio=network.se_ratio,
        stem_stride=network.stem_stride,
        stem_width=network.stem_width,
        classes=classes,
        block=network.block,
    )


def _stage_block_costs(
    block: str, before: Int, width: Int, inner: Int, group_width: Int, *, side: int, side_in: int, se_ratio: float
) -> tuple[Cost, Cost]:
    """Return the cost of a stage's first block and that of each other."""
    if block == "bottleneck":
        return (
            block_cost(before, width, inner, group_width, side=side, side_in=side_in, first=True, se_ratio=se_ratio),
            block_cost(width, width, inner, group_width, side=side, first=False, se_ratio=se_ratio),
        )
    residual = block == "vr"
    return (
        plain_block_cost(before, width, side=side, first=True, residual=residual),
        plain_block_cost(width, width, side=side, first=False, residual=residual),
    )


def _projection_cost(width_in: Int, width: Int, area: int) -> Cost:
    """Return the cost of a shortcut's 1x1 convolution and its batch norm; ``area`` is the output's, in pixels."""
    weights = width_in * width
    return Cost(weights * area, weights + 2 * width, width * area)


def _cost(macs: int, parameters: int, activations: int) -> Cost:
    return Cost(*(np.asarray(value, dtype=np.int64) for value in (macs, parameters, activations)))
