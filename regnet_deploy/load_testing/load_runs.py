"""Runs loads on a server: one rate, one closed loop, its capacity, or a series of rates around the capacity."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from regnet_deploy.errors import ServerError, UsageError
from regnet_deploy.load_testing.event_loop import run_on_event_loop
from regnet_deploy.load_testing.generator import Arrivals, LoadLimits, arrival_schedule, closed_loop, open_loop
from regnet_deploy.load_testing.report import LoadRecord, RateReport, summarize
from regnet_deploy.load_testing.samples import Recorder
from regnet_deploy.load_testing.served_model import ServedModel
from regnet_deploy.progress import NoProgress, Progress

#: Rates of a series as shares of the capacity: below it, around it, and above it.
SHARES = (0.1, 0.3, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5)
#: The capacity is measured with this many requests in flight at first, which are doubled while that gives this factor
#: more; and with this many seconds for each.
CAPACITY_CONCURRENCY, _GROWS, CAPACITY_S = 16, 1.05, 3.0
#: Maximum number of requests of one load, each of which takes about 200 bytes.
MAX_REQUESTS = 5_000_000


@dataclass(frozen=True)
class LoadPlan:
    """How a load is run.

    Attributes:
        duration: seconds that are measured.
        warmup: seconds of the same load before them that are not measured.
        arrivals: distribution of the requests over time.
        seed: of their times.
        limits: of requests in flight and of the time for an answer.
    """

    duration: float = 10.0
    warmup: float = 1.0
    arrivals: Arrivals = "poisson"
    seed: int = 0
    limits: LoadLimits = field(default_factory=LoadLimits)

    def check_rate(self, rate: float) -> None:
        """Check that a load at a rate has at least one request and not too many for the memory.

        Raises:
            UsageError: it has not.
        """
        if rate * self.duration < 1:
            raise UsageError(
                f"{rate:g} images/s for {self.duration:g} s is less than one request: give a --duration of "
                f"{1 / rate:.3g} s or more"
            )
        if rate * (self.duration + self.warmup) > MAX_REQUESTS:
            longest = max(0.0, MAX_REQUESTS / rate - self.warmup)
            raise UsageError(
                f"{rate:g} images/s for {self.duration + self.warmup:g} s are more than the {MAX_REQUESTS} requests "
                f"that a load may have: give a --duration of {longest:.3g} s or less"
            )


def run_open_loop(served: ServedModel, rate: float, plan: LoadPlan, progress: Progress | None = None) -> RateReport:
    """Run an open loop at a rate in requests/s; an interrupt ends it early and is noted in the report."""
    schedule = plan.warmup + arrival_schedule(rate, plan.duration, plan.arrivals, plan.seed)
    if plan.warmup:
        warmup = arrival_schedule(rate, plan.warmup, plan.arrivals, plan.seed + 1_000_003)
        schedule = np.concatenate([warmup, schedule])
    recorder = Recorder()
    record = _run(lambda: open_loop(served.load, schedule, recorder, plan.limits, progress), recorder, plan)
    return summarize(replace(record, offered=rate))


def run_closed_loop(
    served: ServedModel, concurrency: int, plan: LoadPlan, progress: Progress | None = None
) -> RateReport:
    """Run a closed loop; an interrupt ends it early and is noted in the report."""
    recorder, seconds = Recorder(), plan.warmup + plan.duration
    record = _run(
        lambda: closed_loop(served.load, concurrency, seconds, recorder, plan.limits, progress), recorder, plan
    )
    return summarize(replace(record, concurrency=concurrency))


def measure_capacity(served: ServedModel, plan: LoadPlan, progress: Progress | None = None) -> RateReport:
    """Return the short closed loop with the most images/s, of one with more and more requests in flight.

    Raises:
        ServerError: there was no correct answer.
        KeyboardInterrupt: on SIGINT.
    """
    short = replace(plan, duration=min(plan.duration, CAPACITY_S))
    concurrency = min(CAPACITY_CONCURRENCY, plan.limits.connections)
    best: RateReport | None = None
    while True:
        report = run_closed_loop(served, concurrency, short, progress)
        if report.interrupted:
            raise KeyboardInterrupt
        grows = best is None or report.achieved > _GROWS * best.achieved
        best = report if best is None or report.achieved > best.achieved else best
        if not grows or 2 * concurrency > plan.limits.connections or not report.ok:
            break
        concurrency *= 2
    if not best.ok:
        reason = f" ({best.problem})" if best.problem else ""
        raise ServerError(f"none of {best.requests} answers of the server at {served.target.url} was correct{reason}")
    return best


def choose_rates(capacity: float) -> tuple[float, ...]:
    """Return the rates of a series around a capacity, rounded to three digits."""
    return tuple(float(f"{share * capacity:.3g}") for share in SHARES)


def run_rates(
    served: ServedModel, rates: Sequence[float], plan: LoadPlan, progress: Progress | None = None
) -> list[RateReport]:
    """Run an open loop at each rate, until one is interrupted or the server is gone."""
    progress = progress or NoProgress()
    reports: list[RateReport] = []
    for i, rate in enumerate(rates, 1):
        progress.step(f"rate {i} of {len(rates)}: {rate:g} images/s", plan.warmup + plan.duration)
        reports.append(run_open_loop(served, rate, plan, progress))
        if reports[-1].interrupted or reports[-1].is_server_gone:
            break
    return reports


def _run(work: Callable[[], Coroutine[Any, Any, None]], recorder: Recorder, plan: LoadPlan) -> LoadRecord:
    interrupted, seconds = False, plan.duration
    began, used = time.monotonic(), time.process_time()
    try:
        run_on_event_loop(work)
    except KeyboardInterrupt:
        interrupted = True
        seconds = min(seconds, max(0.0, time.monotonic() - recorder.start - plan.warmup))
    cores = (time.process_time() - used) / max(time.monotonic() - began, 1e-9)
    return LoadRecord(
        recorder.samples(), plan.warmup, seconds, cores, problem=recorder.problem, interrupted=interrupted
    )
