"""Reads the state of NVIDIA GPUs by NVML, which creates no CUDA context and takes no GPU memory."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class GpuState:
    """A GPU at one moment. A value is None where the driver does not report it.

    Attributes:
        index: NVML's index, which does not depend on ``CUDA_VISIBLE_DEVICES``.
        name: such as ``NVIDIA H100 80GB HBM3``.
        uuid: unique identifier.
        utilization: share of the last sample period in which a kernel ran, 0 to 1.
        memory_used: bytes that all processes together use.
        memory_total: bytes.
        temperature: of the chip, degrees Celsius.
        power: watts.
    """

    index: int
    name: str
    uuid: str
    utilization: float | None
    memory_used: int | None
    memory_total: int | None
    temperature: float | None
    power: float | None


def open_nvml() -> Any:
    """Return the module ``pynvml`` (package nvidia-ml-py), initialized; None without the package or a driver."""
    try:
        import pynvml  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def read_gpus(nvml: Any) -> tuple[GpuState, ...]:
    """Return the state of every GPU that NVML can reach.

    Args:
        nvml: the module ``pynvml``.
    """
    states = []
    for index in range(_ask(nvml, nvml.nvmlDeviceGetCount) or 0):
        device = _ask(nvml, nvml.nvmlDeviceGetHandleByIndex, index)
        if device is not None:
            states.append(_read_gpu(nvml, index, device))
    return tuple(states)


class GpuReader:
    """Reads the GPUs in a daemon thread, one reading at a time: a driver that hangs does not block the server."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._opened = False
        self._reading: asyncio.Future[tuple[GpuState, ...]] | None = None

    async def read(self, timeout_s: float = 2.0) -> tuple[GpuState, ...]:
        """Return the state of all GPUs; empty where there are none or the driver does not answer in time."""
        if self._opened and self._nvml is None:
            return ()
        loop = asyncio.get_running_loop()
        if self._reading is None or self._reading.done():
            self._reading = loop.create_future()
            threading.Thread(target=self._work, args=(loop, self._reading), name="gpu-metrics", daemon=True).start()
        await asyncio.wait([self._reading], timeout=timeout_s)
        return self._reading.result() if self._reading.done() else ()

    def _work(self, loop: asyncio.AbstractEventLoop, reading: asyncio.Future[tuple[GpuState, ...]]) -> None:
        states: tuple[GpuState, ...] = ()
        try:
            if not self._opened:
                self._nvml = open_nvml()
                self._opened = True
            if self._nvml is not None:
                states = read_gpus(self._nvml)
        finally:
            with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_settle, reading, states)


def _settle(reading: asyncio.Future[tuple[GpuState, ...]], states: tuple[GpuState, ...]) -> None:
    if not reading.done():
        reading.set_result(states)


def _read_gpu(nvml: Any, index: int, device: Any) -> GpuState:
    utilization = _ask(nvml, nvml.nvmlDeviceGetUtilizationRates, device)
    memory = _ask(nvml, nvml.nvmlDeviceGetMemoryInfo, device)
    temperature = _ask(nvml, nvml.nvmlDeviceGetTemperature, device, nvml.NVML_TEMPERATURE_GPU)
    milliwatts = _ask(nvml, nvml.nvmlDeviceGetPowerUsage, device)
    return GpuState(
        index=index,
        name=_ask(nvml, nvml.nvmlDeviceGetName, device) or "",
        uuid=_ask(nvml, nvml.nvmlDeviceGetUUID, device) or "",
        utilization=None if utilization is None else utilization.gpu / 100,
        memory_used=None if memory is None else memory.used,
        memory_total=None if memory is None else memory.total,
        temperature=None if temperature is None else float(temperature),
        power=None if milliwatts is None else milliwatts / 1000,
    )


def _ask(nvml: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function of NVML returns; None where the driver reports an error or lacks the function."""
    try:
        return function(*arguments)
    except nvml.NVMLError:
        return None
