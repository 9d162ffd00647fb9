"""How busy the GPUs are, as NVIDIA's management library tells: no CUDA, no context, no memory of theirs taken."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import threading
from dataclasses import dataclass

#: NVML_TEMPERATURE_GPU of nvml.h.
_OF_THE_CHIP = 0


class _Utilisation(ctypes.Structure):
    """nvmlUtilization_t: percent of the last sample period."""

    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class _Memory(ctypes.Structure):
    """nvmlMemory_t: bytes."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


@dataclass(frozen=True)
class GpuState:
    """A GPU at one moment; None is what the driver does not tell of it.

    Attributes:
        index: by which the management library counts it, which knows nothing of ``CUDA_VISIBLE_DEVICES``.
        name: such as ``NVIDIA H100 80GB HBM3``.
        uuid: by which it is known everywhere.
        utilisation: share of the last moments in which it computed, 0 to 1.
        memory_used: bytes that all processes together have taken.
        memory_total: bytes.
        temperature: of the chip, degrees Celsius.
        power: watts.
    """

    index: int
    name: str
    uuid: str
    utilisation: float | None
    memory_used: int | None
    memory_total: int | None
    temperature: float | None
    power: float | None


def open_nvml() -> ctypes.CDLL | None:
    """Return NVIDIA's management library, started, or None: not there, or without a driver."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    return None if nvml.nvmlInit_v2() else nvml


def read_gpus(nvml: ctypes.CDLL) -> tuple[GpuState, ...]:
    """Return the state of all GPUs that the library shows; one that cannot be reached is left out."""
    count = ctypes.c_uint(0)
    if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return ()
    states = []
    for index in range(count.value):
        device = ctypes.c_void_p()
        if not nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)):
            states.append(_state(nvml, index, device))
    return tuple(states)


class GpuReader:
    """Reads the GPUs in a thread of its own, one reading at a time: a driver that hangs keeps nothing but itself."""

    def __init__(self) -> None:
        self._nvml: ctypes.CDLL | None = None
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
        except AttributeError:  # a library so old that it lacks a function
            self._nvml, self._opened = None, True
        finally:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
                loop.call_soon_threadsafe(_settle, reading, states)


def _settle(reading: asyncio.Future[tuple[GpuState, ...]], states: tuple[GpuState, ...]) -> None:
    if not reading.done():
        reading.set_result(states)


def _state(nvml: ctypes.CDLL, index: int, device: ctypes.c_void_p) -> GpuState:
    utilisation, memory = _Utilisation(), _Memory()
    temperature, milliwatts = ctypes.c_uint(0), ctypes.c_uint(0)
    has_utilisation = not nvml.nvmlDeviceGetUtilizationRates(device, ctypes.byref(utilisation))
    has_memory = not nvml.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory))
    has_temperature = not nvml.nvmlDeviceGetTemperature(device, _OF_THE_CHIP, ctypes.byref(temperature))
    has_power = not nvml.nvmlDeviceGetPowerUsage(device, ctypes.byref(milliwatts))
    return GpuState(
        index=index,
        name=_text(nvml.nvmlDeviceGetName, device),
        uuid=_text(nvml.nvmlDeviceGetUUID, device),
        utilisation=utilisation.gpu / 100 if has_utilisation else None,
        memory_used=memory.used if has_memory else None,
        memory_total=memory.total if has_memory else None,
        temperature=float(temperature.value) if has_temperature else None,
        power=milliwatts.value / 1000 if has_power else None,
    )


def _text(function: ctypes._NamedFuncPointer, device: ctypes.c_void_p) -> str:
    buffer = ctypes.create_string_buffer(96)
    return "" if function(device, buffer, ctypes.c_uint(len(buffer))) else buffer.value.decode("utf-8", "replace")
