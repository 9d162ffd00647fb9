"""One load on a server, from schedule to figures, and the rates that tell most of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from regnet_deploy.errors import ServerError, UsageError
from regnet_deploy.load_testing.arrival_schedule import Arrivals, arrival_schedule
from regnet_deploy.load_testing.event_loop import run_on_event_loop
from regnet_deploy.load_testing.generator import LoadRules, Tick, closed_loop, open_loop
from regnet_deploy.load_testing.report import RateReport, summarise
from regnet_deploy.load_testing.samples import Recorder
from regnet_deploy.load_testing.served_model import ServedModel

#: Shares of the capacity at which latency is looked at: the knee lies between, and what comes of too much beyond.
SHARES = (0.1, 0.3, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5)
#: Requests in flight that find the capacity: at first, and doubled while that gives so many times as much; and seconds
#: for each.
CAPACITY_CONCURRENCY, _GROWS, CAPACITY_S = 16, 1.05, 3.0
#: Requests of one load, each of which takes some 200 bytes until its end.
MOST_REQUESTS = 5_000_000


@dataclass(frozen=True)
class LoadPlan:
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
    rules: LoadRules = field(default_factory=LoadRules)


def run_open_loop(site: ServedModel, rate: float, plan: LoadPlan, tick: Tick = lambda seconds: None) -> RateReport:
    """Measure a rate, requests a second, in an open loop; an interrupt ends it early and is told in the report."""
    due = plan.warmup + arrival_schedule(rate, plan.duration, plan.arrivals, plan.seed)
    if plan.warmup:
        due = np.concatenate([arrival_schedule(rate, plan.warmup, plan.arrivals, plan.seed + 1_000_003), due])
    recorder = Recorder()
    report = _load(lambda: open_loop(site.target, site.load, due, recorder, plan.rules, tick), recorder, plan)
    return report(rate, None)


def run_closed_loop(
    site: ServedModel, concurrency: int, plan: LoadPlan, tick: Tick = lambda seconds: None
) -> RateReport:
    """Measure a closed loop of a number of requests in flight; an interrupt ends it early and is told in the report."""
    recorder = Recorder()
    seconds = plan.warmup + plan.duration
    work = _load(
        lambda: closed_loop(site.target, site.load, concurrency, seconds, recorder, plan.rules, tick), recorder, plan
    )
    return work(None, concurrency)


def measure_capacity(site: ServedModel, plan: LoadPlan, tick: Tick = lambda seconds: None) -> RateReport:
    """Return the short closed loop with the most images a second; requests in flight are doubled while that gives more.

    Raises:
        ServerError: nothing was answered rightly.
        KeyboardInterrupt: on SIGINT.
    """
    short = replace(plan, duration=min(plan.duration, CAPACITY_S))
    concurrency = min(CAPACITY_CONCURRENCY, plan.rules.connections)
    best: RateReport | None = None
    while True:
        report = run_closed_loop(site, concurrency, short, tick)
        if report.interrupted:
            raise KeyboardInterrupt
        grows = best is None or report.achieved > _GROWS * best.achieved
        best = report if best is None or report.achieved > best.achieved else best
        if not grows or 2 * concurrency > plan.rules.connections or not report.ok:
            break
        concurrency *= 2
    if not best.ok:
        reason = f" ({best.problem})" if best.problem else ""
        raise ServerError(f"the server at {site.target.url} answered none of {best.requests} requests rightly{reason}")
    return best


def choose_rates(capacity: float) -> tuple[float, ...]:
    """Return the rates to look at, rounded to three digits."""
    return tuple(float(f"{share * capacity:.3g}") for share in SHARES)


def check_size(rate: float, plan: LoadPlan) -> None:
    """Refuse an open load of no request, or of more than memory is for.

    Raises:
        UsageError: it is one.
    """
    if rate * plan.duration < 1:
        raise UsageError(
            f"{rate:g} images/s for {plan.duration:g} s is less than one request: give a --duration of "
            f"{1 / rate:.3g} s or more"
        )
    if rate * (plan.duration + plan.warmup) > MOST_REQUESTS:
        raise UsageError(
            f"{rate:g} images/s for {plan.duration + plan.warmup:g} s are more than the {MOST_REQUESTS} requests that "
            f"a load may have: give a --duration of at most {max(0.0, MOST_REQUESTS / rate - plan.warmup):.3g} s"
        )


def _load(
    work: Callable[[], Coroutine[Any, Any, None]], recorder: Recorder, plan: LoadPlan
) -> Callable[[float | None, int | None], RateReport]:
    interrupted, seconds = False, plan.duration
    began, used = time.monotonic(), time.process_time()
    try:
        run_on_event_loop(work)
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
            problem=recorder.problem,
            interrupted=interrupted,
        )

    return report
