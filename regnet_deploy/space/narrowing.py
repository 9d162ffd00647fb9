"""Narrows design spaces: restricts ranges to intervals, and adds relations between stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from regnet_deploy.errors import UsageError, did_you_mean
from regnet_deploy.space.ranges import Domain, Range, Values
from regnet_deploy.space.spaces import SYMBOLS, AnyNetSpace, RegNetSpace, Space, Stages

Interval = tuple[float, float]


def narrow_space(space: Space, intervals: Mapping[str, Interval], name: str) -> Space:
    """Return the space with ranges restricted to intervals.

    Args:
        space: the space.
        intervals: smallest and largest value by column (``w_m``, ``b``, or by stage ``d_1``); others are unchanged.
        name: name of the new space.

    Raises:
        UsageError: the space does not draw such a column.
    """
    remaining = dict(intervals)

    def cut(choice: Domain, column: str) -> Domain:
        return choice.within(*remaining.pop(column)) if column in remaining else choice

    if isinstance(space, RegNetSpace):
        parts: dict[str, Any] = {column: cut(choice, column) for column, choice in space.parts().items()}
        parts["bottleneck"], parts["group_width"] = parts.pop("b"), parts.pop("g")
        narrowed: Space = replace(space, name=name, **parts)
    else:
        stages: dict[str, Any] = {}
        for part, symbol in SYMBOLS.items():
            given = space.parts()[part]
            if given.across == "same":
                if part == "depth" and symbol in remaining:  # d counts the blocks of all stages
                    low, high = remaining[symbol]
                    remaining[symbol] = low / space.stages, high / space.stages
                stages[part] = Stages((cut(given.choices[0], symbol),), "same")
                continue
            choices = tuple(cut(given.choice(i), f"{symbol}_{i + 1}") for i in range(space.stages))
            stages[part] = Stages(choices[:1] if len(set(choices)) == 1 else choices, given.across)
        narrowed = replace(space, name=name, **stages)
    if remaining:
        raise UsageError(f"{space.name} does not draw {', '.join(remaining)}, so this cannot be narrowed")
    return narrowed


def with_relation(space: Space, part: str, across: str) -> Space:
    """Return a space of AnyNets with a relation between its stages, as in the steps of the paper from A to E.

    If stages with different ranges get the same value, its range covers all of them.

    Raises:
        UsageError: the space is not a space of AnyNets, or the part or relation does not exist.
    """
    if not isinstance(space, AnyNetSpace):
        raise UsageError(f"{space.name} is a space of RegNets, whose quantized line already relates the stages")
    if part not in SYMBOLS:
        raise UsageError(f"the parts of stages are {', '.join(SYMBOLS)}, got {part!r}{did_you_mean(part, SYMBOLS)}")
    given = space.parts()[part]
    choices = given.choices if across != "same" else (_hull(given.choices),)
    changed: dict[str, Any] = {part: Stages(choices, across)}
    return replace(space, **changed)


def _hull(choices: tuple[Domain, ...]) -> Domain:
    if len(choices) == 1:
        return choices[0]
    ranges = [choice for choice in choices if isinstance(choice, Range)]
    if len(ranges) == len(choices):
        return replace(ranges[0], low=min(each.low for each in ranges), high=max(each.high for each in ranges))
    values = {value for each in choices if isinstance(each, Values) for value in each.values}
    if ranges:
        raise UsageError(
            "stages with lists and stages with ranges have no common range: write the range into the space file"
        )
    return Values(tuple(sorted(values)))
