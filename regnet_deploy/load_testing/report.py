"""The figures of a load: rates, counts, and percentiles of latencies."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.load_testing.http_client import BROKEN, TIMED_OUT
from regnet_deploy.load_testing.samples import DROPPED, PENDING, Samples

#: Names of what stands in place of a status.
_WORDS = {BROKEN: "connection", TIMED_OUT: "timeout"}

#: The generator is late where the 99th percentile of its lag is above this, and above this share of the 99th percentile
#: of the latencies, which count from the scheduled times.
_LATE_MS, _LATE_SHARE = 2.0, 0.2
#: Its lag shows where it is above this share of the median latency.
_COMPARABLE = 0.5


def percentile(ascending: NDArray[np.float64], percent: str) -> float:
    """Return the smallest sample that at least ``percent`` of all samples do not exceed (nearest rank).

    Args:
        ascending: samples, at least one.
        percent: such as ``99.9``; text, because 0.999 is no binary fraction and its rank would be one too high.
    """
    rank = math.ceil(Fraction(percent) / 100 * len(ascending))
    return float(ascending[max(rank, 1) - 1])


@dataclass(frozen=True)
class Latencies:
    """Percentiles of ``count`` latencies in ms; each is a latency that was measured, none is interpolated.

    With fewer than 1000 samples the 99.9th percentile is the slowest of them; with fewer than 100 the 99th is too.
    """

    count: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float

    @classmethod
    def of(cls, seconds: NDArray[np.float64]) -> Latencies | None:
        """Return the percentiles of latencies in seconds, in any order; None where there are none."""
        if not len(seconds):
            return None
        ascending = np.sort(seconds) * 1000
        p50, p90, p99, p999 = (percentile(ascending, percent) for percent in ("50", "90", "99", "99.9"))
        return cls(len(ascending), p50, p90, p99, p999, float(ascending[-1]))

    def to_json(self) -> dict[str, float]:
        """Return JSON data."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class LoadRecord:
    """A load that was run.

    Attributes:
        samples: every request of it.
        warmup: seconds from the start whose requests do not count.
        seconds: seconds measured after the warm-up.
        cores: cores that the load generator kept busy.
        offered: requests/s of an open loop; None in a closed one.
        concurrency: requests in flight of a closed loop; None in an open one.
        problem: message of the last connection that failed.
        interrupted: whether it ended early.
    """

    samples: Samples
    warmup: float
    seconds: float
    cores: float
    offered: float | None = None
    concurrency: int | None = None
    problem: str = ""
    interrupted: bool = False


@dataclass(frozen=True)
class RateReport:
    """The figures of one load without its warm-up. Every request carries one image.

    Attributes:
        offered: requests/s of an open loop; None in a closed one.
        concurrency: requests in flight of a closed loop; None in an open one.
        measured_s: seconds that were measured.
        requests: number of requests that ended.
        achieved: correct answers per second, until the last of them.
        ok: number of correct answers.
        refused: number of answers with status 503.
        failed: status, ``connection`` or ``timeout`` -> number of requests.
        dropped: number of requests not sent, because the limit of requests in flight was reached.
        wrong: number of answers with status 200 and the logits of another network or another image.
        latency: of the correct answers.
        refusals: latency of the answers with status 503.
        lag_p99_ms: 99th percentile of the lag of the generator behind its schedule; it counts as latency.
        generator_cores: cores that the load generator kept busy.
        problem: message of the last connection that failed; empty where none did.
        interrupted: whether the load ended early.
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
        """Number of requests without a correct answer."""
        return self.requests - self.ok

    @property
    def is_late(self) -> bool:
        """Whether the lag of the generator is a large part of the highest latencies; False where none was measured."""
        measured = self.latency or self.refusals
        return measured is not None and self.lag_p99_ms > max(_LATE_MS, _LATE_SHARE * measured.p99_ms)

    @property
    def lag_shows(self) -> bool:
        """Whether the lag is comparable with the median latency, or a large part of the highest ones."""
        measured = self.latency or self.refusals
        return self.is_late or (measured is not None and self.lag_p99_ms > _COMPARABLE * measured.p50_ms)

    @property
    def is_server_gone(self) -> bool:
        """Whether no request reached a server."""
        return self.requests > 0 and self.failed.get("connection") == self.requests

    def to_json(self) -> dict[str, Any]:
        """Return JSON data."""
        return {**asdict(self), "lag_shows": self.lag_shows}


def summarize(load: LoadRecord) -> RateReport:
    """Return the figures of a load."""
    samples, warmup, end = load.samples, load.warmup, load.warmup + load.seconds
    counted = (samples.intended >= warmup) & (samples.status != PENDING)
    if load.offered is None:  # a closed loop goes on sending until its end, and leaves some without an answer
        counted &= samples.done <= end
    rows = samples.where(counted)
    right = (rows.status == 200) & ~rows.wrong
    refused = rows.status == 503
    others = rows.status[~right & ~rows.wrong & ~refused & (rows.status != DROPPED)]
    names = Counter(_WORDS.get(status, str(status)) for status in others.tolist())
    latencies = rows.done - rows.intended
    until = max(end, float(rows.done[right].max())) if right.any() and load.offered is not None else end
    lags = np.sort(np.maximum(rows.sent - rows.intended, 0.0)) * 1000
    return RateReport(
        offered=load.offered,
        concurrency=load.concurrency,
        measured_s=load.seconds,
        requests=len(rows),
        achieved=int(right.sum()) / (until - warmup) if until > warmup else 0.0,
        ok=int(right.sum()),
        refused=int(refused.sum()),
        failed=dict(sorted(names.items())),
        dropped=int((rows.status == DROPPED).sum()),
        wrong=int(rows.wrong.sum()),
        latency=Latencies.of(latencies[right]),
        refusals=Latencies.of(latencies[refused]),
        lag_p99_ms=percentile(lags, "99") if len(lags) else 0.0,
        generator_cores=load.cores,
        problem=load.problem if BROKEN in others else "",
        interrupted=load.interrupted,
    )
