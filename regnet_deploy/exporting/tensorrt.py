"""TensorRT engines from an ONNX file: one path for TensorRT 10.9 and later, 11, and TensorRT-RTX.

Strongly typed: the engine computes in the types that the ONNX file has. The three share their interface, so the module
is an argument here. TensorRT builds on the GPU that will run the engine; TensorRT-RTX builds without one, for GPUs of
several generations (not the data-centre ones of compute capability 9.0 and 10.0).
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from regnet_deploy.bundle import Bundle
from regnet_deploy.errors import MissingExtra, RegnetDeployError, UsageError
from regnet_deploy.exporting.graph import INPUT, OUTPUT

#: Batch that kernels are chosen for, where the largest allows it.
_TUNED_BATCH = 8
#: For what an engine of TensorRT-RTX is built unless told otherwise; and later ones of the last family.
_RTX_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0")

Progress = Callable[[int, str], None]


@dataclass(frozen=True)
class Builder:
    """What can build here: the module, what the manifest calls its runtime, and the GPU's name where there is one."""

    module: ModuleType
    runtime: str
    gpu: str | None

    @property
    def version(self) -> str:
        """Version of the module."""
        return str(self.module.__version__)

    @property
    def variant(self) -> str:
        """Name of the variant that it builds."""
        return "trt-fp32" if self.runtime == "tensorrt" else "rtx-fp32"


def find_builder() -> Builder:
    """Return TensorRT where it and a GPU are there, TensorRT-RTX where that is.

    Raises:
        MissingExtra: neither can build here; the message says what is missing and how to get it.
    """
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    installed = importlib.util.find_spec("tensorrt") is not None
    if installed and gpu:
        return Builder(_load("tensorrt"), "tensorrt", gpu)
    if importlib.util.find_spec("tensorrt_rtx") is not None:
        return Builder(_load("tensorrt_rtx"), "tensorrt-rtx", gpu)
    here = "tensorrt is installed but PyTorch sees no CUDA GPU" if installed else "tensorrt is not installed"
    raise MissingExtra(
        f"no TensorRT engine was made: {here}; on a machine with an NVIDIA GPU pip install 'regnet-deploy[trt]', or "
        "build for RTX GPUs without one: pip install 'regnet-deploy[trt-rtx]'"
    )


def _load(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # its libraries are loaded at import
        raise UsageError(f"{name} is installed but cannot be loaded: {error}") from None


def build_engine(builder: Builder, onnx: bytes, side: int, max_batch: int, progress: Progress) -> bytes:
    """Build an engine for batches of 1 to ``max_batch`` images of ``side`` pixels a side.

    Args:
        builder: from :func:`find_builder`.
        onnx: an ONNX file with the float32 input.
        side: its height and width.
        max_batch: largest batch.
        progress: is told how many steps the phase that begins has, and its name; from other threads.

    Raises:
        RegnetDeployError: the file is not parsed (with the nodes' names) or the build fails (with TensorRT's reason).
    """
    trt = builder.module
    log = _log(trt)
    try:
        make = trt.Builder(log)
    except TypeError:  # what its binding makes of a driver that cannot be used
        raise _failure(builder, "does not start", log.errors) from None
    # A flag of TensorRT 10; version 11 knows nothing but strong typing and deprecates it.
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = make.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(onnx):
        reasons = [parser.get_error(i) for i in range(parser.num_errors)]
        named = [f"{reason.node_name() or 'the file'}: {reason.desc()}" for reason in reasons]
        raise _failure(builder, "does not parse the network", named)
    config = make.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 is meant, not float32 rounded to 10 bits
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    shapes = make.create_optimization_profile()
    shapes.set_shape(INPUT, *((batch, 3, side, side) for batch in (1, min(_TUNED_BATCH, max_batch), max_batch)))
    config.add_optimization_profile(shapes)
    monitor = _monitor(trt, progress)
    config.progress_monitor = monitor
    # In a thread of its own, so that Ctrl-C reaches this one; the monitor then ends the build at its next step.
    with ThreadPoolExecutor(1) as pool:
        try:
            plan = pool.submit(make.build_serialized_network, network, config).result()
        except BaseException:
            monitor.cancelled = True
            raise
    if plan is None:
        raise _failure(builder, "does not build the network", log.errors)
    return bytes(plan)


def identity(builder: Builder, onnx_sha256: str, max_batch: int) -> dict[str, Any]:
    """Return what an engine is made from and good for, as JSON data; a plan's bytes differ from build to build."""
    capability = ".".join(map(str, torch.cuda.get_device_capability())) if builder.gpu else None
    return {
        "onnx_sha256": onnx_sha256,
        "builder": f"{builder.runtime} {builder.version}",
        "gpu": builder.gpu if builder.runtime == "tensorrt" else None,
        "compute_capabilities": [capability] if builder.runtime == "tensorrt" else list(_RTX_CAPABILITIES),
        "options": {
            "strongly_typed": True,
            "tf32": False,
            "min_batch": 1,
            "tuned_batch": min(_TUNED_BATCH, max_batch),
            "max_batch": max_batch,
        },
    }


class EngineSession:
    """An engine on the GPU, with PyTorch's memory; a :class:`regnet_deploy.serving.runtime.Session`."""

    input = "float32"
    input_name, output_name = INPUT, OUTPUT

    def __init__(self, builder: Builder, plan: bytes, max_batch: int) -> None:
        log = _log(builder.module)
        self._runtime = builder.module.Runtime(log)  # lives as long as its engine
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise _failure(builder, f"does not load the engine on {builder.gpu}", log.errors)
        self._context = self._engine.create_execution_context()
        self._max_batch = max_batch
        self.runtime, self.device = f"{builder.runtime} {builder.version}", f"cuda:0 ({builder.gpu})"

    def run(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Return the logits, ``(n, classes)``, of normalised images ``(n, 3, h, w)``."""
        step = self._max_batch
        return np.concatenate([self._run(images[i : i + step]) for i in range(0, len(images), step)])

    def _run(self, images: NDArray[Any]) -> NDArray[np.float32]:
        on_gpu = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32)).cuda()
        self._context.set_input_shape(INPUT, tuple(on_gpu.shape))
        logits = torch.empty(tuple(self._context.get_tensor_shape(OUTPUT)), dtype=torch.float32, device="cuda")
        self._context.set_tensor_address(INPUT, on_gpu.data_ptr())
        self._context.set_tensor_address(OUTPUT, logits.data_ptr())
        stream = torch.cuda.current_stream()
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise RegnetDeployError(f"{self.runtime} does not run the engine on {self.device}")
        stream.synchronize()
        result: NDArray[np.float32] = logits.cpu().numpy()
        return result


def open_engine(bundle: Bundle, name: str) -> EngineSession:
    """Open an engine of a bundle, its bytes checked against the manifest.

    Raises:
        MissingExtra: TensorRT, or TensorRT-RTX, is not installed.
        UsageError: there is no GPU, another one than the engine is for, or another version than built it.
        BundleError: the file is damaged.
        RegnetDeployError: the engine does not load.
    """
    variant: dict[str, Any] = bundle.part("variants")[name]
    runtime, engine = variant["runtime"], variant.get("engine") or {}
    module = runtime.replace("-", "_")
    if importlib.util.find_spec(module) is None:
        extra = "trt" if runtime == "tensorrt" else "trt-rtx"
        raise MissingExtra(
            f"it is a {runtime} engine and {module} is not installed: on a machine with an NVIDIA GPU "
            f"pip install 'regnet-deploy[{extra}]'"
        )
    if not torch.cuda.is_available():
        raise UsageError(f"it is a {runtime} engine and PyTorch sees no CUDA GPU")
    builder = Builder(_load(module), runtime, torch.cuda.get_device_name())
    built_by, here = engine.get("builder"), f"{runtime} {builder.version}"
    if built_by != here:
        raise UsageError(f"it was built by {built_by} and this machine has {here}")
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    if runtime == "tensorrt" and (engine["gpu"], engine["compute_capabilities"]) != (builder.gpu, [capability]):
        raise UsageError(f"it was built for {engine['gpu']} and this machine has {builder.gpu}")
    return EngineSession(builder, bundle.read(variant["file"]), engine["options"]["max_batch"])


def _failure(builder: Builder, what: str, reasons: list[str]) -> RegnetDeployError:
    """Return the error of one line for what TensorRT says in several."""
    more = f" (and {len(reasons) - 3} more)" if len(reasons) > 3 else ""
    return RegnetDeployError(
        f"{builder.runtime} {builder.version} {what}: {'; '.join(reasons[:3]) or 'no reason given'}{more}"
    )


def _log(trt: ModuleType) -> Any:
    """Return a logger that keeps what went wrong, for the one line that the user sees, and prints nothing."""

    class Log(trt.ILogger):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message.strip())

    return Log()


def _monitor(trt: ModuleType, progress: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.cancelled = False

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            progress(steps, phase)

        def phase_finish(self, phase: str) -> None:
            pass

        def step_complete(self, phase: str, step: int) -> bool:
            return not self.cancelled

    return Monitor()
