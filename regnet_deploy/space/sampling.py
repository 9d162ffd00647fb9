"""Networks drawn from a design space within a band of MACs, many at once, the same ones for the same seed.

Draws are made in chunks, each with a random stream of its own, and rejected where the space, its constraints or the
band say so: what is left follows the distribution of the space. More networks of one seed are the same ones and more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.errors import UsageError
from regnet_deploy.progress import NoProgress, Progress
from regnet_deploy.space.complexity import complexity
from regnet_deploy.space.constraint import names_in, satisfied
from regnet_deploy.space.network import REFERENCE_CLASSES, REFERENCE_RESOLUTION, SE_RATIO, Network, default_stem_stride
from regnet_deploy.space.population import Table
from regnet_deploy.space.proposals import Proposals, propose
from regnet_deploy.space.regnet import fit_groups
from regnet_deploy.space.spaces import REFERENCE, AnyNetSpace, Space

Int = NDArray[np.int64]
Float = NDArray[np.float64]

#: Draws of one chunk; part of what a seed means.
CHUNK = 1 << 14
#: Draws after which a space counts as having no more networks in the band, unless one was found among the last.
PATIENCE = 2_000_000
#: Wider than any network: a group width that means no groups.
_NO_GROUPS = 1 << 30


@dataclass(frozen=True)
class DrawnNetworks(Table):
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

    def keys(self) -> list[bytes]:
        """Return what is equal for equal networks and for them only, one a row."""
        table = np.concatenate([self.depths, self.widths, self.group_widths, self.bottlenecks], axis=1)
        return [row.tobytes() for row in table]


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


def draw_networks(space: Space, n: int, band: Band, seed: int = 0, progress: Progress | None = None) -> DrawnNetworks:
    """Return ``n`` distinct networks of a space within a band of MACs, in the order in which they are drawn.

    Args:
        space: what to draw from.
        n: how many; those of a smaller n are the first of a larger one.
        band: where MACs must lie.
        seed: of the random streams.
        progress: receives the number of networks that are found.

    Raises:
        UsageError: the space holds fewer in the band, as far as millions of draws can tell.
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
        if since_last >= PATIENCE:
            break
    raise UsageError(
        f"{space.name} has {len(known)} different networks from {band.lowest / 1e6:g} to {band.highest / 1e6:g} MMACs "
        f"at {band.resolution} pixels in {draws:,} draws, and {n} are wanted: widen the band or the space"
    )


def chunks(space: Space, band: Band, seed: int) -> Iterator[DrawnNetworks]:
    """Yield, without end, the networks in the band of chunk after chunk of draws.

    Raises:
        UsageError: the space holds networks too large to be counted in 64 bits.
    """
    _check_countable(space, band)
    number = 0
    while True:
        yield within(space, propose(space, np.random.default_rng((seed, number)), CHUNK), band)
        number += 1


def within(space: Space, proposed: Proposals, band: Band) -> DrawnNetworks:
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


def _reference_columns(space: Space, drawn: DrawnNetworks) -> dict[str, NDArray[np.generic]]:
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
