"""One load on a server, from schedule to figures, and the rates that tell most of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from regnet_deploy.errors import ServerError
from regnet_deploy.loading.arrivals import Arrivals, schedule
from regnet_deploy.loading.generator import Rules, Tick, closed_loop, open_loop
from regnet_deploy.loading.loops import run
from regnet_deploy.loading.report import RateReport, summarise
from regnet_deploy.loading.samples import Recorder
from regnet_deploy.loading.site import Site

#: Shares of the capacity at which latency is looked at: the knee lies between, and what comes of too much beyond.
SHARES = (0.1, 0.3, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5)
#: Requests in flight that find the capacity, and seconds for it.
CAPACITY_CONCURRENCY, CAPACITY_S = 16, 3.0


@dataclass(frozen=True)
class Plan:
    """How a load is made.

    Attributes:
        duration: seconds that are measured.
        warmup: seconds before them, of the same load, that are not.
        arrivals: how requests are spread.
        seed: of their times.
        rules: most in flight, and when a request has failed.
    """

    duration: float = 10.0
    warmup: float = 1.0
    arrivals: Arrivals = "poisson"
    seed: int = 0
    rules: Rules = field(default_factory=Rules)


def open_load(site: Site, rate: float, plan: Plan, tick: Tick = lambda seconds: None) -> RateReport:
    """Measure a rate, requests a second, in an open loop; an interrupt ends it early and is told in the report."""
    due = plan.warmup + schedule(rate, plan.duration, plan.arrivals, plan.seed)
    if plan.warmup:
        due = np.concatenate([schedule(rate, plan.warmup, plan.arrivals, plan.seed + 1_000_003), due])
    recorder = Recorder()
    report = _load(lambda: open_loop(site.target, site.load, due, recorder, plan.rules, tick), recorder, plan)
    return report(rate, None)


def closed_load(site: Site, concurrency: int, plan: Plan, tick: Tick = lambda seconds: None) -> RateReport:
    """Measure a closed loop of a number of requests in flight; an interrupt ends it early and is told in the report."""
    recorder = Recorder()
    seconds = plan.warmup + plan.duration
    work = _load(
        lambda: closed_loop(site.target, site.load, concurrency, seconds, recorder, plan.rules, tick), recorder, plan
    )
    return work(None, concurrency)


def capacity_of(site: Site, plan: Plan, tick: Tick = lambda seconds: None) -> float:
    """Return the images a second that the server answers in a short closed loop.

    Raises:
        ServerError: none.
        KeyboardInterrupt: on SIGINT.
    """
    report = closed_load(site, CAPACITY_CONCURRENCY, replace(plan, duration=min(plan.duration, CAPACITY_S)), tick)
    if report.interrupted:
        raise KeyboardInterrupt
    if not report.ok:
        raise ServerError(f"the server at {site.target.url} answered none of {report.requests} requests rightly")
    return report.achieved


def rates_for(capacity: float) -> tuple[float, ...]:
    """Return the rates to look at, rounded to three digits."""
    return tuple(float(f"{share * capacity:.3g}") for share in SHARES)


def _load(
    work: Callable[[], Coroutine[Any, Any, None]], recorder: Recorder, plan: Plan
) -> Callable[[float | None, int | None], RateReport]:
    interrupted, seconds = False, plan.duration
    began, used = time.monotonic(), time.process_time()
    try:
        run(work)
    except KeyboardInterrupt:
        interrupted = True
        seconds = min(seconds, max(0.0, time.monotonic() - recorder.start - plan.warmup))
    cores = (time.process_time() - used) / max(time.monotonic() - began, 1e-9)

    def report(offered: float | None, concurrency: int | None) -> RateReport:
        return summarise(
            recorder.samples(),
            warmup=plan.warmup,
            seconds=seconds,
            cores=cores,
            offered=offered,
            concurrency=concurrency,
            interrupted=interrupted,
        )

    return report
