"""A smaller space from a space: ranges narrowed to where the best networks lie, and relations between stages added."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from regnet_deploy.errors import UsageError, did_you_mean
from regnet_deploy.space.ranges import Choice, Range, Values
from regnet_deploy.space.spaces import SYMBOLS, AnyNetSpace, RegNetSpace, Space, Stages

Interval = tuple[float, float]


def narrow_space(space: Space, intervals: Mapping[str, Interval], name: str) -> Space:
    """Return the space with each range cut to an interval.

    Args:
        space: the space.
        intervals: least and greatest value by column (``w_m``, ``b``, or by stage ``d_1``); others stay as they are.
        name: of the new space.

    Raises:
        UsageError: the space does not draw such a column.
    """
    left = dict(intervals)

    def cut(choice: Choice, column: str) -> Choice:
        return choice.within(*left.pop(column)) if column in left else choice

    if isinstance(space, RegNetSpace):
        parts: dict[str, Any] = {column: cut(choice, column) for column, choice in space.parts().items()}
        parts["bottleneck"], parts["group_width"] = parts.pop("b"), parts.pop("g")
        made: Space = replace(space, name=name, **parts)
    else:
        stages: dict[str, Any] = {}
        for part, symbol in SYMBOLS.items():
            given = space.parts()[part]
            if given.across == "same":
                if part == "depth" and symbol in left:  # d counts the blocks of all stages
                    low, high = left[symbol]
                    left[symbol] = low / space.stages, high / space.stages
                stages[part] = Stages((cut(given.choices[0], symbol),), "same")
                continue
            choices = tuple(cut(given.choice(i), f"{symbol}_{i + 1}") for i in range(space.stages))
            stages[part] = Stages(choices[:1] if len(set(choices)) == 1 else choices, given.across)
        made = replace(space, name=name, **stages)
    if left:
        raise UsageError(f"{space.name} does not draw {', '.join(left)}: it cannot be narrowed there")
    return made


def with_relation(space: Space, part: str, across: str) -> Space:
    """Return a space of AnyNets whose stages relate in one thing as ``across`` says: the paper's step from A to B, ...

    Where stages have ranges of their own and are to have the same value, it may be anything from the least of all to
    the greatest of all.

    Raises:
        UsageError: not a space of AnyNets, or no such thing or relation.
    """
    if not isinstance(space, AnyNetSpace):
        raise UsageError(f"{space.name} is a space of RegNets: its line relates the stages already")
    if part not in SYMBOLS:
        raise UsageError(f"stages have {', '.join(SYMBOLS)}, not {part!r}{did_you_mean(part, SYMBOLS)}")
    given = space.parts()[part]
    choices = given.choices if across != "same" else (_hull(given.choices),)
    changed: dict[str, Any] = {part: Stages(choices, across)}
    return replace(space, **changed)


def _hull(choices: tuple[Choice, ...]) -> Choice:
    if len(choices) == 1:
        return choices[0]
    ranges = [choice for choice in choices if isinstance(choice, Range)]
    if len(ranges) == len(choices):
        return replace(ranges[0], low=min(each.low for each in ranges), high=max(each.high for each in ranges))
    values = {value for each in choices if isinstance(each, Values) for value in each.values}
    if ranges:
        raise UsageError("stages with lists and stages with ranges have no range in common: write it into the file")
    return Values(tuple(sorted(values)))
