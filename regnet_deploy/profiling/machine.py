"""Describes the machine and the libraries of a measurement. Imports nothing heavy."""

from __future__ import annotations

import os
import platform
import sys
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from regnet_deploy import __version__
from regnet_deploy.bundle.measurements import Machine
from regnet_deploy.cpu import available_cores, available_memory, cpu_model

#: Distributions whose version can change a result.
LIBRARIES = (
    "numpy",
    "torch",
    "fvcore",
    "onnx",
    "onnxruntime",
    "openvino",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-cu12",
    "tensorrt-cu12-bindings",
    "tensorrt-cu13",
    "tensorrt-cu13-bindings",
    "tensorrt-rtx-cu13",
    "cuda-bindings",
    "safetensors",
    "pillow",
)


def describe_machine() -> Machine:
    """Describe the machine that runs this."""
    return Machine(
        cpu=cpu_model(),
        cores=available_cores(),
        memory_bytes=available_memory(),
        system=_system(),
        python=platform.python_version(),
        gpus=_gpus(),
        versions={"regnet-deploy": __version__, **_versions()},
    )


def busy_cores(seconds: float = 0.25) -> float | None:
    """Return how many cores other programs use while this one sleeps; None if the system does not report it."""
    before = _busy_ticks()
    time.sleep(seconds)
    after = _busy_ticks()
    if before is None or after is None:
        return None
    return round((after - before) / os.sysconf("SC_CLK_TCK") / seconds, 2)


def environment(command: str) -> dict[str, Any]:
    """Return the entry of a command in the part ``environment``: versions, machine and time."""
    machine = describe_machine()
    written = {
        **machine.versions,
        "python": machine.python,
        "cpu": machine.cpu,
        "system": machine.system,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return {command: written}


def _busy_ticks() -> int | None:
    lines = _lines("/proc/stat")
    if not lines:
        return None
    ticks = [int(field) for field in lines[0].split()[1:9]]  # user, nice, system, idle, iowait, irq, softirq, steal
    return sum(ticks) - ticks[3] - ticks[4]


def _versions() -> dict[str, str]:
    installed = {}
    for name in LIBRARIES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


def _system() -> str:
    kernel = f"{platform.system()} {platform.release()}"
    if sys.platform != "linux":
        return kernel
    try:
        return f"{platform.freedesktop_os_release()['PRETTY_NAME']}, {kernel}"
    except (OSError, KeyError):
        return kernel


def _gpus() -> tuple[str, ...]:
    names = []
    for folder in sorted(Path("/proc/driver/nvidia/gpus").glob("*")):
        for line in _lines(str(folder / "information")):
            if line.startswith("Model:"):
                names.append(line.partition(":")[2].strip())
    return tuple(names)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
