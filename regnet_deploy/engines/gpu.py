"""Properties of the GPUs of this machine, from the library of the NVIDIA driver alone."""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from pathlib import Path

#: Numbers of attributes of cuDeviceGetAttribute, from cuda.h.
_MULTIPROCESSORS, _MAJOR, _MINOR = 16, 75, 76

_DRIVER_FILES = ("/sys/module/nvidia/version", "/proc/driver/nvidia/version")
_VERSION = re.compile(r"\b\d{3,}\.\d+(?:\.\d+)*\b")


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        name: such as ``NVIDIA H100 80GB HBM3``; for a MIG slice, with the slice.
        compute_capability: such as ``9.0``.
        multiprocessors: number of streaming multiprocessors that this process may use.
        memory_bytes: size of its memory.
        driver: version of the driver, such as ``580.95.05``; None if it is not known.
        cuda: newest CUDA version that the driver supports, such as ``13.0``.
    """

    name: str
    compute_capability: str
    multiprocessors: int
    memory_bytes: int
    driver: str | None
    cuda: str


def find_gpu(index: int = 0) -> Gpu | None:
    """Return the GPU with this index among those that the driver shows to this process, or None."""
    driver = _driver()
    device, version, total = ctypes.c_int(0), ctypes.c_int(0), ctypes.c_size_t(0)
    name = ctypes.create_string_buffer(256)
    if driver is None or driver.cuDeviceGet(ctypes.byref(device), index):
        return None
    numbers = [_attribute(driver, device, which) for which in (_MAJOR, _MINOR, _MULTIPROCESSORS)]
    failed = (
        driver.cuDeviceGetName(name, len(name), device)
        or driver.cuDeviceTotalMem_v2(ctypes.byref(total), device)
        or driver.cuDriverGetVersion(ctypes.byref(version))
    )
    if failed or None in numbers:
        return None
    major, minor, multiprocessors = numbers
    return Gpu(
        name=name.value.decode("utf-8", "replace"),
        compute_capability=f"{major}.{minor}",
        multiprocessors=multiprocessors or 0,
        memory_bytes=total.value,
        driver=driver_version(),
        cuda=f"{version.value // 1000}.{version.value % 1000 // 10}",
    )


def free_memory(index: int = 0) -> int | None:
    """Return the free memory of a GPU in bytes, or None if the driver does not report it.

    The driver reports it only within a context, which itself needs memory. The context is released afterwards.
    """
    driver = _driver()
    device, context, old = ctypes.c_int(0), ctypes.c_void_p(), ctypes.c_void_p()
    free, total = ctypes.c_size_t(0), ctypes.c_size_t(0)
    if driver is None or driver.cuDeviceGet(ctypes.byref(device), index):
        return None
    if driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device):
        return None
    try:
        if driver.cuCtxPushCurrent_v2(context):
            return None
        failed = driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        driver.cuCtxPopCurrent_v2(ctypes.byref(old))
        return None if failed else free.value
    finally:
        driver.cuDevicePrimaryCtxRelease_v2(device)


def driver_version() -> str | None:
    """Return the version of the loaded NVIDIA driver, or None."""
    for path in _DRIVER_FILES:
        try:
            found = _VERSION.search(Path(path).read_text(encoding="utf-8", errors="replace"))
        except OSError:
            continue
        if found:
            return found.group()
    return None


def _driver() -> ctypes.CDLL | None:
    """Return the initialized library of the driver, or None if there is no driver or no usable GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return None if driver.cuInit(0) else driver


def _attribute(driver: ctypes.CDLL, device: ctypes.c_int, which: int) -> int | None:
    value = ctypes.c_int(0)
    return None if driver.cuDeviceGetAttribute(ctypes.byref(value), which, device) else value.value
