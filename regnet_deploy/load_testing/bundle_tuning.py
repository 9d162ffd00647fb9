"""Tunes the settings of `serve` for a bundle on this machine: starts servers and measures them under load."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from regnet_deploy.bundle import Bundle
from regnet_deploy.bundle.measurements import ServerSetting, Serving, TuningRow
from regnet_deploy.cpu import available_cores
from regnet_deploy.cpu_load import OtherLoad
from regnet_deploy.load_testing.doubts import doubts
from regnet_deploy.load_testing.http_client import raise_open_files_limit
from regnet_deploy.load_testing.load_runs import LoadPlan, measure_capacity, run_open_loop
from regnet_deploy.load_testing.payloads import Kind
from regnet_deploy.load_testing.served_model import ServedModel, open_served_model
from regnet_deploy.load_testing.server_process import running_server
from regnet_deploy.load_testing.settings import SearchSpace, executor_layouts, runnable_pairs, serve_options
from regnet_deploy.load_testing.target import parse_target
from regnet_deploy.load_testing.tuning import LoadTrial, MeasuredServer, tune
from regnet_deploy.progress import NoProgress, Progress
from regnet_deploy.runtimes.openvino_session import bf16_unsupported_reason
from regnet_deploy.runtimes.runtime import Device, Runtime
from regnet_deploy.runtimes.tuned_settings import machine_summary

#: A trial takes at least as many times the limit of latency: in less time a growing queue would stay within it.
_LIMITS = 10
#: A server has fallen behind where it answers less than this share of the requests/s that were sent.
_BEHIND = 0.9
#: Requests that a trial should have, and how many times as long it may take for them.
_SAMPLES, _LONGER = 200, 3


@dataclass(frozen=True)
class TuningOptions:
    """What to tune for, and what to try.

    Attributes:
        limit_ms: limit of the 99th percentile of latency.
        variant: only this exported variant; None tries each that is proved.
        runtime: only this runtime; ``auto`` tries each that is installed.
        device: device to run on.
        max_executors: maximum number of executors; by default the number of cores.
        kind: what clients send; by default tensors, or files where ``images`` is given.
        images: folder of images to send in place of the golden set.
        duration: seconds of each trial, at least ten times the limit.
        seed: of the arrivals.
    """

    limit_ms: float = 20.0
    variant: str | None = None
    runtime: Runtime = "auto"
    device: Device = "auto"
    max_executors: int | None = None
    kind: Kind | None = None
    images: str | Path | None = None
    duration: float = 4.0
    seed: int = 0

    @property
    def sent_kind(self) -> Kind:
        """What is sent."""
        return self.kind or ("image" if self.images else "tensor")

    @property
    def plan(self) -> LoadPlan:
        """The load of each trial."""
        seconds = max(self.duration, _LIMITS * self.limit_ms / 1000)
        return LoadPlan(seconds, warmup=min(1.0, seconds / 4), seed=self.seed)


@dataclass(frozen=True)
class TuningResult:
    """The best settings on this machine.

    Attributes:
        options: what was tuned for.
        best: the selected setting, with a rate that was confirmed.
        rows: all settings that were tried.
        late_loads: number of loads in which requests were sent late, which counts as latency.
        doubts: why other programs on the machine may have decided the result; see
            :func:`regnet_deploy.load_testing.doubts.doubts`.
        contended_cores: mean number of cores that other programs took from the measurements; None if it is not known.
    """

    options: TuningOptions
    best: TuningRow
    rows: list[TuningRow]
    late_loads: int
    doubts: tuple[str, ...] = ()
    contended_cores: float | None = None

    @property
    def serving(self) -> Serving:
        """The part ``serving`` of the bundle."""
        return Serving(
            machine=machine_summary(),
            p99_ms=self.options.limit_ms,
            rate=self.best.rate,
            kind=self.options.sent_kind,
            device=self.options.device,
            settings=self.best.setting,
            rows=tuple(self.rows),
        )


def tune_bundle(bundle: Bundle, options: TuningOptions, progress: Progress | None = None) -> TuningResult:
    """Find the settings of `serve` with the highest rate within a limit of latency on this machine.

    Raises:
        MissingPart: nothing has been exported.
        UsageError: no variant can be served, or no setting is within the limit.
        ServerError: no server starts.
    """
    progress = progress or NoProgress()
    pairs, refused = runnable_pairs(bundle, options.variant, options.runtime, options.device)
    for name, reason in refused.items():
        progress.message(f"not tried: {name}: {reason}")
    if ("openvino", "onnx-fp32") in pairs and options.variant is None and bf16_unsupported_reason() is None:
        progress.message(
            f"not tried: BF16 in OpenVINO, which this CPU has: `regnet-deploy export --openvino{bundle.argument}` "
            "proves it"
        )
    raise_open_files_limit(options.plan.limits.connections)
    servers = ServerStarter(bundle, options)
    space = SearchSpace(pairs, executor_layouts(available_cores(), options.max_executors))
    load = OtherLoad()
    best, rows = tune(servers.start, space, options.limit_ms, progress)
    contended = load.contended_cores()
    found = doubts(best, rows, contended, available_cores())
    return TuningResult(options, best, rows, servers.late_loads, tuple(found), contended)


@dataclass
class ServerStarter:
    """Starts a server with a setting, checks its answers, and measures it.

    Attributes:
        bundle: the bundle to serve.
        options: what is tuned for.
        late_loads: number of loads in which requests were sent late.
    """

    bundle: Bundle
    options: TuningOptions
    late_loads: int = 0
    # Each load has other arrival times, or the same burst would decide all of them.
    _seeds: Iterator[int] = field(init=False)

    def __post_init__(self) -> None:
        self._seeds = itertools.count(self.options.seed)

    @contextlib.contextmanager
    def start(self, setting: ServerSetting) -> Iterator[MeasuredServer]:
        """Run a server while the context is open."""
        options = [*serve_options(setting), "--device", self.options.device]
        with running_server(self.bundle.path, options) as url:
            target = parse_target(url)
            kind, images = self.options.sent_kind, self.options.images
            served = open_served_model(target, self.bundle, kind=kind, images=images)
            yield _MeasuredServer(served, self.options.plan, self._seeds, self._count_late)

    def _count_late(self) -> None:
        self.late_loads += 1


@dataclass(frozen=True, eq=False)
class _MeasuredServer:
    served: ServedModel
    plan: LoadPlan
    seeds: Iterator[int]
    on_late: Callable[[], None]

    def capacity(self) -> float:
        """Return the images/s of a short closed loop."""
        return measure_capacity(self.served, replace(self.plan, duration=min(self.plan.duration, 2.0))).achieved

    def measure(self, rate: float) -> LoadTrial:
        """Run an open loop at a rate."""
        # The 99th percentile of few requests is the slowest one, so low rates are measured longer.
        duration = max(self.plan.duration, min(_SAMPLES / rate, _LONGER * self.plan.duration))
        report = run_open_loop(self.served, rate, replace(self.plan, duration=duration, seed=next(self.seeds)))
        if report.interrupted:
            raise KeyboardInterrupt
        if report.is_late:
            self.on_late()
        # The number of requests varies at low rates, so the answers are compared with what was sent, not with the rate.
        behind = report.achieved < _BEHIND * report.requests / report.measured_s
        p99_ms = report.latency.p99_ms if report.latency else math.inf
        return LoadTrial(rate, report.achieved, p99_ms, report.bad + (1 if behind and not report.bad else 0))
