"""Finds and loads TensorRT or TensorRT-RTX, and checks that the version is supported.

Both have the same interface, so the functions of this package take the library as an argument. TensorRT builds on the
GPU that will run the engine; TensorRT-RTX builds without a GPU, for GPUs of several generations.
"""

from __future__ import annotations

import importlib
import importlib.util
import platform
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Literal

from regnet_deploy.engines.gpu import Gpu, find_gpu
from regnet_deploy.errors import MissingExtra, UsageError

EngineRuntime = Literal["tensorrt", "tensorrt-rtx"]
#: Runtimes of engines, with their names in the manifest.
RUNTIMES: tuple[EngineRuntime, ...] = ("tensorrt", "tensorrt-rtx")

_PREFIXES = {"tensorrt": "trt", "tensorrt-rtx": "rtx"}
_EXTRAS = {"tensorrt": "trt", "tensorrt-rtx": "trt-rtx"}
#: First supported version, and last supported major version.
_FLOORS = {"tensorrt": (10, 9), "tensorrt-rtx": (1, 7)}
_NEWEST_MAJOR = {"tensorrt": 11, "tensorrt-rtx": 1}
#: Compute capabilities of NVIDIA's Jetson modules that have a TensorRT of their own, in JetPack. Wheels for aarch64 are
#: for servers and newer modules, and have no kernels for these.
_JETSON = {"5.3": "Nano", "6.2": "TX2", "7.2": "Xavier", "8.7": "Orin"}
#: CUDA versions for which there are wheels, the newest first.
_WHEELS_FOR = ("cu14", "cu13", "cu12")


@dataclass(frozen=True)
class Library:
    """A library that builds and runs engines.

    Attributes:
        module: the imported module.
        runtime: its name in the manifest.
    """

    module: ModuleType
    runtime: EngineRuntime

    @property
    def version(self) -> str:
        """Its full version."""
        return str(self.module.__version__)

    @property
    def toolkit(self) -> str | None:
        """CUDA version of its wheel, such as ``cu13``; None if it was not installed as a wheel."""
        installed = {}
        for cuda in _WHEELS_FOR:
            with suppress(metadata.PackageNotFoundError):
                installed[cuda] = metadata.distribution(f"{self.runtime}-{cuda}-libs")
        # Wheels for several CUDA versions overwrite each other's files: the one that is loaded is complete.
        complete = [cuda for cuda, wheel in installed.items() if wheel.version == self.version and _is_complete(wheel)]
        return next(iter([*complete, *installed]), None)

    def __str__(self) -> str:
        return f"{self.runtime} {self.version}"

    def variant(self, precision: str) -> str:
        """Return the name of the variant of engines that it builds, such as ``trt-fp16`` or ``rtx-fp16``."""
        return f"{_PREFIXES[self.runtime]}-{precision}"


def find_library(gpu: Gpu | None, runtime: EngineRuntime | None = None) -> Library:
    """Return the library that builds engines here: TensorRT if it is installed and there is a GPU, else TensorRT-RTX.

    Args:
        gpu: of this machine, from :func:`regnet_deploy.engines.gpu.find_gpu`.
        runtime: requested runtime; by default the first one that can build.

    Raises:
        MissingExtra: neither can build here; the message says how to install what is missing.
        UsageError: it cannot be loaded, or its version is not supported.
    """
    installed = _is_installed("tensorrt")
    jetson = _jetson()
    if runtime != "tensorrt-rtx" and installed and gpu is not None:
        return load_library("tensorrt")
    if runtime != "tensorrt" and _is_installed("tensorrt-rtx"):
        return load_library("tensorrt-rtx")
    if runtime == "tensorrt-rtx" or jetson is not None:
        raise _not_installed(runtime or "tensorrt")
    here = "tensorrt is installed but the NVIDIA driver shows no GPU" if installed else "tensorrt is not installed"
    other = "" if runtime else (", or build for RTX GPUs without one: pip install 'regnet-deploy[trt-rtx]'")
    raise MissingExtra(
        f"no TensorRT engine can be built: {here}; on a machine with an NVIDIA GPU "
        f"pip install 'regnet-deploy[trt]'{other}"
    )


def load_library(runtime: EngineRuntime) -> Library:
    """Load TensorRT or TensorRT-RTX.

    Raises:
        MissingExtra: it is not installed.
        UsageError: it cannot be loaded, or its version is not supported.
    """
    name = runtime.replace("-", "_")
    if not _is_installed(runtime):
        raise _not_installed(runtime)
    try:
        library = Library(importlib.import_module(name), runtime)
    except (ImportError, OSError) as error:  # the import loads its shared libraries
        raise UsageError(f"{name} is installed but cannot be loaded: {' '.join(str(error).split())}") from None
    jetson = _jetson()
    if jetson is not None and library.toolkit is not None:
        raise UsageError(f"{library} was installed by pip: {_on_jetson(jetson)}")
    floor, newest = _FLOORS[runtime], _NEWEST_MAJOR[runtime]
    version, first = version_numbers(library.version), ".".join(map(str, floor))
    if jetson is not None and version < floor:
        raise UsageError(f"{library} is older than {first}: {_on_jetson(jetson)}")
    if not floor <= version < (newest + 1,):
        raise UsageError(
            f"{library} is {'older' if version < floor else 'newer'} than what this version of regnet-deploy knows, "
            f"which is {first} to {newest}: pip install '{runtime}>={first},<{newest + 1}'"
        )
    return library


def lean_runtime(version: str) -> Path | None:
    """Return the library of TensorRT's lean runtime of exactly this version, or None if its wheel is not installed."""
    for cuda in _WHEELS_FOR:
        with suppress(metadata.PackageNotFoundError):
            found = metadata.distribution(f"tensorrt-lean-{cuda}-libs")
            if found.version == version:
                for file in found.files or []:
                    if file.name.startswith("libnvinfer_lean.so"):
                        return Path(str(found.locate_file(file)))
    return None


def lean_wheel(version: str, toolkit: str | None) -> str:
    """Return which lean runtime an engine of a version needs and how to install it."""
    return f"the lean runtime of its own version, pip install tensorrt-lean-{toolkit or _WHEELS_FOR[1]}-libs=={version}"


def version_numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version, for comparisons."""
    numbers = []
    for part in version.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def _is_complete(wheel: metadata.Distribution) -> bool:
    """Tell whether the libraries of a wheel have the sizes that it records, and so are not those of another wheel."""
    for file in wheel.files or []:
        if ".so" in file.name and file.size is not None:
            path = Path(str(wheel.locate_file(file)))
            if not path.is_file() or path.stat().st_size != file.size:
                return False
    return True


def _is_installed(runtime: EngineRuntime) -> bool:
    return importlib.util.find_spec(runtime.replace("-", "_")) is not None


def _jetson() -> Gpu | None:
    """Return the GPU of this machine if it is a Jetson module whose TensorRT is that of JetPack."""
    gpu = find_gpu() if platform.machine() == "aarch64" else None
    return gpu if gpu is not None and gpu.compute_capability in _JETSON else None


def _on_jetson(gpu: Gpu) -> str:
    """Return why engines are not supported on a Jetson module, and what to do instead."""
    first = ".".join(map(str, _FLOORS["tensorrt"]))
    return (
        f"engines on {gpu.name}, a Jetson {_JETSON[gpu.compute_capability]} (compute capability "
        f"{gpu.compute_capability}), need a JetPack with TensorRT {first} or later, because TensorRT's wheels have no "
        "kernels for it; without one run an ONNX variant (export --onnx, serve --device cpu)"
    )


def _not_installed(runtime: EngineRuntime) -> MissingExtra:
    jetson = _jetson()
    if jetson is not None:
        return MissingExtra(f"{runtime} is not installed: {_on_jetson(jetson)}")
    return MissingExtra(
        f"{runtime} is not installed: on a machine with an NVIDIA GPU pip install 'regnet-deploy[{_EXTRAS[runtime]}]'"
    )
