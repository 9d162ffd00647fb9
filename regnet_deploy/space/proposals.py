"""Draws from a design space before anything is counted: depths, widths, bottlenecks and groups as arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.space.ranges import Choice
from regnet_deploy.space.regnet import level_widths
from regnet_deploy.space.spaces import AnyNetSpace, RegNetSpace, Space, Stages

Int = NDArray[np.int64]
Float = NDArray[np.float64]


@dataclass(frozen=True)
class Proposals:
    """Draws before widths are fitted to groups.

    Arrays are as in :class:`regnet_deploy.space.sampling.DrawnNetworks`, but ``group_widths`` as asked for,
    and ``columns`` with
    what is not free too.
    """

    depths: Int
    widths: Int
    group_widths: Int
    bottlenecks: Float
    columns: dict[str, Float]


def propose(space: Space, rng: np.random.Generator, draws: int) -> Proposals:
    """Draw so often; what is not a network of the space, whatever its complexity, is left out."""
    return _anynets(space, rng, draws) if isinstance(space, AnyNetSpace) else _regnets(space, rng, draws)


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


def _regnets(space: RegNetSpace, rng: np.random.Generator, draws: int) -> Proposals:
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
    return Proposals(depths[kept], widths[kept], groups, np.broadcast_to(drawn["b"][:, None], shape), drawn)


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
