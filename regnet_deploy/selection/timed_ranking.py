"""The candidates of a selection by measured time: what was measured, and why the first one is the best."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from regnet_deploy.space.network import REFERENCE_RESOLUTION

#: Which networks are searched for a limit of time.
SEARCHED_BY_TIME = (
    "networks of the constrained space near the limit, with few steps of w_m, that are as likely under the trends as "
    "the least likely published one; of each level of MACs, those that are predicted to be the fastest"
)


@dataclass(frozen=True)
class TimedCandidate:
    """A candidate whose time was measured.

    Attributes:
        family: ``x`` or ``y``.
        macs: MACs for one image, at the resolution of the budget.
        depths: blocks of each stage.
        widths: channels of each stage.
        group_widths: channels per group of each stage.
        expected_error: top-1 error to expect of its family at the MACs that it has at 224 pixels, there, percent.
        predicted_ms: time that the latency model predicts, ms.
        extrapolated: whether it is outside of the networks that the model was fitted to.
        p50_ms: measured median, ms.
        p99_ms: measured 99th percentile, ms.
        keeps: whether it keeps the limits.
    """

    family: str
    macs: int
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    group_widths: tuple[int, ...]
    expected_error: float
    predicted_ms: float
    extrapolated: bool
    p50_ms: float
    p99_ms: float
    keeps: bool


@dataclass(frozen=True)
class TimedRanking:
    """A selection by measured time.

    Attributes:
        limits: what the time must keep, in words.
        setup: how the networks were run, in words.
        p50_ms: median of the selected network, measured again in a process of its own, ms.
        p99_ms: its 99th percentile there, ms.
        considered: number of candidates whose time was predicted.
        model_networks: number of measured networks of the latency model.
        model_error: its mean relative error for networks that were left out of the fit.
        candidates: those that were measured, the selected one first.
        why_slower: why the network does not use the whole of the limit; None where it does.
        disturbances: ``busy`` and ``throttled``, where the machine was so when the network was measured again.
    """

    limits: str
    setup: str
    p50_ms: float
    p99_ms: float
    considered: int
    model_networks: int
    model_error: float
    candidates: tuple[TimedCandidate, ...]
    why_slower: str | None = None
    disturbances: tuple[str, ...] = ()

    def reason(self) -> str:
        """Return why the first candidate is the best."""
        best = self.candidates[0]
        return (
            f"{self.limits}: {self.p50_ms:.2f} ms (median; 99th percentile {self.p99_ms:.2f} ms) with {self.setup}, "
            "measured again in a process of its own"
            + (f" while the machine was {' and '.join(self.disturbances)}" if self.disturbances else "")
            + f"; expected top-1 error {best.expected_error:.2f} % at {REFERENCE_RESOLUTION} pixels. "
            f"{len(self.candidates)} of {self.considered:,} candidates were measured, chosen by a latency model of "
            f"{self.model_networks} networks measured here (mean error {self.model_error:.1%} on networks left out)"
            + (", outside of which it is, so that its prediction was extrapolated" if best.extrapolated else "")
            + (f"; {self.why_slower}" if self.why_slower else "")
        )

    def to_json(self) -> dict[str, Any]:
        """Return JSON data; errors in percent, times in ms."""
        return asdict(self)
