"""Clocks, throttling and load come from files and from NVML; what a machine does not report is not known."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from regnet_deploy.latency.machine_state import MachineWatch, measured_machine, measuring_refused_reason
from regnet_deploy.latency.measurement import GpuMachineState, MachineState


class FakeNvml:
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    clock, reasons, fails = 1980, 0x1, False

    class NVMLError(Exception):
        pass

    def nvmlInit(self) -> None:
        if self.fails:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetClockInfo(self, device: int, kind: int) -> int:
        return self.clock if kind == self.NVML_CLOCK_SM else 2619

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, device: int) -> int:
        return self.reasons

    def nvmlDeviceGetUtilizationRates(self, device: int) -> Any:
        return SimpleNamespace(gpu=25)

    def nvmlDeviceGetTemperature(self, device: int, sensor: int) -> int:
        raise self.NVMLError("Not Supported")


def write(root: Path, files: dict[str, object]) -> None:
    for name, value in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")


@pytest.fixture
def one_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)


CPU0 = "sys/devices/system/cpu/cpu0"


@pytest.mark.usefixtures("one_cpu")
def test_clocks_and_throttling_of_the_cpus_are_read_before_and_after(tmp_path: Path) -> None:
    count = f"{CPU0}/thermal_throttle/core_throttle_count"
    write(tmp_path, {f"{CPU0}/cpufreq/scaling_cur_freq": 2_400_000, count: 3})
    watch = MachineWatch("cpu", tmp_path)
    assert watch.state().throttled is False
    write(tmp_path, {f"{CPU0}/cpufreq/scaling_cur_freq": 1_800_000, count: 4})
    state = watch.state()
    assert (state.clock_mhz_before, state.clock_mhz_after, state.throttled, state.gpu) == (2400, 1800, True, None)
    assert "the CPU is throttled" in (measuring_refused_reason(state) or "")


@pytest.mark.usefixtures("one_cpu")
def test_a_machine_without_these_files_reports_nothing(tmp_path: Path) -> None:
    state = MachineWatch("cpu", tmp_path).state()
    assert (state.clock_mhz_before, state.clock_mhz_after, state.throttled) == (None, None, None)
    machine = measured_machine(tmp_path)
    assert (machine.governor, machine.boost, machine.board, machine.cpu_limit_mhz) == (None, None, None, None)


@pytest.mark.usefixtures("one_cpu")
def test_what_the_owner_has_set_is_part_of_the_machine(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            f"{CPU0}/cpufreq/scaling_governor": "powersave",
            f"{CPU0}/cpufreq/scaling_max_freq": 1_500_000,
            "sys/devices/system/cpu/intel_pstate/no_turbo": 1,
            "proc/device-tree/model": "NVIDIA Jetson Orin Nano\0",
            "sys/class/devfreq/17000000.gpu/max_freq": 625_000_000,
        },
    )
    machine = measured_machine(tmp_path)
    assert (machine.governor, machine.boost, machine.cpu_limit_mhz) == ("powersave", False, 1500)
    assert (machine.board, machine.gpu_limit_mhz) == ("NVIDIA Jetson Orin Nano", 625)


def test_a_gpu_is_read_by_nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    nvml = FakeNvml()
    watch = MachineWatch("cuda", tmp_path, nvml)
    nvml.clock, nvml.reasons = 1200, 0x1 | 0x20
    assert watch.state().gpu == GpuMachineState(
        clock_mhz_before=1980,
        clock_mhz_after=1200,
        memory_clock_mhz=2619,
        throttle_reasons=("sw_thermal_slowdown",),
        busy_share=0.25,
    )
    nvml.fails = True
    assert MachineWatch("cuda", tmp_path, nvml).state().gpu is None


def test_the_gpu_of_a_jetson_is_read_from_files(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"sys/class/devfreq/17000000.ga10b/cur_freq": 306_000_000, "sys/devices/platform/gpu.0/load": 420},
    )
    gpu = MachineWatch("cuda", tmp_path, FakeNvml()).state().gpu
    assert gpu is not None
    assert (gpu.clock_mhz_after, gpu.busy_share, gpu.throttle_reasons) == (306, pytest.approx(0.42), None)


def test_a_busy_or_throttled_machine_is_refused_in_one_line() -> None:
    assert measuring_refused_reason(MachineState(cpus=2, busy_cores=0.1)) is None
    assert measuring_refused_reason(MachineState(cpus=2)) is None
    busy = measuring_refused_reason(MachineState(cpus=2, busy_cores=1.3)) or ""
    assert "1.3 of the 2 CPUs that it may use" in busy
    gpu = GpuMachineState(busy_share=0.9, throttle_reasons=("hw_slowdown",))
    both = measuring_refused_reason(MachineState(cpus=2, gpu=gpu)) or ""
    assert "the GPU for 90% of the time" in both
    assert "the GPU is throttled (hw_slowdown)" in both
