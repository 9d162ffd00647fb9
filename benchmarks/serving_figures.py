"""What rounds of measurements say: medians, pooled percentiles, figures with their range, verdicts."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from serving_processes import HERE

from regnet_deploy.load_testing.report import percentile
from regnet_deploy.profiling.machine import busy_cores

RESULTS = HERE / "results"
#: Cores that other programs may keep busy when a result of the repository is measured.
QUIET = 0.2

Row: TypeAlias = "dict[str, Any]"
#: Returns what a row says of a field: its median, or one round's.
Of: TypeAlias = "Callable[[Row, str], float]"


def cores_busy(file: Path, anyway: bool) -> float | None:
    """Return the cores that others keep busy.

    Raises:
        SystemExit: too many for a result that is to be kept in the repository, and that was not asked for ``anyway``.
    """
    busy = busy_cores(2.0)
    if busy is not None and busy > QUIET and file.resolve().parent == RESULTS.resolve() and not anyway:
        raise SystemExit(
            f"other programs keep {busy:g} cores busy, at most {QUIET:g} are allowed for {file}: wait until the "
            "machine is quiet, write elsewhere with --json FILE, or say --anyway"
        )
    return busy


def rounds_of(rows: list[Row]) -> Row:
    """Return the median of each figure, all rounds' figures, and the 99th percentile of all rounds' latencies."""
    numbers = [name for name, value in rows[0].items() if isinstance(value, int | float)]
    row: Row = {name: statistics.median(one[name] for one in rows) for name in numbers}
    if "latencies_ms" in rows[0]:
        pooled = np.sort(np.concatenate([one["latencies_ms"] for one in rows]))
        row |= {"p99_ms": percentile(pooled, "99"), "requests": len(pooled)}
    return {**row, "rounds": {name: [one[name] for one in rows] for name in numbers}}


def in_turns(sides: Mapping[Any, Callable[[], Row]], rounds: int, say: Callable[[str], None]) -> dict[Any, Row]:
    """Measure every side once a round, every other round in the opposite order."""
    rows: dict[Any, list[Row]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides) if number % 2 == 0 else reversed(list(sides)):
            row = sides[name]()
            rows[name].append(row)
            say(f"  round {number + 1}, {name}: {row['rate']:.1f} a second, p50 {row['p50_ms']:.2f} ms")
    return {name: rounds_of(measured) for name, measured in rows.items()}


def ranged(figures: Callable[[Of], dict[str, float]], rounds: int) -> dict[str, dict[str, float]]:
    """Return figures by the medians, and the lowest and highest of those of single rounds."""
    middle = figures(lambda row, field: row[field])
    single = [figures(lambda row, field, i=i: row["rounds"][field][i]) for i in range(rounds)]
    return {
        name: {"value": value, "low": min(one[name] for one in single), "high": max(one[name] for one in single)}
        for name, value in middle.items()
    }


def met(figure: dict[str, float], limit: float, more: bool = True) -> str:
    """Return ``yes`` or ``no``, or ``undecided`` where rounds lie on both sides of the limit.

    Args:
        figure: ``value``, ``low`` and ``high``.
        limit: what it is to reach, or not to exceed.
        more: which of both.
    """
    sign = 1 if more else -1
    every = [sign * (figure[name] - limit) >= 0 for name in ("value", "low", "high")]
    return "yes" if all(every) else "undecided" if any(every) else "no"
