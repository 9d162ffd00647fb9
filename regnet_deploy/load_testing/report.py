"""A load in figures."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from regnet_deploy.load_testing.http_client import BROKEN, TIMED_OUT
from regnet_deploy.load_testing.percentiles import Latencies, percentile
from regnet_deploy.load_testing.samples import DROPPED, PENDING, Samples

#: What stands in place of a status, in words.
_WORDS = {BROKEN: "connection", TIMED_OUT: "timeout"}

#: Requests leave late, so that it shows, where the 99th percentile of their lateness is above this, and above this
#: share of the 99th percentile of the latencies, which count from when a request was due.
_LATE_MS, _LATE_SHARE = 2.0, 0.2
#: The same beside the median, however short it is.
_COMPARABLE = 0.5


@dataclass(frozen=True)
class RateReport:
    """One load, its warm-up left out. Every request carries one image.

    Attributes:
        offered: requests a second that were asked for; None in a closed loop.
        concurrency: of a closed loop; None in an open one.
        measured_s: seconds that count.
        requests: that were due and whose end is known.
        achieved: images a second answered rightly, until the last of them.
        ok: answered rightly.
        refused: answered with 503.
        failed: status, ``connection`` or ``timeout`` -> how many.
        dropped: not sent, for want of room in flight.
        wrong: answered with 200 and another network's, or another image's, logits.
        latency: of those that are ok.
        refusals: latencies of those that were refused.
        lag_p99_ms: how late requests left, 99th percentile; what is late counts as latency.
        generator_cores: cores that the load generator itself kept busy.
        problem: what the last connection that failed said; empty where none did.
        interrupted: whether it ended before its time.
    """

    offered: float | None
    concurrency: int | None
    measured_s: float
    requests: int
    achieved: float
    ok: int
    refused: int
    failed: dict[str, int]
    dropped: int
    wrong: int
    latency: Latencies | None
    refusals: Latencies | None
    lag_p99_ms: float
    generator_cores: float
    problem: str = ""
    interrupted: bool = False

    @property
    def bad(self) -> int:
        """Requests that were not answered rightly."""
        return self.requests - self.ok

    @property
    def is_late(self) -> bool:
        """Whether the generator's own lateness makes up much of the highest latencies; not where none was measured."""
        measured = self.latency or self.refusals
        return measured is not None and self.lag_p99_ms > max(_LATE_MS, _LATE_SHARE * measured.p99_ms)

    @property
    def lag_shows(self) -> bool:
        """Whether its lateness is comparable with what latencies are usually, or makes up much of the highest."""
        measured = self.latency or self.refusals
        return self.is_late or (measured is not None and self.lag_p99_ms > _COMPARABLE * measured.p50_ms)

    def to_json(self) -> dict[str, Any]:
        """Return JSON data."""
        return {**asdict(self), "lag_shows": self.lag_shows}


def summarise(
    samples: Samples,
    *,
    warmup: float,
    seconds: float,
    cores: float,
    offered: float | None = None,
    concurrency: int | None = None,
    problem: str = "",
    interrupted: bool = False,
) -> RateReport:
    """Put a load into figures.

    Args:
        samples: of the whole load.
        warmup: seconds from the start whose requests do not count.
        seconds: that were measured after it.
        cores: that the generator kept busy.
        offered: requests a second of an open loop.
        concurrency: of a closed loop.
        problem: of the last connection that failed.
        interrupted: whether it ended before its time.
    """
    end = warmup + seconds
    counted = (samples.intended >= warmup) & (samples.status != PENDING)
    if offered is None:  # a closed loop goes on sending until its end, and leaves some without an answer
        counted &= samples.done <= end
    rows = samples.where(counted)
    right = (rows.status == 200) & ~rows.wrong
    refused = rows.status == 503
    others = rows.status[~right & ~rows.wrong & ~refused & (rows.status != DROPPED)]
    names = Counter(_WORDS.get(status, str(status)) for status in others.tolist())
    took = rows.done - rows.intended
    until = max(end, float(rows.done[right].max())) if right.any() and offered is not None else end
    lags = np.sort(np.maximum(rows.sent - rows.intended, 0.0)) * 1000
    return RateReport(
        offered=offered,
        concurrency=concurrency,
        measured_s=seconds,
        requests=len(rows),
        achieved=int(right.sum()) / (until - warmup) if until > warmup else 0.0,
        ok=int(right.sum()),
        refused=int(refused.sum()),
        failed=dict(sorted(names.items())),
        dropped=int((rows.status == DROPPED).sum()),
        wrong=int(rows.wrong.sum()),
        latency=Latencies.of(took[right]),
        refusals=Latencies.of(took[refused]),
        lag_p99_ms=percentile(lags, "99") if len(lags) else 0.0,
        generator_cores=cores,
        problem=problem if BROKEN in others else "",
        interrupted=interrupted,
    )
