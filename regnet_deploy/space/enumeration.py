"""Finds every RegNet with a given number of MACs, by solving for its parameters instead of sampling.

The levels of the quantized line depend only on d, w_m and the slope r = w_a / w_0, and d only determines where the line
ends: level k begins at block ceil((w_m^(k - 1/2) - 1) / r). For a fixed w_m, the blocks at which stages begin are
therefore constant between adjacent values of r from a short list; each such interval is a *cell*. Within a cell, w_0
and g determine the widths, the first three stages have fixed depths, and MACs are linear in the depth of the last
stage: the depths that meet the budget follow by division.

The search thus covers the whole lattice: w_0 in steps of 8, w_m in steps of 0.001, every group width, every d, and all
real values of w_a.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.errors import UsageError
from regnet_deploy.space.complexity import Cost, NetworkConfig, block_cost, head_cost, stage_resolutions, stem_cost
from regnet_deploy.space.network import REFERENCE_CLASSES, REFERENCE_RESOLUTION, SE_RATIO
from regnet_deploy.space.population import Population
from regnet_deploy.space.regnet import QUANTUM, fit_groups, level_widths

Int = NDArray[np.int64]
Float = NDArray[np.float64]

STAGES = 4
#: Above these MACs (at 224 pixels) the ranges of w_0 and g are wider, as the sampler of pycls recommends for networks
#: from 16 GMACs on; with g up to 128, fewer than 1,000 RegNetYs would remain from 12 GMACs on.
LARGE_MACS = 8e9
#: Largest w_0 and g below and above; the largest published ones are 320 and 232.
SMALL_MAX_W_0, MAX_W_0 = 256, 384
SMALL_MAX_G, MAX_G = 128, 256
#: Minimum width of an interval of w_a (channels per block): a narrower one contains no number with 6 decimals.
MIN_INTERVAL = 1e-5
#: Maximum number of solutions (several can be the same network): more would need gigabytes of memory.
MAX_SOLUTIONS = 5_000_000
#: Step of w_m, as in the sampler of pycls.
W_M_STEP = 0.001


@dataclass(frozen=True)
class Bounds:
    """Bounds of the constrained design space: 4-stage RegNets with b = 1 (arXiv 2003.13678, sections 3.3 and 4; pycls).

    Bounds on complexity hold at 224 pixels with a stem of stride 2, where F is the number of GMACs.

    Attributes:
        d: smallest and largest number of blocks.
        w_0: range, or None for 8 to 256, and to 384 above 8 GMACs.
        w_a: range, channels per block.
        w_m: range.
        g: range of the group width, or None for 1 to 128, and to 256 above 8 GMACs.
        g_multiple: the group widths of all stages, after fitting, are multiples of this.
        parameters: (a, c): fewer than (a + c F) million parameters; None removes the bound.
        activations: c: fewer than c sqrt(F) million activations; None removes the bound.
    """

    d: tuple[int, int] = (12, 28)
    w_0: tuple[int, int] | None = None
    w_a: tuple[float, float] = (8.0, 256.0)
    w_m: tuple[float, float] = (2.0, 3.0)
    g: tuple[int, int] | None = None
    g_multiple: int = 1
    parameters: tuple[float, float] | None = (3.0, 5.5)
    activations: float | None = 6.5

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            UsageError: a range is empty or not valid; the message names the allowed values.
        """
        for name, lowest, highest in (
            ("d", STAGES, 48),
            ("w_0", 8, 1024),
            ("w_a", 0, 1024),
            ("w_m", 1.1, 4),
            ("g", 1, 2048),
        ):
            pair = getattr(self, name)
            if pair is not None and not lowest <= pair[0] <= pair[1] <= highest:
                raise UsageError(f"{name} must be a range within {lowest} to {highest}, got {pair[0]} to {pair[1]}")
        if round(self.w_m[0], 3) != self.w_m[0] or round(self.w_m[1], 3) != self.w_m[1]:
            raise UsageError(f"w_m has three decimals at most, got {self.w_m[0]:g} to {self.w_m[1]:g}")
        if self.activations is not None and not 0 < self.activations < math.inf:
            raise UsageError(f"the bound on activations must be a number above 0, got {self.activations:g}")
        if self.parameters is not None and not all(0 <= value < math.inf for value in self.parameters):
            a, c = self.parameters
            raise UsageError(f"the bound on parameters must be two numbers of 0 or more, got {a:g}:{c:g}")
        if self.g_multiple < 1:
            raise UsageError(f"group width must be a multiple of 1 or more, got {self.g_multiple}")
        if not len(self.group_widths()):
            low, high = self.g or (1, MAX_G)
            raise UsageError(
                f"no group width from {low} to {high} is 1, 2, 4 or a multiple of 8, and of {self.g_multiple}: "
                "widen --group-width or lower --group-multiple"
            )

    def group_widths(self) -> Int:
        """Group widths of the lattice: powers of two below 8, then multiples of 8."""
        low, high = self.g or (1, MAX_G)
        lattice = np.concatenate([[1, 2, 4], np.arange(8, high + 1, 8)])
        if self.g is not None and low == high:
            lattice = np.array([low])  # one group width asked for by name need not lie on the lattice
        keep = (lattice >= low) & (lattice <= high) & (lattice % self.g_multiple == 0)
        chosen: Int = lattice[keep].astype(np.int64)
        return chosen


@dataclass(frozen=True)
class ConstrainedSpace:
    """The constrained design space of a family, and the input and output for which MACs are counted.

    Attributes:
        family: ``x`` or ``y``.
        bounds: the bounds; those of the paper by default.
        resolution: width and height of the image in pixels.
        stem_stride: 1 or 2; the bounds refer to 2.
        classes: outputs of the final linear layer; the bounds refer to 1000.
        input_channels: channels of the image, 1 or 3; the bounds refer to 3.
    """

    family: str
    bounds: Bounds = field(default_factory=Bounds)
    resolution: int = REFERENCE_RESOLUTION
    stem_stride: int = 2
    classes: int = REFERENCE_CLASSES
    input_channels: int = 3

    @property
    def config(self) -> NetworkConfig:
        """The configuration for which MACs are counted."""
        ours = {name: getattr(self, name) for name in ("resolution", "classes", "stem_stride", "input_channels")}
        return replace(self.reference, **ours)

    @property
    def reference(self) -> NetworkConfig:
        """The configuration that the bounds refer to."""
        return NetworkConfig(se_ratio=SE_RATIO if self.family == "y" else 0.0)


def regnets_between(
    lowest: float, highest: float, space: ConstrainedSpace, *, w_m_step: float = W_M_STEP
) -> Population:
    """Return all RegNets of a space with ``lowest`` to ``highest`` MACs, both included.

    Args:
        lowest: smallest number of MACs at the resolution of the space.
        highest: largest number of MACs at the resolution of the space.
        space: the space.
        w_m_step: step of w_m.

    Raises:
        UsageError: there are millions of solutions.
    """
    bounds, config, reference = space.bounds, space.config, space.reference
    steps = np.arange(int((bounds.w_m[1] - bounds.w_m[0]) / w_m_step + 1e-6) + 1)
    w_m = np.round(bounds.w_m[0] + steps.astype(np.float64) * w_m_step, 3)
    search = _Search(lowest, highest, bounds, w_m, _cells(w_m, bounds.d))
    small = config == reference and highest <= LARGE_MACS
    g = bounds.group_widths()
    if small and bounds.g is None:
        g = g[g <= SMALL_MAX_G]
    w_0_low, w_0_high = bounds.w_0 or (QUANTUM, SMALL_MAX_W_0 if small else MAX_W_0)
    pieces, solutions = [], 0
    for w_0 in range(-(-w_0_low // QUANTUM) * QUANTUM, w_0_high + 1, QUANTUM):
        raw = level_widths(w_0, w_m[:, None], np.arange(STAGES))
        distinct = (np.diff(raw, axis=1) > 0).all(axis=1)
        widths, groups = fit_groups(raw[None], g[:, None, None])  # (g, w_m, stage)
        costs = _LinearCost.of(widths, groups, config)
        fewest, most = costs.range(bounds.d)
        possible = distinct & (fewest <= highest) & (most >= lowest)
        if (fewest > highest).all():
            break
        if not possible.any():
            continue
        reference_costs = costs if config == reference else _LinearCost.of(widths, groups, reference)
        usable = search.usable_cells(w_0)
        for i, group in enumerate(g):
            rows = np.nonzero(possible[i])[0]
            if not len(rows):
                continue
            span = slice(rows[0], rows[-1] + 1)
            here = costs.row(i)
            there = here if reference_costs is costs else reference_costs.row(i)
            lines = _Lines(w_0, int(group), widths[i], groups[i], here, there)
            row, cell, depths = search.solve(span, usable[span] & possible[i, span, None], here)
            if not len(row):
                continue
            pieces.append(search.population(lines, row, cell, depths))
            solutions += len(pieces[-1])
            if solutions > MAX_SOLUTIONS:
                raise UsageError(
                    f"more than {MAX_SOLUTIONS:,} solutions: narrow the bounds (w_m, d, g, w_0) or the tolerance"
                )
    return Population.join(pieces) if pieces else Population.empty()


def regnets_nearest(macs: float, space: ConstrainedSpace) -> Population:
    """Return the RegNets whose MACs are nearest to ``macs``; none if the space is empty.

    The search first finds a network nearby, with a coarse step of w_m, in growing rings around ``macs`` (or around the
    nearer end of the space), and then everything that is at least as near.
    """
    lowest, highest = _extent(space)
    near = far = min(max(macs, lowest), highest)
    for factor in itertools.chain((1.01, 1.02, 1.05, 1.1), itertools.repeat(1.25)):
        if near < lowest and far > highest:
            break
        rings = ((near / factor, near), (far, far * factor))
        some = Population.join([regnets_between(*ring, space, w_m_step=20 * W_M_STEP) for ring in rings])
        if len(some):
            reach = float(np.exp(_distance(some.macs, macs).min()))
            found = Population.join([some, regnets_between(macs / reach, macs * reach, space)])
            distance = _distance(found.macs, macs)
            return found.take(np.nonzero(distance == distance.min())[0])
        near, far = near / factor, far * factor
    return Population.empty()


def _distance(found: Int, macs: float) -> Float:
    distance: Float = np.abs(np.log(found / macs))
    return distance


def _extent(space: ConstrainedSpace) -> tuple[float, float]:
    """Return lower and upper limits of the MACs of the space, without the bounds on complexity."""
    ends = []
    for w_0, w_m in zip(space.bounds.w_0 or (QUANTUM, MAX_W_0), space.bounds.w_m, strict=True):
        raw = level_widths(max(QUANTUM, w_0), w_m, np.arange(STAGES))
        widths, groups = fit_groups(raw[None, None], space.bounds.group_widths()[:, None, None])
        ends.append(_LinearCost.of(widths, groups, space.config).range(space.bounds.d))
    return float(ends[0][0].min()) / 2, float(ends[1][1].max()) * 2  # fitting to groups is not quite monotonic


@dataclass(frozen=True)
class _Cells:
    """Cells of (w_m, r), ``(w_m, cell)``, padded so that every w_m has the same number of cells.

    ``more`` is the depth minus one of the first three stages, ``(3, w_m, cell)``; ``shallowest`` and ``deepest`` limit
    the depth of the last stage, minus one; r is from ``low`` to ``high``; ``real`` is False for padding.
    """

    more: NDArray[np.float32]
    shallowest: NDArray[np.float32]
    deepest: NDArray[np.float32]
    low: Float
    high: Float
    real: NDArray[np.bool_]


def _cells(w_m: Float, d: tuple[int, int]) -> _Cells:
    threshold = np.power(w_m[:, None], np.arange(1, STAGES + 1) - 0.5) - 1  # (w_m, level)
    edges = (threshold[:, :, None] / np.arange(1, d[1])).reshape(len(w_m), -1)
    edges.sort(axis=1)
    low, high = edges[:, :-1], edges[:, 1:]
    middle = (low + high) / 2
    start = np.ceil(threshold[:, None, :] / middle[:, :, None]).astype(np.int64)
    real = (np.diff(start[..., :3], axis=-1) > 0).all(axis=-1)
    real &= (start[..., 2] < d[1]) & (start[..., 3] >= d[0])
    first = np.argsort(~real, axis=1, kind="stable")[:, : real.sum(axis=1).max()]
    start, low, high, real = (
        np.take_along_axis(start, first[..., None], axis=1),
        *(np.take_along_axis(values, first, axis=1) for values in (low, high, real)),
    )
    more = np.diff(start[..., :3], axis=-1, prepend=0) - 1
    return _Cells(
        more=np.ascontiguousarray(np.moveaxis(more, -1, 0), dtype=np.float32),
        shallowest=np.maximum(0, d[0] - start[..., 2] - 1).astype(np.float32),
        deepest=(np.minimum(start[..., 3], d[1]) - start[..., 2] - 1).astype(np.float32),
        low=low,
        high=high,
        real=real,
    )


@dataclass(frozen=True)
class _LinearCost:
    """Costs as ``base + sum over stages of (depth - 1) * more``; arrays are ``(g, w_m)`` or, for one g, ``(w_m,)``."""

    base: Cost
    more: tuple[Cost, ...]

    @classmethod
    def of(cls, widths: Int, groups: Int, config: NetworkConfig) -> _LinearCost:
        sides = stage_resolutions(config.resolution, config.stem_stride, STAGES)
        base = stem_cost(config) + head_cost(widths[..., -1], config.classes)
        more = []
        before = np.full(widths.shape[:-1], config.stem_width, dtype=np.int64)
        for i in range(STAGES):
            w, g, side = widths[..., i], groups[..., i], sides[i + 1]
            first, se_ratio = (sides[i], side), config.se_ratio
            base = base + block_cost(before, w, w, g, sides=first, first=True, se_ratio=se_ratio)
            more.append(block_cost(w, w, w, g, sides=(side, side), first=False, se_ratio=se_ratio))
            before = w
        return cls(base, tuple(more))

    def row(self, i: int) -> _LinearCost:
        return _LinearCost(Cost(*(v[i] for v in self.base)), tuple(Cost(*(v[i] for v in m)) for m in self.more))

    def range(self, d: tuple[int, int]) -> tuple[Int, Int]:
        """Return limits of the MACs of all networks with these widths and ``d`` blocks."""
        each = np.stack([cost.macs for cost in self.more])
        return self.base.macs + (d[0] - STAGES) * each.min(axis=0), self.base.macs + (d[1] - STAGES) * each.max(axis=0)

    def total(self, row: Int, depths: Int) -> Cost:
        total = Cost(*(value[row] for value in self.base))
        for i in range(STAGES):
            total = total + Cost(*(value[row] for value in self.more[i])).times(depths[:, i] - 1)
        return total


@dataclass(frozen=True)
class _Lines:
    """All w_m of one w_0 and g: fitted widths and group widths ``(w_m, stage)``, costs here and at 224 pixels."""

    w_0: int
    g: int
    widths: Int
    groups: Int
    here: _LinearCost
    reference: _LinearCost


@dataclass(frozen=True)
class _Search:
    """What one search has in common for all w_0 and g."""

    lowest: float
    highest: float
    bounds: Bounds
    w_m: Float
    cells: _Cells

    def usable_cells(self, w_0: int) -> NDArray[np.bool_]:
        """Return the cells that contain a w_a within the bounds, ``(w_m, cell)``."""
        low, high = (np.clip(edge * w_0, *self.bounds.w_a) for edge in (self.cells.low, self.cells.high))
        usable: NDArray[np.bool_] = self.cells.real & (high - low > MIN_INTERVAL)
        return usable

    def solve(self, span: slice, usable: NDArray[np.bool_], costs: _LinearCost) -> tuple[Int, Int, Int]:
        """Return the row, the cell and the depths ``(n, stage)`` of all networks near the budget, with w_m in ``span``.

        The equations are in blocks of the last stage and in float32, which is fast and accurate to 1e-4 blocks or
        better. The result is wider than the budget by this error; :meth:`population` applies the exact limits.
        """
        cells, per_block = self.cells, 1.0 / costs.more[-1].macs[span, None]
        first = (costs.base.macs[span, None] * per_block).astype(np.float32)
        for i in range(STAGES - 1):
            first = first + cells.more[i, span] * (costs.more[i].macs[span, None] * per_block).astype(np.float32)
        lowest, highest = (self.lowest * per_block - 1e-3), (self.highest * per_block + 1e-3)
        least = np.maximum(np.ceil(lowest.astype(np.float32) - first), cells.shallowest[span])
        most = np.minimum(np.floor(highest.astype(np.float32) - first), cells.deepest[span])
        meets = np.nonzero((most >= least) & usable)
        fewest = least[meets].astype(np.int64)
        count = most[meets].astype(np.int64) - fewest + 1
        hit = np.repeat(np.arange(len(count)), count)
        last = 1 + fewest[hit] + np.arange(len(hit)) - np.repeat(np.cumsum(count) - count, count)
        row, cell = meets[0][hit] + span.start, meets[1][hit]
        return row, cell, np.stack([*(1 + cells.more[:, row, cell].astype(np.int64)), last], axis=1)

    def population(self, lines: _Lines, row: Int, cell: Int, depths: Int) -> Population:
        """Return the solutions that meet the budget and the bounds exactly."""
        bounds, cells = self.bounds, self.cells
        total = lines.here.total(row, depths)
        reference = total if lines.reference is lines.here else lines.reference.total(row, depths)
        giga = reference.macs / 1e9
        keep = (total.macs >= self.lowest) & (total.macs <= self.highest)
        if bounds.parameters is not None:
            keep &= reference.parameters < (bounds.parameters[0] + bounds.parameters[1] * giga) * 1e6
        if bounds.activations is not None:
            keep &= reference.activations < bounds.activations * np.sqrt(giga) * 1e6
        large = reference.macs > LARGE_MACS
        if bounds.w_0 is None:
            keep &= large | (lines.w_0 <= SMALL_MAX_W_0)
        if bounds.g is None:
            keep &= large | (lines.g <= SMALL_MAX_G)
        if bounds.g_multiple > 1:
            keep &= (lines.groups[row] % bounds.g_multiple == 0).all(axis=1)
        row, cell, depths = row[keep], cell[keep], depths[keep]
        return Population(
            d=depths.sum(axis=1),
            w_0=np.full(len(row), lines.w_0),
            w_m=self.w_m[row],
            g=np.full(len(row), lines.g),
            w_a_low=np.maximum(cells.low[row, cell] * lines.w_0, bounds.w_a[0]),
            w_a_high=np.minimum(cells.high[row, cell] * lines.w_0, bounds.w_a[1]),
            depths=depths,
            widths=lines.widths[row],
            group_widths=lines.groups[row],
            macs=total.macs[keep],
            parameters=total.parameters[keep],
            activations=total.activations[keep],
            reference_macs=reference.macs[keep],
        )
