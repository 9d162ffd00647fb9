"""Which variants are worth keeping: of those that are accurate enough, the fastest of each runtime."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from regnet_deploy.exporting.precision import PRECISIONS
from regnet_deploy.profiling.latency import Latency

#: ``unmeasured``: it could be built, but this machine does not run it. ``refused``: it could not be, or is not good.
Result = Literal["kept", "slower", "refused", "unmeasured"]

#: A less precise variant has to be faster than a more precise one by this share of its time, or it is not worth it.
_WORTH = 0.05


@dataclass(frozen=True)
class VariantCandidate:
    """A variant that stood for election.

    Attributes:
        name: of the variant.
        precision: by name.
        reason: why it is out before speed is looked at, or None.
        accuracy: what the judge measured, JSON data.
        measured: latency by batch size; empty where this machine does not run it.
    """

    name: str
    precision: str
    reason: str | None = None
    accuracy: dict[str, Any] | None = None
    measured: tuple[Latency, ...] = ()


@dataclass(frozen=True)
class RankingResult:
    """What became of a candidate, and why."""

    candidate: VariantCandidate
    result: Result
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Return JSON data."""
        one = self.candidate
        return {
            "variant": one.name,
            "precision": one.precision,
            "result": self.result,
            "reason": self.reason,
            "accuracy": one.accuracy,
            "latency": [row.to_json() for row in one.measured],
        }


def rank_variants(candidates: Sequence[VariantCandidate], named: Collection[str] = ()) -> list[RankingResult]:
    """Keep the fastest candidate of each runtime and device and say of each why it was kept or not.

    Speed is the geometric mean of the median ms an image over the batch sizes that were measured. A less precise
    candidate wins only if it takes at least 5 % less time than the more precise one.

    Args:
        candidates: those that stand.
        named: names of those that the user asked for by name: they are kept though they lose.
    """
    outcomes: dict[str, RankingResult] = {}
    places: dict[tuple[str, str], list[VariantCandidate]] = {}
    for one in candidates:
        if one.reason is not None:
            outcomes[one.name] = RankingResult(one, "refused", one.reason)
        elif not one.measured:
            outcomes[one.name] = RankingResult(
                one, "unmeasured", "this machine does not run it, so its speed is not known"
            )
        else:
            places.setdefault((one.measured[0].runtime, one.measured[0].device), []).append(one)
    for (runtime, device), running in places.items():
        winner = _fastest(running)
        for one in running:
            if one is winner:
                outcomes[one.name] = RankingResult(one, "kept", _praise(winner, running, runtime, device))
            elif one.name in named:
                outcomes[one.name] = RankingResult(one, "kept", f"asked for by name, though it {_defeat(one, winner)}")
            else:
                outcomes[one.name] = RankingResult(one, "slower", _defeat(one, winner))
    return [outcomes[one.name] for one in candidates]


def ms_per_image(rows: Sequence[Latency]) -> float:
    """Return the geometric mean over batch sizes of the median ms an image."""
    return math.exp(math.fsum(math.log(row.p50_ms / row.batch) for row in rows) / len(rows))


def _fastest(running: Sequence[VariantCandidate]) -> VariantCandidate:
    """Return the fastest; from the most precise on, each must be worth its loss of precision."""
    order = list(PRECISIONS)
    ranked = sorted(running, key=lambda one: order.index(one.precision))
    best = ranked[0]
    for one in ranked[1:]:
        if ms_per_image(one.measured) < (1 - _WORTH) * ms_per_image(best.measured):
            best = one
    return best


def _praise(winner: VariantCandidate, running: Sequence[VariantCandidate], runtime: str, device: str) -> str:
    others = [one for one in running if one is not winner]
    if not others:
        return f"the only one that {runtime} ran on {device}"
    ratios = {one.name: _ratio(one, winner) for one in others}
    told = [
        f"{ratio:.2f} times as fast as {name}" if ratio >= 1 else f"more precise than {name}, which is hardly faster"
        for name, ratio in ratios.items()
    ]
    return f"the best of {len(running)} on {runtime}, {device}: {', '.join(told)}"


def _defeat(loser: VariantCandidate, winner: VariantCandidate) -> str:
    ratio = _ratio(loser, winner)
    if ratio >= 1:
        return f"takes {ratio:.2f} times as long as {winner.name}"
    return f"takes {1 - ratio:.1%} less time than {winner.name}, and less precision has to bring {_WORTH:.0%}"


def _ratio(slow: VariantCandidate, fast: VariantCandidate) -> float:
    return ms_per_image(slow.measured) / ms_per_image(fast.measured)
