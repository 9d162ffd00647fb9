"""What the machine is set to and what happens to it during a measurement: clocks, throttling, and the load of others.

CPUs are read from sysfs and GPUs by NVML, which a Jetson lacks in part: there sysfs has the GPU too. Virtual machines
have few of these files. What cannot be read is None, never a guess.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from regnet_deploy.cpu import available_cpus
from regnet_deploy.cpu_load import OtherLoad
from regnet_deploy.engines.gpu import driver_version
from regnet_deploy.latency.measurement import GpuMachineState, MachineState, MeasuredMachine
from regnet_deploy.profiling.machine import describe_machine
from regnet_deploy.runtimes.tuned_settings import machine_summary

_ROOT = Path("/")
#: Bits of NVML's reasons that slow a GPU down; being idle and clocks that are set are not among them.
_THROTTLE_REASONS = {
    0x04: "sw_power_cap",
    0x08: "hw_slowdown",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
}
#: Ends of the names that the GPUs of Jetsons have in /sys/class/devfreq.
_JETSON_GPUS = ("gpu", ".gv11b", ".ga10b", ".gp10b", ".gm20b")


class MachineWatch:
    """Watches the machine from when it is made on; see :func:`watch_machine`."""

    def __init__(self, device: str, root: Path = _ROOT, nvml: Any = None) -> None:
        self._root, self._gpu = root, _open_gpu(nvml) if device != "cpu" else None
        self._on_gpu = device != "cpu"
        self._gpu_before = self._read_gpu()
        self._throttles, self._clock = _throttle_counts(root), _cpu_clock_mhz(root)
        self._load = OtherLoad()

    def state(self) -> MachineState:
        """Return what happened since the start; call it immediately after the last inference."""
        clock, throttles = _cpu_clock_mhz(self._root), _throttle_counts(self._root)
        gpu = self._read_gpu()
        busy = self._load.contended_cores()
        return MachineState(
            clock_mhz_before=self._clock,
            clock_mhz_after=clock,
            throttled=any(now > self._throttles.get(name, now) for name, now in throttles.items())
            if throttles
            else None,
            busy_cores=None if busy is None else round(busy, 3),
            cpus=available_cpus(),
            gpu=_joined(self._gpu_before, gpu) if gpu and self._gpu_before else None,
        )

    def _read_gpu(self) -> GpuMachineState | None:
        if not self._on_gpu:
            return None
        return _nvidia_gpu(*self._gpu) if self._gpu and not _jetson_gpu(self._root) else _jetson_state(self._root)


def measured_machine(root: Path = _ROOT) -> MeasuredMachine:
    """Return what identifies this machine for the time of a network, with what its owner has set."""
    gpu, jetson = _open_gpu(None), _jetson_gpu(root)
    limit_w = _ask(gpu[0], gpu[0].nvmlDeviceGetPowerManagementLimit, gpu[1]) if gpu else None
    governors = sorted(
        {name for cpu in _allowed_cpus() if (name := _text(_cpu(root, cpu) / "cpufreq/scaling_governor"))}
    )
    limits = [mhz for cpu in _allowed_cpus() if (mhz := _number(_cpu(root, cpu) / "cpufreq/scaling_max_freq", 1e-3))]
    board = _text(root / "proc/device-tree/model") or _text(root / "sys/class/dmi/id/product_name")
    summary = machine_summary()
    return MeasuredMachine(
        cpu=summary.cpu,
        cores=summary.cores,
        instructions=summary.instructions,
        gpu=summary.gpu,
        system=describe_machine().system,
        board=board,
        driver=driver_version(),
        governor=", ".join(governors) or None,
        boost=_boost(root),
        cpu_limit_mhz=max(limits, default=None),
        gpu_limit_mhz=_number(jetson / "max_freq", 1e-6) if jetson else None,
        gpu_limit_w=limit_w / 1000 if limit_w is not None else None,
    )


def watch_machine(device: str) -> MachineWatch:
    """Start to watch the machine for a measurement on ``cpu`` or a GPU."""
    return MachineWatch(device)


def measuring_refused_reason(state: MachineState) -> str | None:
    """Return why times that are measured in this state are not those of an undisturbed machine, or None."""
    reasons = []
    if state.is_busy:
        parts = []
        if state.busy_cores is not None:
            parts.append(f"{state.busy_cores:.2g} of the {state.cpus:g} CPUs that it may use")
        if state.gpu and state.gpu.busy_share is not None:
            parts.append(f"the GPU for {state.gpu.busy_share:.0%} of the time")
        reasons.append(f"other programs keep {' and '.join(parts)} busy (10 % is the limit)")
    if state.is_throttled:
        found = ", ".join(state.gpu.throttle_reasons or ()) if state.gpu else ""
        reasons.append(f"the GPU is throttled ({found})" if found else "the CPU is throttled")
    return f"the machine cannot be measured now: {'; '.join(reasons)}" if reasons else None


def _joined(before: GpuMachineState, after: GpuMachineState) -> GpuMachineState:
    known = [each.throttle_reasons for each in (before, after) if each.throttle_reasons is not None]
    return after.replace(
        clock_mhz_before=before.clock_mhz_before,
        busy_share=before.busy_share,
        throttle_reasons=tuple(sorted({name for each in known for name in each})) if known else None,
    )


def _nvidia_gpu(nvml: Any, device: Any) -> GpuMachineState:
    clock = _ask(nvml, nvml.nvmlDeviceGetClockInfo, device, nvml.NVML_CLOCK_SM)
    memory_clock = _ask(nvml, nvml.nvmlDeviceGetClockInfo, device, nvml.NVML_CLOCK_MEM)
    mask = _ask(nvml, nvml.nvmlDeviceGetCurrentClocksThrottleReasons, device)
    utilization = _ask(nvml, nvml.nvmlDeviceGetUtilizationRates, device)
    temperature = _ask(nvml, nvml.nvmlDeviceGetTemperature, device, nvml.NVML_TEMPERATURE_GPU)
    return GpuMachineState(
        clock_mhz_before=clock,
        clock_mhz_after=clock,
        memory_clock_mhz=memory_clock,
        throttle_reasons=None if mask is None else tuple(n for bit, n in _THROTTLE_REASONS.items() if mask & bit),
        busy_share=None if utilization is None else utilization.gpu / 100,
        temperature=temperature,
    )


def _jetson_gpu(root: Path) -> Path | None:
    folders = sorted((root / "sys/class/devfreq").glob("*"))
    return next((each for each in folders if each.name.endswith(_JETSON_GPUS)), None)


def _jetson_state(root: Path) -> GpuMachineState | None:
    folder = _jetson_gpu(root)
    if folder is None:
        return None
    clock = _number(folder / "cur_freq", 1e-6)
    load = next(
        (
            root / each
            for each in ("sys/devices/platform/gpu.0/load", "sys/devices/gpu.0/load")
            if (root / each).exists()
        ),
        None,
    )
    return GpuMachineState(
        clock_mhz_before=clock, clock_mhz_after=clock, busy_share=_number(load, 1e-3) if load else None
    )


def _open_gpu(nvml: Any) -> tuple[Any, Any] | None:
    """Return the module ``pynvml`` and its handle of the first GPU that this process may use; None without one."""
    if nvml is None:
        try:
            import pynvml  # type: ignore[import-not-found, import-untyped, unused-ignore]
        except ImportError:
            return None
        nvml = pynvml
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    try:
        nvml.nvmlInit()
        if first.startswith(("GPU-", "MIG-")):
            return nvml, nvml.nvmlDeviceGetHandleByUUID(first)
        return (nvml, nvml.nvmlDeviceGetHandleByIndex(int(first))) if first.isdecimal() else None
    except nvml.NVMLError:
        return None


def _ask(nvml: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except nvml.NVMLError:
        return None


def _cpu_clock_mhz(root: Path) -> float | None:
    clocks = [mhz for cpu in _allowed_cpus() if (mhz := _number(_cpu(root, cpu) / "cpufreq/scaling_cur_freq", 1e-3))]
    return round(statistics.mean(clocks), 1) if clocks else None


def _throttle_counts(root: Path) -> dict[str, float]:
    files = [
        _cpu(root, cpu) / f"thermal_throttle/{what}_throttle_count"
        for cpu in _allowed_cpus()
        for what in ("core", "package")
    ]
    return {str(file): count for file in files if (count := _number(file, 1)) is not None}


def _boost(root: Path) -> bool | None:
    no_turbo = _text(root / "sys/devices/system/cpu/intel_pstate/no_turbo")
    if no_turbo is not None:
        return no_turbo == "0"
    boost = _text(root / "sys/devices/system/cpu/cpufreq/boost")
    return None if boost is None else boost == "1"


def _cpu(root: Path, cpu: int) -> Path:
    return root / f"sys/devices/system/cpu/cpu{cpu}"


def _allowed_cpus() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else []


def _number(path: Path, scale: float) -> float | None:
    try:
        return float(_text(path) or "") * scale
    except ValueError:
        return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n") or None
    except OSError:
        return None
