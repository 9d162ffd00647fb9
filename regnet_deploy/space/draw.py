"""Networks drawn from a design space within a band of MACs, many at once, the same ones for the same seed.

Draws are made in chunks, each with a random stream of its own, and rejected where the space, its constraints or the
band say so: what is left follows the distribution of the space. More networks of one seed are the same ones and more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.errors import UsageError
from regnet_deploy.space.complexity import complexity
from regnet_deploy.space.constraint import names_in, satisfied
from regnet_deploy.space.network import REFERENCE_CLASSES, REFERENCE_RESOLUTION, SE_RATIO, Network, default_stem_stride
from regnet_deploy.space.ranges import Choice
from regnet_deploy.space.regnet import fit_groups, level_widths
from regnet_deploy.space.spaces import REFERENCE, AnyNetSpace, RegNetSpace, Space, Stages

Int = NDArray[np.int64]
Float = NDArray[np.float64]

#: Draws of one chunk; part of what a seed means.
CHUNK = 1 << 14
#: Draws after which a space counts as having no more networks in the band, unless one was found among the last.
PATIENCE = 2_000_000
#: Wider than any network: a group width that means no groups.
_NO_GROUPS = 1 << 30


@dataclass(frozen=True)
class Drawn:
    """Networks drawn from a space, one row each.

    Attributes:
        depths: blocks, ``(n, stages)``; ``widths``, ``group_widths`` and ``bottlenecks`` (ratios) alike.
        macs: MACs at the resolution of the band, ``(n,)``; ``parameters`` and ``activations`` alike.
        columns: the parameters that were drawn and are free, by the paper's symbols, ``(n,)`` each.
    """

    depths: Int
    widths: Int
    group_widths: Int
    bottlenecks: Float
    macs: Int
    parameters: Int
    activations: Int
    columns: dict[str, Float]

    def __len__(self) -> int:
        """Number of networks."""
        return len(self.macs)

    def take(self, rows: NDArray[np.bool_] | Int | slice) -> Drawn:
        """Return the rows that a mask, an index or a slice picks."""
        columns = {name: column[rows] for name, column in self.columns.items()}
        arrays = {each.name: getattr(self, each.name)[rows] for each in fields(self) if each.name != "columns"}
        return Drawn(**arrays, columns=columns)

    def keys(self) -> list[bytes]:
        """Return what is equal for equal networks and for them only, one a row."""
        table = np.concatenate([self.depths, self.widths, self.group_widths, self.bottlenecks], axis=1)
        return [row.tobytes() for row in table]

    @staticmethod
    def join(pieces: list[Drawn]) -> Drawn:
        """Stack one or more pieces."""
        arrays = {
            each.name: np.concatenate([getattr(piece, each.name) for piece in pieces])
            for each in fields(Drawn)
            if each.name != "columns"
        }
        names = pieces[0].columns
        return Drawn(**arrays, columns={name: np.concatenate([p.columns[name] for p in pieces]) for name in names})


@dataclass(frozen=True)
class Band:
    """Where MACs must lie, and for which input and output they are counted.

    Attributes:
        lowest: fewest MACs.
        highest: most MACs.
        resolution: pixels a side of the image.
        classes: outputs.
        stem_stride: 1 or 2; None is 1 for images below 96 pixels.
    """

    lowest: float
    highest: float
    resolution: int = 224
    classes: int = 1000
    stem_stride: int | None = None

    def __post_init__(self) -> None:
        """Refuse an empty band.

        Raises:
            UsageError: with the band.
        """
        if not 0 <= self.lowest <= self.highest < np.inf:
            raise UsageError(f"a band of MACs must go from low to high, got {self.lowest:g} to {self.highest:g}")
        if self.resolution < 8 or self.classes < 1:
            raise UsageError(f"resolution must be 8 or more and classes 1 or more, got {self}")
        if self.stem_stride not in (None, 1, 2):
            raise UsageError(f"stem stride must be 1 or 2, got {self.stem_stride}")

    @property
    def stride(self) -> int:
        """Stride of the stem."""
        return default_stem_stride(self.resolution) if self.stem_stride is None else self.stem_stride


def networks_of(space: Space, drawn: Drawn, stem_stride: int) -> list[Network]:
    """Return the drawn networks."""
    rows = zip(
        drawn.depths.tolist(),
        drawn.widths.tolist(),
        drawn.group_widths.tolist(),
        drawn.bottlenecks.tolist(),
        strict=True,
    )
    return [
        Network(
            tuple(depths),
            tuple(widths),
            tuple(group_widths),
            tuple(bottlenecks),
            se_ratio=SE_RATIO if space.block == "y" else 0.0,
            stem_stride=stem_stride,
            block=_kind(space),
        )
        for depths, widths, group_widths, bottlenecks in rows
    ]


def draw_networks(
    space: Space, n: int, band: Band, seed: int = 0, advance: Callable[[int, int], None] = lambda done, total: None
) -> Drawn:
    """Return ``n`` distinct networks of a space within a band of MACs, in the order in which they are drawn.

    Args:
        space: what to draw from.
        n: how many; those of a smaller n are the first of a larger one.
        band: where MACs must lie.
        seed: of the random streams.
        advance: called with how many there are and how many there are to be.

    Raises:
        UsageError: the space holds fewer in the band, as far as millions of draws can tell.
    """
    if n < 1 or seed < 0:
        raise UsageError(f"the number of networks must be 1 or more and the seed 0 or more, got {n} and {seed}")
    pieces: list[Drawn] = []
    known: set[bytes] = set()
    since_last = draws = 0
    for chunk in chunks(space, band, seed):
        draws += CHUNK
        since_last += CHUNK
        new = []
        for row, key in enumerate(chunk.keys()):
            if key not in known and len(known) < n:
                known.add(key)
                new.append(row)
        if new:
            since_last = 0
            pieces.append(chunk.take(np.array(new)))
            advance(len(known), n)
        if len(known) == n:
            return Drawn.join(pieces)
        if since_last >= PATIENCE:
            break
    raise UsageError(
        f"{space.name} has {len(known)} different networks from {band.lowest / 1e6:g} to {band.highest / 1e6:g} MMACs "
        f"at {band.resolution} pixels in {draws:,} draws, and {n} are wanted: widen the band or the space"
    )


def chunks(space: Space, band: Band, seed: int) -> Iterator[Drawn]:
    """Yield, without end, the networks in the band of chunk after chunk of draws.

    Raises:
        UsageError: the space holds networks too large to be counted in 64 bits.
    """
    _check_countable(space, band)
    number = 0
    while True:
        yield within(space, propose(space, np.random.default_rng((seed, number)), CHUNK), band)
        number += 1


def within(space: Space, proposed: Proposed, band: Band) -> Drawn:
    """Fit widths to groups, count, and keep what lies in the band and satisfies the space's constraints."""
    if space.block in ("v", "vr"):
        widths = groups = proposed.widths
    else:
        asked = np.full_like(proposed.widths, _NO_GROUPS) if space.block == "r" else proposed.group_widths
        widths, groups = fit_groups(proposed.widths, asked, proposed.bottlenecks)
    cost = complexity(
        proposed.depths,
        widths,
        groups,
        proposed.bottlenecks,
        resolution=band.resolution,
        se_ratio=SE_RATIO if space.block == "y" else 0.0,
        stem_stride=band.stride,
        classes=band.classes,
        block=_kind(space),
    ).total
    drawn = Drawn(proposed.depths, widths, groups, proposed.bottlenecks, *cost, proposed.columns)
    drawn = drawn.take(np.flatnonzero((drawn.macs >= band.lowest) & (drawn.macs <= band.highest)))
    if space.where:
        columns = known_columns(drawn)
        if any(name.startswith(REFERENCE) for line in space.where for name in names_in(line)):
            columns |= _reference_columns(space, drawn)
        drawn = drawn.take(np.logical_and.reduce([satisfied(line, columns) for line in space.where]))
    free = space.symbols
    return replace(drawn, columns={name: column for name, column in drawn.columns.items() if free[name]})


def known_columns(drawn: Drawn) -> dict[str, NDArray[np.generic]]:
    """Return every column that a constraint may speak of: what was drawn, the stages, and the complexity.

    A width or group width of a stage is the one that was drawn for it where there is one, else the one that was fitted.
    """
    stages = {
        f"{symbol}_{i + 1}": values[:, i]
        for symbol, values in (("d", drawn.depths), ("w", drawn.widths), ("b", drawn.bottlenecks))
        for i in range(values.shape[1])
    }
    stages |= {f"g_{i + 1}": drawn.group_widths[:, i] for i in range(drawn.group_widths.shape[1])}
    cost = {"macs": drawn.macs, "parameters": drawn.parameters, "activations": drawn.activations}
    return {"d": drawn.depths.sum(axis=1), **stages, **drawn.columns, **cost}


def _reference_columns(space: Space, drawn: Drawn) -> dict[str, NDArray[np.generic]]:
    """Return the costs at 224 pixels with a stem of stride 2 and 1,000 classes, which published bounds are about."""
    cost = complexity(
        drawn.depths,
        drawn.widths,
        drawn.group_widths,
        drawn.bottlenecks,
        resolution=REFERENCE_RESOLUTION,
        se_ratio=SE_RATIO if space.block == "y" else 0.0,
        classes=REFERENCE_CLASSES,
        block=_kind(space),
    ).total
    return {f"{REFERENCE}{name}": values for name, values in cost._asdict().items()}


@dataclass(frozen=True)
class Proposed:
    """Draws before widths are fitted to groups.

    Arrays are as in :class:`Drawn`, but ``group_widths`` as asked for, and ``columns`` with what is not free too.
    """

    depths: Int
    widths: Int
    group_widths: Int
    bottlenecks: Float
    columns: dict[str, Float]


def propose(space: Space, rng: np.random.Generator, draws: int) -> Proposed:
    """Draw so often; what is not a network of the space, whatever its complexity, is left out."""
    return _anynets(space, rng, draws) if isinstance(space, AnyNetSpace) else _regnets(space, rng, draws)


def _anynets(space: AnyNetSpace, rng: np.random.Generator, draws: int) -> Proposed:
    keep = np.ones(draws, dtype=bool)
    values: dict[str, Float] = {}
    for name, part in space.parts().items():
        values[name], fits = _stages(part, space.stages, rng, draws)
        keep &= fits
    columns: dict[str, Float] = {}
    for symbol, name in (("d", "depth"), ("w", "width"), ("b", "bottleneck"), ("g", "group_width")):
        values[name] = values[name][keep]
        if space.parts()[name].across != "same":
            columns |= {f"{symbol}_{i + 1}": column for i, column in enumerate(values[name].T)}
        else:
            columns[symbol] = values[name].sum(axis=1) if symbol == "d" else values[name][:, 0]
    depths, widths, groups = (values[name].astype(np.int64) for name in ("depth", "width", "group_width"))
    return Proposed(depths, widths, groups, values["bottleneck"], columns)


def _stages(part: Stages, stages: int, rng: np.random.Generator, draws: int) -> tuple[Float, NDArray[np.bool_]]:
    """Draw values ``(draws, stages)``, and tell which rows are in order.

    Stages in order are distributed as free stages that happen to be in order. Where they share a range they are drawn
    so; where every stage has a range of its own, what is out of order is rejected.
    """
    if part.across == "same":
        return np.repeat(part.choices[0].draw(rng, (draws, 1)), stages, axis=1), np.ones(draws, dtype=bool)
    if len(part.choices) == 1:
        if part.across == "free":
            values = part.choices[0].draw(rng, (draws, stages))
        else:
            rising = _rising(part.choices[0], stages, rng, draws)
            values = rising if part.across == "rising" else rising[:, ::-1]
        return values, np.ones(draws, dtype=bool)
    values = np.stack([choice.draw(rng, (draws,)) for choice in part.choices], axis=1)
    rises = np.diff(values, axis=1)
    fits = {"free": rises == rises, "rising": rises >= 0, "falling": rises <= 0}[part.across]
    return values, fits.all(axis=1)


def _rising(choice: Choice, stages: int, rng: np.random.Generator, draws: int) -> Float:
    """Draw ``(draws, stages)`` as independent draws are distributed of which no stage is less than the one before.

    Sorting independent draws would not do: of values that can be equal, the same ones in any order become the same row,
    so that rows of different values would come up to ``stages!`` times too often.
    """
    values, shares = choice.shares()
    # From the last stage to the first: how likely each value or a greater one is, with stages in order behind it.
    tails = [np.ones(len(values))]
    for _ in range(stages):
        tails.append(np.cumsum((shares * tails[-1])[::-1])[::-1])
    at = np.zeros((draws, stages), dtype=np.int64)
    before = np.zeros(draws, dtype=np.int64)
    for stage, tail in enumerate(tails[:0:-1]):
        drawn = (1.0 - rng.random(draws)) * tail[before]
        before = at[:, stage] = np.searchsorted(-tail, -drawn, side="right") - 1
    result: Float = values[at]
    return result


def _regnets(space: RegNetSpace, rng: np.random.Generator, draws: int) -> Proposed:
    """Draw lines and keep those that quantize to the stages asked for."""

    def column(choice: Choice) -> Float:
        return choice.draw(rng, (draws,))

    stages = space.stages
    drawn = {"d": column(space.d), "w_0": column(space.w_0)}
    drawn["w_a"] = drawn["w_0"] if isinstance(space.w_a, str) else column(space.w_a)
    drawn |= {"w_m": column(space.w_m), "b": column(space.bottleneck), "g": column(space.group_width)}
    drawn = _rows(drawn, _likely(drawn["d"], drawn["w_0"], drawn["w_a"], drawn["w_m"], stages))
    depths = _line_depths(drawn["d"], drawn["w_0"], drawn["w_a"], drawn["w_m"], stages)
    kept = np.flatnonzero((depths > 0).all(axis=1))
    drawn, depths = _rows(drawn, kept), depths[kept]
    widths = level_widths(drawn["w_0"][:, None], drawn["w_m"][:, None], np.arange(stages))
    kept = np.flatnonzero((np.diff(widths, axis=1) > 0).all(axis=1))  # rounding can make two levels one
    drawn, shape = _rows(drawn, kept), (len(kept), stages)
    groups = np.broadcast_to(drawn["g"].astype(np.int64)[:, None], shape)
    return Proposed(depths[kept], widths[kept], groups, np.broadcast_to(drawn["b"][:, None], shape), drawn)


def _likely(d: Float, w_0: Float, w_a: Float, w_m: Float, stages: int) -> Int:
    """Return the lines that may have so many levels, by where the last level and the one after it begin.

    Most lines have fewer or more, and this is the quickest way to be rid of them. A block to spare on either side
    leaves the exact answer to :func:`_line_depths`.
    """
    power = 1 / np.sqrt(w_m)  # w_m^(k - 1/2) of level 0, which begins before the line does
    for _ in range(stages - 1):
        power *= w_m
    with np.errstate(divide="ignore", over="ignore"):  # a flat line has one level
        slope = w_0 / w_a
        return np.flatnonzero(((power - 1) * slope < d) & ((power * w_m - 1) * slope > d - 2))


def _line_depths(d: Float, w_0: Float, w_a: Float, w_m: Float, stages: int) -> Int:
    """Return how many blocks of each line are on each of its first levels, ``(n, stages)``; none where others are left.

    Level k of the line begins at block ceil((w_m^(k - 1/2) - 1) w_0 / w_a): the stages follow without a loop over the
    blocks. Where rounding could decide, the level of the block in question is computed as by
    :func:`regnet_deploy.space.regnet.block_levels`.
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


def _rows(columns: dict[str, Float], rows: Int) -> dict[str, Float]:
    return {name: column[rows] for name, column in columns.items()}


def _check_countable(space: Space, band: Band) -> None:
    """Refuse a space whose largest network, were it as wide throughout, would not fit 64 bits."""
    if isinstance(space, AnyNetSpace):
        depth = sum(space.depth.choice(i).high for i in range(space.stages))
        width = max(choice.high for choice in space.width.choices)
        least = min(choice.low for choice in space.bottleneck.choices)
        most = max(choice.high for choice in space.bottleneck.choices)
        group = max(choice.high for choice in space.group_width.choices)
    else:
        depth, least, most, group = space.d.high, space.bottleneck.low, space.bottleneck.high, space.group_width.high
        slope = space.w_0.high if isinstance(space.w_a, str) else space.w_a.high
        width = (space.w_0.high + slope * depth) * space.w_m.high**0.5
    width = 1.5 * width + most + group  # fitting to groups can widen
    inner = width / min(1, least)
    side = band.resolution / band.stride
    # Of each block: two 1x1, a 3x3 of as many channels per group at most, a projection, a classifier.
    if depth * side**2 * inner * (2 * width + 9 * inner) + width * (width * side**2 + band.classes) >= 2.0**62:
        raise UsageError(f"{space.name} at {band.resolution} pixels holds networks too large to count: narrow it")


def _kind(space: Space) -> str:
    return space.block if space.block in ("v", "vr") else "bottleneck"
