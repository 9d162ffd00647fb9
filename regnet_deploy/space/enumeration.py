"""Every RegNet with a given number of MACs, by solving for it rather than by drawing and rejecting.

The levels of the quantized line depend on d, w_m and the slope r = w_a / w_0 only, and not even on d except for where
the line ends: level k begins at block ceil((w_m^(k - 1/2) - 1) / r). For a fixed w_m the blocks at which stages begin
are therefore constant between neighbouring values of r out of a short list; each such interval is a *cell*. Within a
cell, w_0 and g fix the widths, the first three stages have fixed depths, and MACs are linear in the depth of the last
stage: the depths that meet the budget follow by division.

So the whole lattice - w_0 in steps of 8, w_m in steps of 0.001, every group width, every d, and w_a continuous - is
searched without leaving anything out.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.errors import UsageError
from regnet_deploy.space.complexity import Cost, block_cost, head_cost, stage_resolutions, stem_cost
from regnet_deploy.space.network import REFERENCE_CLASSES, REFERENCE_RESOLUTION, SE_RATIO, STEM_WIDTH
from regnet_deploy.space.population import Population
from regnet_deploy.space.regnet import QUANTUM, fit_groups, level_widths

Int = NDArray[np.int64]
Float = NDArray[np.float64]

STAGES = 4
#: Above this (MACs at 224) w_0 and g range wider, as the sampler of pycls advises for large networks. It says so from
#: 16 GMACs on; with g up to 128 alone, fewer than 1,000 RegNetYs would be left from 12.
LARGE_MACS = 8e9
#: Largest w_0 and g up to there and beyond; the largest published are 320 and 232.
SMALL_W_0, MOST_W_0 = 256, 384
SMALL_G, MOST_G = 128, 256
#: Slopes that make one network must span more than this (channels a block): thinner slivers hold no w_a of 6 decimals.
SLIVER = 1e-5
#: Solutions, many of them the same network, beyond which a search would take gigabytes: its bounds are too wide.
MOST_SOLUTIONS = 5_000_000
#: Step of the w_m lattice, as in the sampler of pycls.
W_M_STEP = 0.001


@dataclass(frozen=True)
class Bounds:
    """The constrained design space: 4-stage RegNets with b = 1 (arXiv 2003.13678, sections 3.3 and 4; pycls config).

    Bounds on complexity are stated at 224 pixels with a stem of stride 2, F being the GMACs there.

    Attributes:
        d: fewest and most blocks.
        w_0: least and most, or None for 8 to 256, and to 384 above 8 GMACs.
        w_a: least and most, channels a block.
        w_m: least and most.
        g: least and most group width, or None for 1 to 128, and to 256 above 8 GMACs.
        g_multiple: group widths must be a multiple of this (every stage's, after fitting).
        parameters: (a, c): fewer than (a + c F) million parameters; None lifts the bound.
        activations: c: fewer than c sqrt(F) million activations; None lifts the bound.
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
        """Refuse ranges that are empty or outside the parameterization.

        Raises:
            UsageError: with the range and what it may be.
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
            low, high = self.g or (1, MOST_G)
            raise UsageError(
                f"no group width from {low} to {high} is 1, 2, 4 or a multiple of 8, and of {self.g_multiple}: "
                "widen --group-width or lower --group-multiple"
            )

    def group_widths(self) -> Int:
        """Group widths of the lattice: powers of two below 8, then multiples of 8."""
        low, high = self.g or (1, MOST_G)
        lattice = np.concatenate([[1, 2, 4], np.arange(8, high + 1, 8)])
        if self.g is not None and low == high:
            lattice = np.array([low])  # one group width asked for by name need not lie on the lattice
        keep = (lattice >= low) & (lattice <= high) & (lattice % self.g_multiple == 0)
        chosen: Int = lattice[keep].astype(np.int64)
        return chosen


def regnets_between(
    lowest: float,
    highest: float,
    *,
    family: str,
    bounds: Bounds | None = None,
    resolution: int = REFERENCE_RESOLUTION,
    stem_stride: int = 2,
    classes: int = 1000,
    w_m_step: float = W_M_STEP,
) -> Population:
    """Return all RegNets of the constrained space with ``lowest`` to ``highest`` MACs.

    Args:
        lowest: MACs at ``resolution``, included.
        highest: MACs at ``resolution``, included.
        family: ``x`` or ``y``.
        bounds: the space; the paper's unless given.
        resolution: pixels a side of the image.
        stem_stride: 1 or 2, at ``resolution`` (at 224 it is 2 for the bounds).
        classes: outputs of the final linear at ``resolution`` (1000 for the bounds).
        w_m_step: step of the w_m lattice.
    """
    bounds = bounds or Bounds()
    se_ratio = SE_RATIO if family == "y" else 0.0
    steps = np.arange(int((bounds.w_m[1] - bounds.w_m[0]) / w_m_step + 1e-6) + 1)
    w_m = np.round(bounds.w_m[0] + steps.astype(np.float64) * w_m_step, 3)
    cells = _cells(w_m, bounds.d)
    at_reference = (resolution, stem_stride, classes) == (REFERENCE_RESOLUTION, 2, REFERENCE_CLASSES)
    small = at_reference and highest <= LARGE_MACS
    g = bounds.group_widths()
    if small and bounds.g is None:
        g = g[g <= SMALL_G]
    w_0_low, w_0_high = bounds.w_0 or (QUANTUM, SMALL_W_0 if small else MOST_W_0)
    pieces, solutions = [], 0
    for w_0 in range(-(-w_0_low // QUANTUM) * QUANTUM, w_0_high + 1, QUANTUM):
        raw = level_widths(w_0, w_m[:, None], np.arange(STAGES))
        whole = (np.diff(raw, axis=1) > 0).all(axis=1)
        widths, groups = fit_groups(raw[None], g[:, None, None])  # (g, w_m, stage)
        at = _Linear.of(widths, groups, se_ratio, resolution, stem_stride, classes)
        fewest, most = at.range(bounds.d)
        live = whole & (fewest <= highest) & (most >= lowest)
        if (fewest > highest).all():
            break
        if not live.any():
            continue
        reference = (
            at if at_reference else _Linear.of(widths, groups, se_ratio, REFERENCE_RESOLUTION, 2, REFERENCE_CLASSES)
        )
        least_slope, most_slope = (np.clip(edge * w_0, *bounds.w_a) for edge in (cells.low, cells.high))
        usable = cells.real & (most_slope - least_slope > SLIVER)
        for i, group in enumerate(g):
            rows = np.nonzero(live[i])[0]
            if not len(rows):
                continue
            span = slice(rows[0], rows[-1] + 1)
            mine = usable[span] & live[i, span, None]
            here = at.row(i)
            there = here if reference is at else reference.row(i)
            of = _Row(w_0, int(group), widths[i], groups[i], here, there)
            row, cell, depths = _solve(cells, span, mine, here, lowest, highest)
            if not len(row):
                continue
            pieces.append(_within(of, row, cell, depths, cells, w_m, bounds, lowest, highest))
            solutions += len(pieces[-1])
            if solutions > MOST_SOLUTIONS:
                raise UsageError(
                    f"more than {MOST_SOLUTIONS:,} solutions: narrow the bounds (w_m, d, g, w_0) or the tolerance"
                )
    return Population.join(pieces) if pieces else Population.empty()


def regnets_nearest(macs: float, **space: Any) -> Population:
    """Return the RegNets whose MACs are nearest to ``macs``, or none where the space is empty.

    Some network near is found first, in growing rings around ``macs`` (or around the end of the space that is nearer)
    and on a coarse lattice; then whatever is at least as near. Takes what :func:`regnets_between` takes beside its
    limits.
    """
    lowest, highest = _extent(**space)
    near = far = min(max(macs, lowest), highest)
    for factor in itertools.chain((1.01, 1.02, 1.05, 1.1), itertools.repeat(1.25)):
        if near < lowest and far > highest:
            break
        rings = ((near / factor, near), (far, far * factor))
        some = Population.join([regnets_between(*ring, **space, w_m_step=20 * W_M_STEP) for ring in rings])
        if len(some):
            reach = float(np.exp(_distance(some.macs, macs).min()))
            found = Population.join([some, regnets_between(macs / reach, macs * reach, **space)])
            distance = _distance(found.macs, macs)
            return found.take(np.nonzero(distance == distance.min())[0])
        near, far = near / factor, far * factor
    return Population.empty()


def _distance(found: Int, macs: float) -> Float:
    distance: Float = np.abs(np.log(found / macs))
    return distance


def _extent(
    *,
    family: str,
    bounds: Bounds | None = None,
    resolution: int = REFERENCE_RESOLUTION,
    stem_stride: int = 2,
    classes: int = 1000,
) -> tuple[float, float]:
    """Return MACs that no network of the space is below or above (bounds on complexity left aside)."""
    bounds = bounds or Bounds()
    ends = []
    for w_0, w_m in zip(bounds.w_0 or (QUANTUM, MOST_W_0), bounds.w_m, strict=True):
        raw = level_widths(max(QUANTUM, w_0), w_m, np.arange(STAGES))
        widths, groups = fit_groups(raw[None, None], bounds.group_widths()[:, None, None])
        line = _Linear.of(widths, groups, SE_RATIO if family == "y" else 0.0, resolution, stem_stride, classes)
        ends.append(line.range(bounds.d))
    return float(ends[0][0].min()) / 2, float(ends[1][1].max()) * 2  # fitting to groups is not quite monotone


@dataclass(frozen=True)
class _Cells:
    """Cells of (w_m, r), ``(w_m, cell)``, padded to one length a w_m: its costs broadcast to them without a gather.

    ``more`` is the depth less one of the first three stages, ``(3, w_m, cell)``; ``shallowest`` and ``deepest`` are
    what the last stage may be, less one; r is within low to high; ``real`` tells cells from padding.
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
class _Linear:
    """Costs as ``base + sum over stages of (depth - 1) * more``; arrays are ``(g, w_m)`` or, of one row, ``(w_m,)``."""

    base: Cost
    more: tuple[Cost, ...]

    @classmethod
    def of(cls, widths: Int, groups: Int, se_ratio: float, resolution: int, stem_stride: int, classes: int) -> _Linear:
        sides = stage_resolutions(resolution, stem_stride, STAGES)
        base = stem_cost(resolution, stem_stride) + head_cost(widths[..., -1], classes)
        more = []
        before = np.full(widths.shape[:-1], STEM_WIDTH, dtype=np.int64)
        for i in range(STAGES):
            w, g = widths[..., i], groups[..., i]
            base = base + block_cost(
                before, w, w, g, side=sides[i + 1], side_in=sides[i], first=True, se_ratio=se_ratio
            )
            more.append(block_cost(w, w, w, g, side=sides[i + 1], first=False, se_ratio=se_ratio))
            before = w
        return cls(base, tuple(more))

    def row(self, i: int) -> _Linear:
        return _Linear(Cost(*(v[i] for v in self.base)), tuple(Cost(*(v[i] for v in m)) for m in self.more))

    def range(self, d: tuple[int, int]) -> tuple[Int, Int]:
        """Return bounds on the MACs of any network with these widths and ``d`` blocks."""
        each = np.stack([cost.macs for cost in self.more])
        return self.base.macs + (d[0] - STAGES) * each.min(axis=0), self.base.macs + (d[1] - STAGES) * each.max(axis=0)

    def total(self, row: Int, depths: Int) -> Cost:
        total = Cost(*(value[row] for value in self.base))
        for i in range(STAGES):
            total = total + Cost(*(value[row] for value in self.more[i])).times(depths[:, i] - 1)
        return total


@dataclass(frozen=True)
class _Row:
    """All w_m of one w_0 and g: fitted widths and group widths ``(w_m, stage)``, costs here and at 224 pixels."""

    w_0: int
    g: int
    widths: Int
    groups: Int
    here: _Linear
    reference: _Linear


def _solve(
    cells: _Cells, span: slice, usable: NDArray[np.bool_], line: _Linear, lowest: float, highest: float
) -> tuple[Int, Int, Int]:
    """Return the row, the cell and the depths ``(n, stage)`` of all networks near the budget, w_m being in ``span``.

    Counted in blocks of the last stage and in float32, which is fast and good to 1e-4 of a block or better: the result
    is that much wider than the budget, to which the caller holds the exact integers.
    """
    per_block = 1.0 / line.more[-1].macs[span, None]
    first = (line.base.macs[span, None] * per_block).astype(np.float32)
    for i in range(STAGES - 1):
        first = first + cells.more[i, span] * (line.more[i].macs[span, None] * per_block).astype(np.float32)
    least = np.maximum(np.ceil((lowest * per_block - 1e-3).astype(np.float32) - first), cells.shallowest[span])
    most = np.minimum(np.floor((highest * per_block + 1e-3).astype(np.float32) - first), cells.deepest[span])
    meets = np.nonzero((most >= least) & usable)
    fewest = least[meets].astype(np.int64)
    count = most[meets].astype(np.int64) - fewest + 1
    hit = np.repeat(np.arange(len(count)), count)
    last = 1 + fewest[hit] + np.arange(len(hit)) - np.repeat(np.cumsum(count) - count, count)
    row, cell = meets[0][hit] + span.start, meets[1][hit]
    return row, cell, np.stack([*(1 + cells.more[:, row, cell].astype(np.int64)), last], axis=1)


def _within(
    of: _Row, row: Int, cell: Int, depths: Int, cells: _Cells, w_m: Float, bounds: Bounds, lowest: float, highest: float
) -> Population:
    """Return those of the solutions that meet budget and bounds to the unit."""
    total = of.here.total(row, depths)
    there = total if of.reference is of.here else of.reference.total(row, depths)
    giga = there.macs / 1e9
    keep = (total.macs >= lowest) & (total.macs <= highest)
    if bounds.parameters is not None:
        keep &= there.parameters < (bounds.parameters[0] + bounds.parameters[1] * giga) * 1e6
    if bounds.activations is not None:
        keep &= there.activations < bounds.activations * np.sqrt(giga) * 1e6
    large = there.macs > LARGE_MACS
    if bounds.w_0 is None:
        keep &= large | (of.w_0 <= SMALL_W_0)
    if bounds.g is None:
        keep &= large | (of.g <= SMALL_G)
    if bounds.g_multiple > 1:
        keep &= (of.groups[row] % bounds.g_multiple == 0).all(axis=1)
    row, cell, depths = row[keep], cell[keep], depths[keep]
    return Population(
        d=depths.sum(axis=1),
        w_0=np.full(len(row), of.w_0),
        w_m=w_m[row],
        g=np.full(len(row), of.g),
        w_a_low=np.maximum(cells.low[row, cell] * of.w_0, bounds.w_a[0]),
        w_a_high=np.minimum(cells.high[row, cell] * of.w_0, bounds.w_a[1]),
        depths=depths,
        widths=of.widths[row],
        group_widths=of.groups[row],
        macs=total.macs[keep],
        parameters=total.parameters[keep],
        activations=total.activations[keep],
        reference_macs=there.macs[keep],
    )
