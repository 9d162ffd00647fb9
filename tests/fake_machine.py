"""A machine with a GPU and TensorRT, neither of them real, that the whole package takes for real.

See engines/fake_tensorrt.py and engines/fake_cuda.py; what the driver tells of the GPU is put in place of the driver.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from regnet_deploy.engines import gpu as gpu_module
from regnet_deploy.engines.gpu import Gpu
from regnet_deploy.engines.library import Library

H100 = Gpu("NVIDIA H100 80GB HBM3", "9.0", 132, 80 * 2**30, "580.95.05", "13.0")
A100 = Gpu("NVIDIA A100-SXM4-80GB", "8.0", 108, 80 * 2**30, "580.95.05", "13.0")
NEWEST = "11.4.0.106"

_ENGINES = Path(__file__).parent / "engines"


def load_fake(name: str) -> Any:
    """Import a module of engines/."""
    spec = importlib.util.spec_from_file_location(f"engines_{name}", _ENGINES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for themselves
    spec.loader.exec_module(module)
    return module


class FakeDriver:
    """The NVIDIA driver as ctypes sees it, with one GPU; without one where ``gpu`` is set to None."""

    def __init__(self, gpu: Gpu | None) -> None:
        self.gpu = gpu

    def here(self) -> FakeDriver | None:
        """Return what loading the driver's library and starting it gives."""
        return self if self.gpu else None

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = 1
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:
        return 0 if index == 0 else 101

    def cuDeviceGetAttribute(self, value: Any, which: int, device: Any) -> int:
        major, minor = map(int, self.gpu.compute_capability.split("."))
        value._obj.value = {16: self.gpu.multiprocessors, 75: major, 76: minor}[which]
        return 0

    def cuDeviceGetName(self, name: Any, length: int, device: Any) -> int:
        name.value = self.gpu.name.encode()
        return 0

    def cuDeviceTotalMem_v2(self, total: Any, device: Any) -> int:
        total._obj.value = self.gpu.memory_bytes
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:
        major, minor = map(int, self.gpu.cuda.split("."))
        version._obj.value = 1000 * major + 10 * minor
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> int:
        return 0

    def cuCtxPushCurrent_v2(self, context: Any) -> int:
        return 0

    def cuCtxPopCurrent_v2(self, context: Any) -> int:
        return 0

    def cuMemGetInfo_v2(self, free: Any, total: Any) -> int:
        free._obj.value = self.gpu.memory_bytes - 2**30
        return 0

    def cuDevicePrimaryCtxRelease_v2(self, device: Any) -> int:
        return 0


@dataclass
class Computer:
    """What tests change of the machine.

    Attributes:
        trt: the module ``tensorrt``.
        cuda: the module ``cuda.bindings.runtime``.
        driver: with the GPU; set its ``gpu`` and it is another machine.
    """

    trt: Any
    cuda: Any
    driver: FakeDriver

    @property
    def library(self) -> Library:
        return Library(self.trt, "tensorrt")

    @property
    def gpu(self) -> Gpu:
        assert self.driver.gpu is not None
        return self.driver.gpu

    @property
    def engine(self) -> Any:
        """The class of its engines, with ``_compute``."""
        return self.trt.ICudaEngine


def install(monkeypatch: pytest.MonkeyPatch, cache: Path, version: str = NEWEST) -> Computer:
    """Put the machine in place for a test; its caches lie in a folder of the test's."""
    real = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-bindings (extra [trt])")
    cuda = load_fake("fake_cuda").FakeCuda(real)
    trt: ModuleType = load_fake("fake_tensorrt").fake_tensorrt(version, cuda)
    trt.__spec__ = importlib.util.spec_from_loader("tensorrt", None)
    driver = FakeDriver(H100)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    monkeypatch.setattr(gpu_module, "_driver", driver.here)
    monkeypatch.setattr(gpu_module, "driver_version", lambda: driver.gpu and driver.gpu.driver)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return Computer(trt, cuda, driver)


def shifted(computer: Computer, monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Have the engines put out ``change(logits)``."""
    compute = computer.engine._compute
    view = sys.modules["engines_fake_tensorrt"].view
    ends = sys.modules["engines_fake_tensorrt"].ends

    def wrong(self: Any, addresses: dict[str, int], batch: int) -> None:
        compute(self, addresses, batch)
        leave = ends(self._inference)[1]
        logits = view(addresses[leave.name], (batch, leave.shape[1]))
        logits[:] = change(logits.copy())

    monkeypatch.setattr(computer.engine, "_compute", wrong)
