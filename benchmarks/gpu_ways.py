"""Ways to run a network. Each returns, for a batch size, a call that runs one inference.

Images ``(n, 3, h, w)`` in FP32 and logits are in the memory of the device. The conversion of the images to the type of
the way is measured; the copies to and from the host are not.
"""

from __future__ import annotations

import copy
import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from gpu_networks import Subject

from regnet_deploy.engines.gpu import Gpu, find_gpu
from regnet_deploy.errors import RegnetDeployError
from regnet_deploy.images.preprocessing import default_preprocessing
from regnet_deploy.models.anynet import AnyNet

#: Precisions in the order of measurement. ``tf32`` is the FP32 network with factors rounded to 10 bits.
PRECISIONS = ("fp16", "int8", "int8-1x1", "fp32", "tf32", "bf16", "fp8-1x1", "int8-cpu")
_TORCH = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_SEED = 0

Timed = Callable[[], float]
#: Number of images for the ranges of quantized tensors.
_RANGED = 8


@dataclass(frozen=True, eq=False)
class Prepared:
    """A way that is ready to run.

    Attributes:
        timed: runs one inference and returns its seconds.
        facts: what its row says beside the times: ``runtime``, and more of some ways.
    """

    timed: Timed
    facts: dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """The device and the libraries of the measurement.

    Attributes:
        device: ``cuda`` or ``cpu``.
        gpu: as the driver tells of it.
        threads: of the CPU.
    """

    device: str
    gpu: Gpu | None
    threads: int


def here(cpu: bool, threads: int) -> Setting:
    """Return the setting of this machine.

    Raises:
        SystemExit: PyTorch sees no GPU, and it is not to be the CPU.
    """
    if cpu:
        return Setting("cpu", None, threads)
    if not torch.cuda.is_available():
        raise SystemExit(
            "gpu.py: PyTorch sees no CUDA device here: this measures GPUs (--cpu --output FILE tries the program out)"
        )
    return Setting("cuda", find_gpu(), threads)


@dataclass(eq=False)
class Opened:
    """A network with weights and files that several ways share; untrained, because times do not depend on values."""

    subject: Subject
    _files: dict[str, bytes] = field(default_factory=dict)

    @cached_property
    def model(self) -> torch.nn.Module:
        """The model in PyTorch."""
        return AnyNet(self.subject.network, self.subject.classes, seed=_SEED).eval()

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """The weights by name."""
        return {key: value.numpy() for key, value in self.model.state_dict().items()}

    def onnx(self, precision: str) -> bytes:
        """Return the ONNX file of a precision."""
        name = file_precision(precision)
        if name not in self._files:
            from regnet_deploy.exporting.onnx_graph import build_onnx
            from regnet_deploy.exporting.precision import find_precision

            typed, preprocessing = find_precision(name), default_preprocessing(self.subject.resolution)
            ranges = self.ranges if typed.needs_ranges else None
            self._files[name] = build_onnx(self.subject.network, self.weights, preprocessing, typed, ranges)
        return self._files[name]

    @cached_property
    def ranges(self) -> dict[str, Any]:
        """Ranges of the activations on seeded noise; constant ranges without ONNX Runtime, which measures them."""
        from regnet_deploy.exporting.onnx_graph import activation_names
        from regnet_deploy.exporting.quantization import TensorRange

        tensors = activation_names(self.subject.network, self.weights)
        if importlib.util.find_spec("onnxruntime") is None:
            return {tensor: TensorRange(-4.0, 4.0) for tensor in tensors}
        from regnet_deploy.exporting.activation_ranges import compute_ranges, observe_activations

        side = self.subject.resolution
        pixels = np.random.default_rng(_SEED).integers(0, 256, (_RANGED, side, side, 3), dtype=np.uint8)
        observed = observe_activations(self.onnx("fp32"), tensors, pixels, default_preprocessing(side))
        return dict(compute_ranges(observed, "minmax"))

    def images(self, batch: int) -> np.ndarray:
        """Return images, ``(batch, 3, h, w)`` float32."""
        side = self.subject.resolution
        return np.random.default_rng(_SEED).standard_normal((batch, 3, side, side), dtype=np.float32)


@dataclass(frozen=True)
class Way:
    """A way to run networks.

    Attributes:
        name: as it is shown.
        precisions: that it has.
        why_not: why it cannot be had here, or None.
        prepare: returns the call of a network, a precision and a batch size.
        side: ``ours`` or ``timm``: whose model of the network it is.
        slow: whether it takes minutes to prepare, so that it is left for last.
    """

    name: str
    precisions: tuple[str, ...]
    why_not: Callable[[Setting], str | None]
    prepare: Callable[[Setting, Opened, str, int], Prepared]
    side: str = "ours"
    slow: bool = False


def file_precision(precision: str) -> str:
    """Return the exported precision that a measured precision runs."""
    return "fp32" if precision == "tf32" else precision


def set_torch(tf32: bool) -> None:
    """Let PyTorch try all algorithms of cuDNN, and set whether it may round FP32 factors to the 10 bits of TF32.

    One for the process.
    """
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32


def forget_compiled() -> None:
    """Clear the compiled networks of PyTorch, which compiles a limited number from the same code."""
    torch._dynamo.reset()


def _eager(setting: Setting, opened: Opened, precision: str, batch: int) -> Prepared:
    return _torch_call(setting, opened.model, opened, precision, batch)


def _compiled(setting: Setting, opened: Opened, precision: str, batch: int) -> Prepared:
    return _torch_call(setting, opened.model, opened, precision, batch, compiled=True)


def _timm(setting: Setting, opened: Opened, precision: str, batch: int) -> Prepared:
    return _torch_call(setting, _timm_model(opened.subject), opened, precision, batch)


def _timm_compiled(setting: Setting, opened: Opened, precision: str, batch: int) -> Prepared:
    return _torch_call(setting, _timm_model(opened.subject), opened, precision, batch, compiled=True)


def _timm_model(subject: Subject) -> torch.nn.Module:
    if subject.timm is None:
        raise RegnetDeployError("timm has no model of this network")
    import timm

    return timm.create_model(subject.timm, pretrained=False, num_classes=subject.classes).eval()


def _torch_call(
    setting: Setting, model: torch.nn.Module, opened: Opened, precision: str, batch: int, compiled: bool = False
) -> Prepared:
    """Run a copy of a model in channels last: the weights of the model are not rounded for other precisions."""
    model = copy.deepcopy(model).to(setting.device, dtype=_TORCH[precision], memory_format=torch.channels_last)
    model = _FromFloat32(model, _TORCH[precision])
    images = torch.from_numpy(opened.images(batch)).to(setting.device)
    run = torch.compile(model, mode="max-autotune", dynamic=False, fullgraph=True) if compiled else model

    def call() -> None:
        with torch.inference_mode():
            run(images)
        if setting.device == "cuda":
            torch.cuda.synchronize()

    return Prepared(_wall_clock(call), {"runtime": f"torch {torch.__version__}"})


class _FromFloat32(torch.nn.Module):
    """A model that takes FP32 images and converts them to its own type."""

    def __init__(self, model: torch.nn.Module, kind: torch.dtype) -> None:
        super().__init__()
        self.model, self.kind = model, kind

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images.to(dtype=self.kind, memory_format=torch.channels_last))


def _onnxruntime_cuda(setting: Setting, opened: Opened, precision: str, batch: int, nhwc: bool = False) -> Prepared:
    from regnet_deploy.runtimes.cuda_session import open_on_cuda
    from regnet_deploy.runtimes.runtime import installed_onnxruntime

    _, version = installed_onnxruntime()
    tf32 = precision == "tf32"
    session = open_on_cuda(
        opened.onnx(precision), version, threads=setting.threads, tf32=tf32, nhwc=nhwc, exhaustive=True
    )
    return Prepared(_wall_clock(session.resident(opened.images(batch))), {"runtime": session.runtime})


def _onnxruntime_nhwc(setting: Setting, opened: Opened, precision: str, batch: int) -> Prepared:
    return _onnxruntime_cuda(setting, opened, precision, batch, nhwc=True)


def _onnxruntime_cpu(setting: Setting, opened: Opened, precision: str, batch: int) -> Prepared:
    from regnet_deploy.runtimes.runtime import open_onnx

    session, images = open_onnx(opened.onnx(precision), threads=setting.threads, device="cpu"), opened.images(batch)
    return Prepared(_wall_clock(lambda: session.run(images)), {"runtime": session.runtime})


def _tensorrt(setting: Setting, opened: Opened, precision: str, batch: int) -> Prepared:
    """Run an engine for exactly this batch size, as the server does but without the copies; its types are checked."""
    from regnet_deploy.bundle.engine_options import EngineOptions
    from regnet_deploy.engines.engine_builder import EngineSource, build_engine
    from regnet_deploy.engines.library import find_library
    from regnet_deploy.exporting.onnx_graph import convolution_types
    from regnet_deploy.exporting.precision import find_precision

    library, subject, name = find_library(setting.gpu), opened.subject, file_precision(precision)
    capabilities = (setting.gpu.compute_capability,) if library.runtime == "tensorrt-rtx" and setting.gpu else ()
    options = EngineOptions(
        min_batch=batch,
        tuned_batch=batch,
        max_batch=batch,
        tf32=precision == "tf32",
        compute_capabilities=capabilities,
    )
    source = EngineSource(
        variant=library.variant(name),
        onnx=opened.onnx(precision),
        side=subject.resolution,
        precision=name,
        convolutions=convolution_types(subject.network, opened.weights, find_precision(name)),
        options=options,
        accept_unaccounted=True,  # the row has their names
    )
    built = build_engine(library, setting.gpu, source)
    session = built.session
    if session is None:
        raise RegnetDeployError(str(built.engine.note))
    call = session.resident(opened.images(batch))
    types = {key: getattr(built.engine, key) for key in ("types", "unaccounted", "wider")}
    facts = {"runtime": session.runtime, **types, "graph": session.uncaptured.get(batch, "captured")}
    return Prepared(_wall_clock(call), facts)


def _wall_clock(run: Callable[[], object]) -> Timed:
    def timed() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return timed


def _absent(*modules: str) -> Callable[[Setting], str | None]:
    def why_not(setting: Setting) -> str | None:
        missing = [name for name in modules if not _is_there(name)]
        return f"{', '.join(missing)} not installed" if missing else None

    return why_not


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it is in
        return False


def _only_on(device: str, *modules: str) -> Callable[[Setting], str | None]:
    absent = _absent(*modules)
    return lambda setting: absent(setting) if setting.device == device else f"it is for the {device}"


def _no_cuda_provider(setting: Setting) -> str | None:
    from regnet_deploy.errors import UsageError
    from regnet_deploy.runtimes.cuda_session import CUDA, provider_file
    from regnet_deploy.runtimes.onnx_session import import_onnxruntime

    absent = _only_on("cuda", "onnx", "onnxruntime")(setting)
    if absent is not None:
        return absent
    ort = import_onnxruntime()
    try:
        provider_file(ort, CUDA, ort.__version__)
    except UsageError as error:
        return str(error)
    return None


def _no_tensorrt(setting: Setting) -> str | None:
    absent = _only_on("cuda", "onnx", "cuda.bindings")(setting)
    if absent is not None:
        return absent
    from regnet_deploy.engines.library import find_library

    try:
        library = find_library(setting.gpu)
    except RegnetDeployError as error:
        return str(error)
    if library.runtime == "tensorrt-rtx" and setting.gpu is not None:
        capability = setting.gpu.compute_capability
        if f"SM{capability.replace('.', '')}" not in library.module.ComputeCapability.__members__:
            return f"{library} does not build for {setting.gpu.name} (compute capability {capability})"
    return None


_FLOATS = tuple(_TORCH)

WAYS = (
    Way("torch-eager", _FLOATS, lambda setting: None, _eager),
    Way("timm-eager", _FLOATS, _absent("timm"), _timm, side="timm"),
    Way("onnxruntime-cuda", ("fp32", "tf32", "fp16", "int8"), _no_cuda_provider, _onnxruntime_cuda),
    Way("onnxruntime-cuda-nhwc", ("tf32", "fp16"), _no_cuda_provider, _onnxruntime_nhwc),
    Way("onnxruntime-cpu", ("fp32", "int8-cpu"), _only_on("cpu", "onnx", "onnxruntime"), _onnxruntime_cpu),
    Way("tensorrt", (*_FLOATS, "int8", "int8-1x1", "fp8-1x1"), _no_tensorrt, _tensorrt),
    Way("torch-compile", _FLOATS, lambda setting: None, _compiled, slow=True),
    Way("timm-compile", _FLOATS, _absent("timm"), _timm_compiled, side="timm", slow=True),
)
