"""The record of a measured time: of which network, how it was run, on which machine, in which state, by which protocol.

Two measurements are comparable only if everything that can change the time is equal. That is the network with its
input, the :class:`Execution`, the :class:`MeasuredMachine` with what its owner has set, and the pace of the protocol.
The :class:`MachineState` is what happened to the machine meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Annotated, Any, TypeAlias

import numpy as np
from msgspec import Meta, field

from regnet_deploy.bundle.measurements import MachineSummary
from regnet_deploy.bundle.record import Record, from_json
from regnet_deploy.errors import UsageError
from regnet_deploy.space.network import Network

#: Of stored measurements; raised where earlier versions cannot read what is stored.
SCHEMA = 1
#: A machine is busy if others use more than this share of the CPU time that the process may use.
BUSY_SHARE = 0.1
#: A GPU is busy if others keep it occupied for more than this share of the time.
GPU_BUSY_SHARE = 0.1
#: Smallest number of sections from which intervals are computed.
_MIN_SECTIONS = 4
#: 97.5 % quantiles of Student's t distribution for 1, 2, ... degrees of freedom; with more, the last one is too wide
#: by 4 % at most.
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)

_Count: TypeAlias = Annotated[int, Meta(ge=1)]
_Date: TypeAlias = Annotated[str, Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00$")]
_Milliseconds: TypeAlias = Annotated[float, Meta(gt=0)]
_NonNegative: TypeAlias = Annotated[float, Meta(ge=0)]
#: Lower and upper end of a 95 % interval, ms.
Interval: TypeAlias = tuple[_NonNegative, _NonNegative]


class Execution(Record, frozen=True, kw_only=True):
    """How a network is run.

    Attributes:
        runtime: ``onnxruntime``, ``openvino``, ``tensorrt``, ``tensorrt-rtx``, ``torch`` or ``torch-compile``.
        version: of the runtime.
        device: ``cpu``, or the name of the GPU.
        precision: such as ``fp32``, ``bf16`` or ``int8-cpu``.
        threads: CPU threads of the runtime.
        layout: of the input in memory, ``channels_first`` or ``channels_last``.
        options: other settings that change the time, where they are not those by default: for example ``input`` is
            ``uint8`` where the runtime normalizes the pixels, and ``cuda_graphs`` is ``off``.
    """

    runtime: str
    version: str
    device: str
    precision: str
    threads: _Count
    layout: str
    options: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        place = f"{self.threads} thread{'s' * (self.threads > 1)}" if self.device == "cpu" else self.device
        options = "".join(f", {name} {value}" for name, value in sorted(self.options.items()))
        return f"{self.runtime} {self.version} {self.precision}, {place}, {self.layout}{options}"


class MeasuredMachine(MachineSummary, frozen=True, kw_only=True):
    """What identifies a machine for the time of a network, with what its owner has set. Unknown values are None.

    Attributes:
        board: model of the machine, such as the type of a cloud's machine.
        system: operating system and kernel.
        driver: version of the GPU's driver.
        governor: of the frequency of the CPUs, such as ``performance``; several are joined by commas.
        boost: whether the CPUs may exceed their nominal frequency.
        cpu_limit_mhz: highest frequency that is set for the CPUs.
        gpu_limit_mhz: highest frequency that is set for the GPU.
        gpu_limit_w: power that is set as the limit of the GPU.
    """

    system: str
    board: str | None = None
    driver: str | None = None
    governor: str | None = None
    boost: bool | None = None
    cpu_limit_mhz: float | None = None
    gpu_limit_mhz: float | None = None
    gpu_limit_w: float | None = None


class GpuMachineState(Record, frozen=True, kw_only=True):
    """The GPU of a measurement. Unknown values are None.

    Attributes:
        clock_mhz_before: of its multiprocessors, before.
        clock_mhz_after: immediately after the last inference.
        memory_clock_mhz: afterwards.
        throttle_reasons: what slowed it down before or afterwards, such as ``sw_thermal_slowdown``; neither that it
            is idle nor clocks that are set.
        busy_share: share of the time in which others kept it occupied before, 0 to 1.
        temperature: of the chip, degrees Celsius, afterwards.
    """

    clock_mhz_before: float | None = None
    clock_mhz_after: float | None = None
    memory_clock_mhz: float | None = None
    throttle_reasons: tuple[str, ...] | None = None
    busy_share: float | None = None
    temperature: float | None = None


class MachineState(Record, frozen=True, kw_only=True):
    """What happened to the machine during a measurement. Unknown values are None: virtual machines report few of them.

    Attributes:
        clock_mhz_before: mean frequency of the CPUs that the process may use, before.
        clock_mhz_after: the same immediately after the last inference.
        throttled: whether a CPU of these was slowed down for its temperature or power meanwhile.
        busy_cores: mean number of CPUs that others kept busy and this process could have used.
        cpus: number of CPUs whose time this process may use; a quota can make it a fraction.
        gpu: the GPU that was measured.
    """

    clock_mhz_before: float | None = None
    clock_mhz_after: float | None = None
    throttled: bool | None = None
    busy_cores: _NonNegative | None = None
    cpus: Annotated[float, Meta(gt=0)]
    gpu: GpuMachineState | None = None

    @property
    def is_busy(self) -> bool:
        """Whether others used more than :data:`BUSY_SHARE` of the CPUs, or :data:`GPU_BUSY_SHARE` of the GPU."""
        gpu = self.gpu.busy_share if self.gpu else None
        return (self.busy_cores or 0.0) > BUSY_SHARE * self.cpus or (gpu or 0.0) > GPU_BUSY_SHARE

    @property
    def is_throttled(self) -> bool:
        """Whether the CPU or the GPU was slowed down."""
        return bool(self.throttled) or bool(self.gpu and self.gpu.throttle_reasons)

    @property
    def flags(self) -> tuple[str, ...]:
        """``busy`` and ``throttled``, where they apply: the time is not that of an undisturbed machine then."""
        return tuple(name for name, applies in (("busy", self.is_busy), ("throttled", self.is_throttled)) if applies)


class Protocol(Record, frozen=True, kw_only=True):
    """How the time was measured.

    Attributes:
        warmup_repetitions: inferences before, which do not count.
        rounds: turns; others that were measured had theirs in between.
        repetitions: measured inferences of all rounds.
        interval_ms: an inference starts so many ms after the one before; None: back to back. The clocks of an idle
            machine fall, so that paced inferences can be slower.
        interleaved_with: number of other things that were measured in turns with this one.
    """

    warmup_repetitions: int
    rounds: _Count
    repetitions: _Count
    interval_ms: _Milliseconds | None = None
    interleaved_with: int = 0

    @property
    def paced(self) -> bool:
        """Whether inferences started at fixed intervals."""
        return self.interval_ms is not None


class Times(Record, frozen=True, kw_only=True):
    """The time of one inference of a batch, ms; see :func:`summarize`."""

    mean_ms: _Milliseconds
    p50_ms: _Milliseconds
    p50_interval_ms: Interval
    p90_ms: _Milliseconds
    p90_interval_ms: Interval
    p99_ms: _Milliseconds
    p99_interval_ms: Interval


class Measurement(Record, frozen=True, kw_only=True):
    """The measured time of a network.

    Attributes:
        network: the network.
        resolution: height and width of the images, pixels.
        classes: outputs of the linear layer.
        batch: images of an inference.
        execution: how it was run.
        machine: on which it was run.
        state: of the machine meanwhile.
        protocol: how it was measured.
        artifact_sha256: of the file that was run; None where there was none, as for PyTorch.
        times: of an inference, from images in host memory to logits in host memory.
        date: of the end, UTC, such as ``2026-12-01T09:00:00+00:00``.
        regnet_deploy: version that exported the network and measured it.
    """

    network: Network
    resolution: _Count
    classes: _Count
    batch: _Count
    execution: Execution
    machine: MeasuredMachine
    state: MachineState
    protocol: Protocol
    artifact_sha256: str | None
    times: Times
    date: _Date
    regnet_deploy: str

    @property
    def images_per_second(self) -> float:
        """Images per second of inferences back to back."""
        return 1000 * self.batch / self.times.mean_ms

    @property
    def digest(self) -> str:
        """The sha256 of everything in it; equal measurements have the same one."""
        return hashlib.sha256(canonical(from_json(self.to_json(), Measurement).to_json()).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return JSON data; the network is written as everywhere else."""
        return {**super().to_json(), "network": self.network.to_json()}


def canonical(data: Any) -> str:
    """Return JSON data as text that is the same for equal data."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def summarize(durations_s: Sequence[Sequence[float]]) -> Times:
    """Return the percentiles of durations with their 95 % intervals.

    A percentile is that of all repetitions, interpolated linearly. Repetitions that follow each other are not
    independent (clocks, caches, other programs), so an interval from their number alone would be too narrow. It is
    computed by sectioning instead, with each round as a section: with Q the percentile of all repetitions and Q_i
    those of the n rounds, the interval is Q +- t * sqrt(sum((Q_i - Q)^2) / (n - 1)) / sqrt(n), where t is the 97.5 %
    quantile of Student's t distribution with n - 1 degrees of freedom (S. Asmussen and P. W. Glynn, Stochastic
    Simulation, 2007, section III.5; M. K. Nakayama, ACM TOMACS 24(4), 2014). It is cut at 0. Fewer than four
    rounds are split into consecutive parts of equal length.

    The interval says how well these repetitions determine the percentile. It does not contain what differs from one
    process or day to another. In rounds of fewer than 100 repetitions, p99 is close to the slowest of them.

    Args:
        durations_s: of the inferences of each round, seconds.

    Raises:
        UsageError: there are fewer than two durations, or one is not positive and finite.
    """
    rounds = [np.asarray(each, dtype=np.float64) * 1000 for each in durations_s if len(each)]
    every = np.concatenate(rounds) if rounds else np.zeros(0)
    if len(every) < 2:
        raise UsageError(f"percentiles need 2 durations or more, got {len(every)}")
    wrong = every[~(np.isfinite(every) & (every > 0))]
    if len(wrong):
        raise UsageError(f"durations must be positive and finite, got {wrong[0] / 1000:g} s")
    parts = math.ceil(_MIN_SECTIONS / len(rounds))
    sections = [part for each in rounds for part in np.array_split(each, parts) if len(part)]
    quantiles = (50, 90, 99)
    found = np.percentile(every, quantiles)
    deviations = np.array([np.percentile(section, quantiles) for section in sections]) - found
    count = len(sections)
    t = _T[min(count - 1, len(_T)) - 1]
    half = t * np.sqrt((deviations**2).sum(axis=0) / (count - 1) / count)
    p50, p90, p99 = (
        (float(value), (max(0.0, float(value - width)), float(value + width)))
        for value, width in zip(found, half, strict=True)
    )
    return Times(
        mean_ms=float(every.mean()),
        p50_ms=p50[0],
        p50_interval_ms=p50[1],
        p90_ms=p90[0],
        p90_interval_ms=p90[1],
        p99_ms=p99[0],
        p99_interval_ms=p99[1],
    )
