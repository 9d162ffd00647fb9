"""A setting measured for real: a server of its own, and loads on it."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from regnet_deploy.bundle import Bundle
from regnet_deploy.load_testing.load_runs import LoadPlan, measure_capacity, run_open_loop
from regnet_deploy.load_testing.payloads import Kind
from regnet_deploy.load_testing.served_model import ServedModel, open_served_model
from regnet_deploy.load_testing.server_process import running_server
from regnet_deploy.load_testing.settings import ServerSetting
from regnet_deploy.load_testing.target import parse_target
from regnet_deploy.load_testing.tuning import LoadTrial, MeasuredServer

#: A load has fallen behind where it was answered more slowly than this share of what was sent. One that takes ten times
#: the limit of latency or more has not where every answer keeps to the limit.
_BEHIND = 0.9
#: Requests that a load should have, and how many times as long it may take for them.
_SAMPLES, _LONGER = 200, 3


@dataclass(frozen=True, eq=False)
class _Measured:
    site: ServedModel
    plan: LoadPlan
    late: Callable[[], None]
    # Every load comes at other times, or the same burst would decide each of them.
    seeds: Iterator[int]

    def capacity(self) -> float:
        """Return the images/s of a short closed loop."""
        return measure_capacity(self.site, replace(self.plan, duration=min(self.plan.duration, 2.0))).achieved

    def measure(self, rate: float) -> LoadTrial:
        """Offer a rate in an open loop."""
        # Of few requests the 99th percentile is the slowest one: low rates are measured longer.
        duration = self.plan.duration
        duration = max(duration, min(_SAMPLES / rate, _LONGER * duration))
        report = run_open_loop(self.site, rate, replace(self.plan, duration=duration, seed=next(self.seeds)))
        if report.interrupted:
            raise KeyboardInterrupt
        if report.is_late:
            self.late()
        # Few requests at a low rate: how many there were is chance, so what was sent is compared, not the rate.
        behind = report.achieved < _BEHIND * report.requests / report.measured_s
        p99_ms = report.latency.p99_ms if report.latency else math.inf
        return LoadTrial(rate, report.achieved, p99_ms, report.bad + (1 if behind and not report.bad else 0))


def setting_trial(
    bundle: Bundle,
    plan: LoadPlan,
    *,
    kind: Kind,
    images: str | Path | None = None,
    options: Callable[[ServerSetting], list[str]] = ServerSetting.options,
    late: Callable[[], None] = lambda: None,
) -> Callable[[ServerSetting], contextlib.AbstractContextManager[MeasuredServer]]:
    """Return what starts a server with a setting, makes sure of its answers, and measures it.

    Args:
        bundle: to serve.
        plan: of each load; its seed is that of the first.
        kind: what is sent.
        images: see :func:`regnet_deploy.load_testing.served_model.open_served_model`.
        options: of `serve` for a setting.
        late: is called for each load whose requests left so late that it shows.
    """
    seeds = itertools.count(plan.seed)

    @contextlib.contextmanager
    def start(setting: ServerSetting) -> Iterator[MeasuredServer]:
        with running_server(bundle.path, options(setting)) as url:
            site = open_served_model(parse_target(url), bundle, kind=kind, images=images)
            yield _Measured(site, plan, late, seeds)

    return start
