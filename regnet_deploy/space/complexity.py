"""Closed-form complexity of AnyNets, for one network or for a population.

MACs, parameters and activations are counted by the rules of the paper, as implemented in pycls
(facebookresearch/pycls, ``pycls/models/blocks.py``): one multiply-add is one MAC; convolutions, the final linear layer
and their biases count; batch norm, pooling, activation functions and additions do not; activations are the output
elements of the convolutions and of the linear layer, for one image. All arithmetic is in integers, and exact.

All functions take and return NumPy integer arrays of the same shape, one element for each network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from regnet_deploy.space.network import (
    REFERENCE_CLASSES,
    REFERENCE_RESOLUTION,
    STEM_WIDTH,
    Network,
    check_block,
    check_input_channels,
)

Int = NDArray[np.int64]


class Cost(NamedTuple):
    """MACs, parameters and activations (elements), each an integer array."""

    macs: Int
    parameters: Int
    activations: Int

    def __add__(self, other: object) -> Cost:
        """Add two costs element by element."""
        if not isinstance(other, Cost):
            return NotImplemented
        return Cost(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, count: ArrayLike) -> Cost:
        """Return the cost multiplied by ``count``."""
        return Cost(*(value * np.asarray(count, dtype=np.int64) for value in self))


@dataclass(frozen=True)
class Complexity:
    """Cost of the parts of a network; ``stages`` has one cost for each stage."""

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
    """Return the output resolution of a convolution of stride 2: 3x3 with padding 1, or 1x1."""
    return (resolution - 1) // 2 + 1


def stage_resolutions(resolution: int, stem_stride: int, stages: int) -> list[int]:
    """Return the resolution after the stem and after each stage, in pixels: ``stages + 1`` values."""
    sides = [halved(resolution) if stem_stride == 2 else resolution]
    for _ in range(stages):
        sides.append(halved(sides[-1]))
    return sides


def head_cost(width: ArrayLike, classes: int) -> Cost:
    """Return the cost of the final linear layer with its bias."""
    width = np.asarray(width, dtype=np.int64)
    both = width * classes + classes
    return Cost(both, both, np.full_like(both, classes))


def block_cost(
    width_in: ArrayLike,
    width: ArrayLike,
    inner: ArrayLike,
    group_width: ArrayLike,
    *,
    sides: tuple[int, int],
    first: bool,
    se_ratio: float,
) -> Cost:
    """Return the cost of a residual bottleneck block.

    Args:
        width_in: input channels.
        width: output channels.
        inner: channels of the bottleneck.
        group_width: channels per group of the 3x3 convolution.
        sides: input and output resolution, pixels.
        first: whether it is the first block of a stage, with stride 2 in the 3x3 convolution and a projection shortcut.
        se_ratio: squeezed channels divided by ``width_in``, rounded half to even; 0 for none.
    """
    w_i, w_o, w_b, g = (np.asarray(value, dtype=np.int64) for value in (width_in, width, inner, group_width))
    area_in, area = sides[0] ** 2, sides[1] ** 2
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
        width_in: input channels.
        width: output channels.
        side: output resolution, pixels.
        first: whether it is the first block of a stage, with stride 2 and, if residual, a projection shortcut.
        residual: whether it has a shortcut.
    """
    w_i, w_o = (np.asarray(value, dtype=np.int64) for value in (width_in, width))
    area = side**2
    cost = Cost(9 * w_i * w_o * area, 9 * w_i * w_o + 2 * w_o, w_o * area)
    return cost + _projection_cost(w_i, w_o, area) if first and residual else cost


@dataclass(frozen=True)
class NetworkConfig:
    """What the networks of a population have in common.

    Attributes:
        resolution: width and height of the input image in pixels.
        classes: outputs of the final linear layer.
        stem_stride: 1 or 2.
        stem_width: channels of the stem.
        se_ratio: 0.25 for RegNetY, 0 for RegNetX.
        block: kind of the blocks; ``v`` and ``vr`` have no group widths, bottlenecks or SE, and ignore them.
        input_channels: channels of the image, 1 or 3.
    """

    resolution: int = REFERENCE_RESOLUTION
    classes: int = REFERENCE_CLASSES
    stem_stride: int = 2
    stem_width: int = STEM_WIDTH
    se_ratio: float = 0.0
    block: str = "bottleneck"
    input_channels: int = 3

    @classmethod
    def of(cls, network: Network, resolution: int, classes: int) -> NetworkConfig:
        """Return what a network has in common with others of its kind, for images of this resolution, pixels."""
        return cls(
            resolution,
            classes,
            network.stem_stride,
            network.stem_width,
            network.se_ratio,
            network.block,
            network.input_channels,
        )

    def __post_init__(self) -> None:
        """Check the kind of the blocks and the channels.

        Raises:
            UsageError: there is no such kind, or no such network.
        """
        check_block(self.block)
        check_input_channels(self.input_channels)


def stem_cost(config: NetworkConfig) -> Cost:
    """Return the cost of the stem: a 3x3 convolution of the image and its batch norm."""
    area, width = stage_resolutions(config.resolution, config.stem_stride, 0)[0] ** 2, config.stem_width
    weights = 9 * config.input_channels * width
    return _cost(weights * area, weights + 2 * width, width * area)


def complexity(
    depths: ArrayLike, widths: ArrayLike, group_widths: ArrayLike, bottlenecks: ArrayLike, config: NetworkConfig
) -> Complexity:
    """Return the complexity of a population for images ``(input_channels, resolution, resolution)``.

    Args:
        depths: number of blocks, ``(..., stages)``.
        widths: output channels, ``(..., stages)``.
        group_widths: channels per group, ``(..., stages)``.
        bottlenecks: width divided by bottleneck width; broadcasts to the others.
        config: what the networks have in common.
    """
    d, w, g = (np.asarray(value, dtype=np.int64) for value in (depths, widths, group_widths))
    inner = np.round(w / np.asarray(bottlenecks, dtype=np.float64)).astype(np.int64)
    stages = w.shape[-1]
    sides = stage_resolutions(config.resolution, config.stem_stride, stages)
    costs = []
    before = np.full(w.shape[:-1], config.stem_width, dtype=np.int64)
    for i in range(stages):
        first, other = _stage_block_costs(
            config, before, w[..., i], inner[..., i], g[..., i], sides=(sides[i], sides[i + 1])
        )
        costs.append(first + other.times(d[..., i] - 1))
        before = w[..., i]
    return Complexity(stem_cost(config), tuple(costs), head_cost(before, config.classes))


def network_complexity(network: Network, resolution: int, classes: int) -> Complexity:
    """Return the complexity of one network for images of this resolution, as 0-dimensional arrays."""
    config = NetworkConfig.of(network, resolution, classes)
    return complexity(network.depths, network.widths, network.group_widths, network.bottlenecks, config)


def _stage_block_costs(
    config: NetworkConfig, before: Int, width: Int, inner: Int, group_width: Int, *, sides: tuple[int, int]
) -> tuple[Cost, Cost]:
    """Return the cost of the first block of a stage, and that of each other block."""
    side = sides[1]
    if config.block == "bottleneck":
        se_ratio = config.se_ratio
        return (
            block_cost(before, width, inner, group_width, sides=sides, first=True, se_ratio=se_ratio),
            block_cost(width, width, inner, group_width, sides=(side, side), first=False, se_ratio=se_ratio),
        )
    residual = config.block == "vr"
    return (
        plain_block_cost(before, width, side=side, first=True, residual=residual),
        plain_block_cost(width, width, side=side, first=False, residual=residual),
    )


def _projection_cost(width_in: Int, width: Int, area: int) -> Cost:
    """Return the cost of a 1x1 shortcut convolution and its batch norm; ``area`` is that of the output, pixels."""
    weights = width_in * width
    return Cost(weights * area, weights + 2 * width, width * area)


def _cost(macs: int, parameters: int, activations: int) -> Cost:
    return Cost(*(np.asarray(value, dtype=np.int64) for value in (macs, parameters, activations)))
