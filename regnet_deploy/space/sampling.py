"""Draws networks from a design space within a band of MACs, reproducibly, and many at a time.

Networks are drawn in chunks, each with its own random stream, and rejected if they are outside the space, its
constraints or the band; the accepted ones follow the distribution of the space. The networks of a smaller ``n`` are the
first ones of a larger ``n`` with the same seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.errors import UsageError
from regnet_deploy.progress import NoProgress, Progress
from regnet_deploy.space.complexity import NetworkConfig, complexity
from regnet_deploy.space.constraint import names_in, satisfied
from regnet_deploy.space.network import REFERENCE_CLASSES, REFERENCE_RESOLUTION, SE_RATIO, Network, default_stem_stride
from regnet_deploy.space.population import Table
from regnet_deploy.space.ranges import Domain
from regnet_deploy.space.regnet import fit_groups, level_widths, line_depths, may_have_stages
from regnet_deploy.space.spaces import REFERENCE, AnyNetSpace, RegNetSpace, Space, Stages

Int = NDArray[np.int64]
Float = NDArray[np.float64]

#: Draws of one chunk; another size gives other networks for the same seed.
CHUNK = 1 << 14
#: After so many draws without a new network, the space counts as exhausted in the band.
MAX_DRAWS_WITHOUT_NEW = 2_000_000
#: A group width larger than any width: no groups.
_NO_GROUPS = 1 << 30


@dataclass(frozen=True)
class DrawnNetworks(Table):
    """Networks that were drawn from a space, one row each.

    Attributes:
        depths: number of blocks, ``(n, stages)``, as are ``widths``, ``group_widths`` and ``bottlenecks`` (ratios).
        macs: MACs at the resolution of the band, ``(n,)``, as are ``parameters`` and ``activations``.
        columns: the free parameters that were drawn, by the symbols of the paper, ``(n,)`` each.
    """

    depths: Int
    widths: Int
    group_widths: Int
    bottlenecks: Float
    macs: Int
    parameters: Int
    activations: Int
    columns: dict[str, Float]

    def keys(self) -> list[bytes]:
        """Return one key for each row; keys are equal if and only if the networks are equal."""
        table = np.concatenate([self.depths, self.widths, self.group_widths, self.bottlenecks], axis=1)
        return [row.tobytes() for row in table]


@dataclass(frozen=True)
class Proposals:
    """Drawn networks before their widths are fitted to the group widths.

    The columns are those of :class:`DrawnNetworks`, but ``group_widths`` are the requested ones, and ``columns``
    include the parameters that are not free.
    """

    depths: Int
    widths: Int
    group_widths: Int
    bottlenecks: Float
    columns: dict[str, Float]


@dataclass(frozen=True)
class Band:
    """A range of MACs, and the input and output for which they are counted.

    Attributes:
        lowest: smallest number of MACs.
        highest: largest number of MACs.
        resolution: width and height of the image in pixels.
        classes: number of classes.
        stem_stride: 1 or 2; None means 1 below 96 pixels, else 2.
    """

    lowest: float
    highest: float
    resolution: int = 224
    classes: int = 1000
    stem_stride: int | None = None

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UsageError: a value is not valid.
        """
        if not 0 <= self.lowest <= self.highest < np.inf:
            raise UsageError(
                f"a band of MACs must go from low to high, got {self.lowest / 1e6:g} to {self.highest / 1e6:g} million"
            )
        if self.resolution < 8 or self.classes < 1:
            raise UsageError(f"resolution must be 8 or more and classes 1 or more, got {self}")
        if self.stem_stride not in (None, 1, 2):
            raise UsageError(f"stem stride must be 1 or 2, got {self.stem_stride}")

    @property
    def stride(self) -> int:
        """Stride of the stem."""
        return default_stem_stride(self.resolution) if self.stem_stride is None else self.stem_stride


def networks_of(space: Space, drawn: DrawnNetworks, stem_stride: int) -> list[Network]:
    """Return the drawn networks as records."""
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
            block=_network_block(space),
        )
        for depths, widths, group_widths, bottlenecks in rows
    ]


def draw_networks(space: Space, n: int, band: Band, seed: int = 0, progress: Progress | None = None) -> DrawnNetworks:
    """Return ``n`` distinct networks of a space within a band of MACs, in the order of the draws.

    Args:
        space: the space to draw from.
        n: number of networks.
        band: the range of MACs.
        seed: seed of the random streams.
        progress: receives the number of networks that are found.

    Raises:
        UsageError: millions of draws give fewer networks in the band.
    """
    if n < 1 or seed < 0:
        raise UsageError(f"the number of networks must be 1 or more and the seed 0 or more, got {n} and {seed}")
    progress = progress or NoProgress()
    progress.step("drawing networks", n)
    pieces: list[DrawnNetworks] = []
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
            progress.update(len(known), n)
        if len(known) == n:
            return DrawnNetworks.join(pieces)
        if since_last >= MAX_DRAWS_WITHOUT_NEW:
            break
    raise UsageError(
        f"{space.name} has {len(known)} different networks from {band.lowest / 1e6:g} to {band.highest / 1e6:g} MMACs "
        f"at {band.resolution} pixels in {draws:,} draws, but {n} are requested: widen the band or the space"
    )


def chunks(space: Space, band: Band, seed: int) -> Iterator[DrawnNetworks]:
    """Yield the accepted networks of each chunk of draws, without end.

    Raises:
        UsageError: the space has networks whose MACs do not fit into 64 bits.
    """
    _check_countable(space, band)
    number = 0
    while True:
        yield networks_in_band(space, propose(space, np.random.default_rng((seed, number)), CHUNK), band)
        number += 1


def propose(space: Space, rng: np.random.Generator, draws: int) -> Proposals:
    """Draw networks and reject those that are not in the space, whatever their complexity."""
    return _anynets(space, rng, draws) if isinstance(space, AnyNetSpace) else _regnets(space, rng, draws)


def networks_in_band(space: Space, proposed: Proposals, band: Band) -> DrawnNetworks:
    """Fit widths to group widths, count costs, and keep the networks in the band that satisfy the constraints."""
    if space.block in ("v", "vr"):
        widths = groups = proposed.widths
    else:
        requested = np.full_like(proposed.widths, _NO_GROUPS) if space.block == "r" else proposed.group_widths
        widths, groups = fit_groups(proposed.widths, requested, proposed.bottlenecks)
    cost = complexity(
        proposed.depths,
        widths,
        groups,
        proposed.bottlenecks,
        _network_config(space, band.resolution, band.classes, band.stride),
    ).total
    drawn = DrawnNetworks(proposed.depths, widths, groups, proposed.bottlenecks, *cost, proposed.columns)
    drawn = drawn.take(np.flatnonzero((drawn.macs >= band.lowest) & (drawn.macs <= band.highest)))
    if space.where:
        columns = known_columns(drawn)
        if any(name.startswith(REFERENCE) for line in space.where for name in names_in(line)):
            columns |= _reference_columns(space, drawn)
        drawn = drawn.take(np.logical_and.reduce([satisfied(line, columns) for line in space.where]))
    free = space.symbols
    return replace(drawn, columns={name: column for name, column in drawn.columns.items() if free[name]})


def known_columns(drawn: DrawnNetworks) -> dict[str, NDArray[np.generic]]:
    """Return every column that a constraint can refer to: drawn parameters, stages and costs.

    The width or group width of a stage is the drawn one if it was drawn, else the fitted one.
    """
    stages = {
        f"{symbol}_{i + 1}": values[:, i]
        for symbol, values in (("d", drawn.depths), ("w", drawn.widths), ("b", drawn.bottlenecks))
        for i in range(values.shape[1])
    }
    stages |= {f"g_{i + 1}": drawn.group_widths[:, i] for i in range(drawn.group_widths.shape[1])}
    cost = {"macs": drawn.macs, "parameters": drawn.parameters, "activations": drawn.activations}
    return {"d": drawn.depths.sum(axis=1), **stages, **drawn.columns, **cost}


def _anynets(space: AnyNetSpace, rng: np.random.Generator, draws: int) -> Proposals:
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
    return Proposals(depths, widths, groups, values["bottleneck"], columns)


def _stages(part: Stages, stages: int, rng: np.random.Generator, draws: int) -> tuple[Float, NDArray[np.bool_]]:
    """Draw values ``(draws, stages)``, and return which rows satisfy the relation between the stages.

    Ordered stages have the distribution of free stages, conditional on their order. If the stages share a range,
    ordered values are drawn directly; if each stage has its own range, rows that are not in order are rejected.
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


def _rising(choice: Domain, stages: int, rng: np.random.Generator, draws: int) -> Float:
    """Draw ``(draws, stages)`` from the distribution of independent draws, conditional on non-decreasing order.

    Sorted independent draws have another distribution: all orders of the same values become one row, so that rows of
    distinct values would be up to ``stages!`` times too frequent.
    """
    values, shares = choice.probabilities()
    # From the last stage to the first: probability of each value or a larger one, followed by ordered stages.
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


def _regnets(space: RegNetSpace, rng: np.random.Generator, draws: int) -> Proposals:
    """Draw lines and keep those that quantize to the number of stages of the space."""

    def column(choice: Domain) -> Float:
        return choice.draw(rng, (draws,))

    stages = space.stages
    drawn = {"d": column(space.d), "w_0": column(space.w_0)}
    drawn["w_a"] = drawn["w_0"] if isinstance(space.w_a, str) else column(space.w_a)
    drawn |= {"w_m": column(space.w_m), "b": column(space.bottleneck), "g": column(space.group_width)}
    drawn = _rows(drawn, may_have_stages(drawn["d"], drawn["w_0"], drawn["w_a"], drawn["w_m"], stages))
    depths = line_depths(drawn["d"], drawn["w_0"], drawn["w_a"], drawn["w_m"], stages)
    kept = np.flatnonzero((depths > 0).all(axis=1))
    drawn, depths = _rows(drawn, kept), depths[kept]
    widths = level_widths(drawn["w_0"][:, None], drawn["w_m"][:, None], np.arange(stages))
    kept = np.flatnonzero((np.diff(widths, axis=1) > 0).all(axis=1))  # rounding can make two levels one
    drawn, shape = _rows(drawn, kept), (len(kept), stages)
    groups = np.broadcast_to(drawn["g"].astype(np.int64)[:, None], shape)
    return Proposals(depths[kept], widths[kept], groups, np.broadcast_to(drawn["b"][:, None], shape), drawn)


def _reference_columns(space: Space, drawn: DrawnNetworks) -> dict[str, NDArray[np.generic]]:
    """Return the costs at 224 pixels, stem stride 2 and 1,000 classes, for which published bounds are stated."""
    cost = complexity(
        drawn.depths,
        drawn.widths,
        drawn.group_widths,
        drawn.bottlenecks,
        _network_config(space, REFERENCE_RESOLUTION, REFERENCE_CLASSES, 2),
    ).total
    return {f"{REFERENCE}{name}": values for name, values in cost._asdict().items()}


def _check_countable(space: Space, band: Band) -> None:
    """Raise if an upper bound of the costs of the largest network does not fit into 64 bits."""
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
    # For each block: two 1x1 convolutions, a 3x3 without groups, a projection; and the classifier.
    if depth * side**2 * inner * (2 * width + 9 * inner) + width * (width * side**2 + band.classes) >= 2.0**62:
        raise UsageError(f"{space.name} at {band.resolution} pixels has networks too large to count: narrow it")


def _network_config(space: Space, resolution: int, classes: int, stem_stride: int) -> NetworkConfig:
    se_ratio = SE_RATIO if space.block == "y" else 0.0
    return NetworkConfig(resolution, classes, stem_stride, se_ratio=se_ratio, block=_network_block(space))


def _network_block(space: Space) -> str:
    return space.block if space.block in ("v", "vr") else "bottleneck"


def _rows(columns: dict[str, Float], rows: Int) -> dict[str, Float]:
    return {name: column[rows] for name, column in columns.items()}
