"""The RegNet parameterization: a quantized line gives the widths of a network (arXiv 2003.13678, section 3.3; pycls).

The line gives block j of d the width u_j = w_0 + w_a j. The block is on level s_j = round(log(u_j / w_0) / log(w_m)),
and its width is w_0 w_m^s_j, rounded to a multiple of 8. The blocks of one level form a stage. All rounding is half to
even.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from regnet_deploy.errors import UsageError
from regnet_deploy.space.network import SE_RATIO, Network

QUANTUM = 8
Int = NDArray[np.int64]
Float = NDArray[np.float64]


@dataclass(frozen=True)
class RegNet:
    """The six parameters of the paper that generate a network, and its family.

    Attributes:
        d: number of blocks.
        w_0: width of the first block before rounding, a multiple of 8.
        w_a: slope, channels per block.
        w_m: ratio of the widths of adjacent levels.
        b: bottleneck ratio, width over bottleneck width.
        g: group width.
        family: ``x``, or ``y`` with squeeze-and-excitation.
    """

    d: int
    w_0: int
    w_a: float
    w_m: float
    g: int
    b: float = 1.0
    family: str = "x"

    def __post_init__(self) -> None:
        """Check the parameters.

        Raises:
            UsageError: a parameter is not valid; the message names the allowed values.
        """
        if self.d < 1 or self.g < 1 or self.b <= 0:
            raise UsageError(f"d and g must be 1 or more and b above 0, got d={self.d}, g={self.g}, b={self.b}")
        if self.w_0 < QUANTUM or self.w_0 % QUANTUM:
            raise UsageError(f"w_0 must be a positive multiple of {QUANTUM}, got {self.w_0}")
        if not self.w_a >= 0 or not self.w_m > 1:
            raise UsageError(f"w_a must be 0 or more and w_m above 1, got w_a={self.w_a}, w_m={self.w_m}")
        if self.family not in ("x", "y"):
            raise UsageError(f"family must be x or y, got {self.family}")

    def parameters(self) -> NDArray[np.float64]:
        """Return d, w_0, w_a, w_m and g, ``(5,)``."""
        return np.array([self.d, self.w_0, self.w_a, self.w_m, self.g], dtype=np.float64)

    def network(self, stem_stride: int = 2, input_channels: int = 3) -> Network:
        """Generate the network.

        Raises:
            UsageError: the quantized line skips a level, so that the network is not a RegNet.
        """
        levels = block_levels(self.d, self.w_0, self.w_a, self.w_m)
        widths, depths = np.unique(level_widths(self.w_0, self.w_m, levels), return_counts=True)
        if len(widths) != levels.max() + 1:
            raise UsageError(f"{self} is not a RegNet: its widths skip a level (w_a is too large or w_m too small)")
        fitted, groups = fit_groups(widths, self.g, self.b)
        return Network(
            depths=tuple(depths.tolist()),
            widths=tuple(fitted.tolist()),
            group_widths=tuple(groups.tolist()),
            bottlenecks=(self.b,) * len(depths),
            se_ratio=SE_RATIO if self.family == "y" else 0.0,
            stem_stride=stem_stride,
            input_channels=input_channels,
        )


def block_levels(d: int, w_0: float, w_a: float, w_m: float) -> Int:
    """Return the level of each of ``d`` blocks, ``(d,)``."""
    u = w_0 + w_a * np.arange(d)
    levels: Int = np.round(np.log(u / w_0) / np.log(w_m)).astype(np.int64)
    return levels


def may_have_stages(d: Float, w_0: Float, w_a: Float, w_m: Float, stages: int) -> Int:
    """Return the indices of lines that may have this number of stages: a fast filter before :func:`line_depths`.

    It compares the blocks at which the last stage and the next one begin with the depth, with a margin of one block.
    """
    power = 1 / np.sqrt(w_m)  # w_m^(k - 1/2) of level 0, which begins before the first block
    for _ in range(stages - 1):
        power *= w_m
    with np.errstate(divide="ignore", over="ignore"):  # a flat line has one level
        slope = w_0 / w_a
        return np.flatnonzero(((power - 1) * slope < d) & ((power * w_m - 1) * slope > d - 2))


def line_depths(d: Float, w_0: Float, w_a: Float, w_m: Float, stages: int) -> Int:
    """Return the depths of the stages of lines, ``(n, stages)``; 0 where a line has another number of levels.

    Level k of a line begins at block ceil((w_m^(k - 1/2) - 1) w_0 / w_a), so that no loop over the blocks is needed.
    Where rounding could decide, the level of the block is computed as in :func:`block_levels`.
    """
    powers = np.sqrt(w_m)[:, None] * w_m[:, None] ** np.arange(stages)  # w_m^(k - 1/2) of levels 1 to `stages`
    with np.errstate(divide="ignore", over="ignore"):
        begins = np.minimum((powers - 1) * (w_0 / w_a)[:, None], d[:, None] + 0.5)
    firsts, nearest = np.ceil(begins), np.round(begins)
    row, level = np.nonzero(np.abs(begins - nearest) < 1e-7 * (1 + begins))
    if len(row):
        block = nearest[row, level]
        reached = np.round(np.log((w_0[row] + w_a[row] * block) / w_0[row]) / np.log(w_m[row]))
        firsts[row, level] = np.where(reached > level, block, block + 1)
    edges = np.minimum(np.concatenate([np.zeros((len(d), 1)), firsts], axis=1), d[:, None])
    depths = np.diff(edges, axis=1).astype(np.int64)
    return np.where(edges[:, -1:] == d[:, None], depths, 0)


def level_widths(w_0: ArrayLike, w_m: ArrayLike, level: ArrayLike) -> Int:
    """Return the width of a level, a multiple of 8, before it is fitted to groups; arguments broadcast."""
    widths = np.asarray(w_0, dtype=np.float64) * np.power(w_m, level)
    rounded: Int = (np.round(widths / QUANTUM) * QUANTUM).astype(np.int64)
    return rounded


def fit_groups(widths: ArrayLike, g: ArrayLike, b: ArrayLike = 1.0) -> tuple[Int, Int]:
    """Make widths multiples of the group widths, in the order and rounding of pycls.

    The bottleneck width v = w / b takes g = min(g, v) and is then rounded, half to even, to a multiple of g (of
    lcm(g, 1/b) where 1/b is an integer above 1); the width becomes v b.

    Args:
        widths: any shape.
        g: requested group width; broadcasts.
        b: bottleneck ratio; broadcasts.

    Returns:
        widths and group widths, both int64 of the broadcast shape.
    """
    w = np.asarray(widths, dtype=np.int64)
    multiplier = 1.0 / np.asarray(b, dtype=np.float64)
    v = np.maximum(1, (w * multiplier).astype(np.int64))
    groups = np.minimum(np.asarray(g, dtype=np.int64), v)
    step = np.where(multiplier > 1, np.lcm(groups, np.maximum(1, np.round(multiplier)).astype(np.int64)), groups)
    v = np.maximum(step, (np.round(v / step) * step).astype(np.int64))
    return (v / multiplier).astype(np.int64), groups
