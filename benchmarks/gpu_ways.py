"""Ways to run a network: each gives, for a batch size, a call that lasts one inference from images in the device's
memory to logits there, the copies to and from the host left out."""

from __future__ import annotations

import copy
import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from gpu_networks import Subject

from regnet_deploy.engines.gpu import Gpu, find_gpu
from regnet_deploy.errors import RegnetDeployError
from regnet_deploy.images.preprocess import default_preprocessing
from regnet_deploy.models.anynet import AnyNet

#: In the order in which they are measured. ``tf32`` is the FP32 network with factors rounded to 10 bits.
PRECISIONS = ("fp16", "fp32", "tf32", "int8", "bf16", "int8-1x1", "fp8-1x1", "int8-cpu")
_TORCH = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_SEED = 0

Timed = Callable[[], float]


@dataclass(frozen=True)
class Setting:
    """Where it is measured.

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
        raise SystemExit("gpu.py: PyTorch sees no CUDA device here: this measures GPUs (--cpu tries the program out)")
    return Setting("cuda", find_gpu(), threads)


@dataclass(eq=False)
class Opened:
    """A network with the weights and files that several ways share; untrained, for times do not depend on values."""

    subject: Subject
    _files: dict[str, bytes] = field(default_factory=dict)

    @cached_property
    def model(self) -> torch.nn.Module:
        """The model in PyTorch."""
        return AnyNet(self.subject.network, self.subject.classes, seed=_SEED).eval()

    def onnx(self, precision: str) -> bytes:
        """Return the ONNX file of a precision.

        Ranges of activations are stand-ins: which kernel runs, and for how long, does not depend on them.
        """
        name = "fp32" if precision == "tf32" else precision
        if name not in self._files:
            from regnet_deploy.exporting.graph import build_onnx, tensors_between
            from regnet_deploy.exporting.precision import find_precision
            from regnet_deploy.exporting.quantise import Range

            network, typed = self.subject.network, find_precision(name)
            weights = {key: value.numpy() for key, value in self.model.state_dict().items()}
            ranges = {tensor: Range(-4.0, 4.0) for tensor in tensors_between(network, weights)}
            preprocessing = default_preprocessing(self.subject.resolution)
            self._files[name] = build_onnx(
                network, weights, preprocessing, typed, ranges if typed.needs_ranges else None
            )
        return self._files[name]

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
    prepare: Callable[[Setting, Opened, str, int], Timed]
    side: str = "ours"
    slow: bool = False


def set_tf32(allowed: bool) -> None:
    """Say whether PyTorch may round factors of FP32 to the 10 bits of TF32; one for the process."""
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cuda.matmul.allow_tf32 = allowed


def forget_compiled() -> None:
    """Let PyTorch forget what it compiled: it compiles only so many networks of the same code."""
    torch._dynamo.reset()


def _eager(setting: Setting, opened: Opened, precision: str, batch: int) -> Timed:
    return _torch_call(setting, opened.model, opened, precision, batch)


def _compiled(setting: Setting, opened: Opened, precision: str, batch: int) -> Timed:
    return _torch_call(setting, opened.model, opened, precision, batch, compiled=True)


def _timm(setting: Setting, opened: Opened, precision: str, batch: int) -> Timed:
    return _torch_call(setting, _timm_model(opened.subject), opened, precision, batch)


def _timm_compiled(setting: Setting, opened: Opened, precision: str, batch: int) -> Timed:
    return _torch_call(setting, _timm_model(opened.subject), opened, precision, batch, compiled=True)


def _timm_model(subject: Subject) -> torch.nn.Module:
    if subject.timm is None:
        raise RegnetDeployError("timm has no model of this network")
    import timm

    return timm.create_model(subject.timm, pretrained=False, num_classes=subject.classes).eval()


def _torch_call(
    setting: Setting, model: torch.nn.Module, opened: Opened, precision: str, batch: int, compiled: bool = False
) -> Timed:
    """Run a model channels last; a copy of it, so that another precision does not find its weights rounded."""
    kind = _TORCH[precision]
    model = copy.deepcopy(model).to(setting.device, dtype=kind, memory_format=torch.channels_last)
    images = torch.from_numpy(opened.images(batch)).to(setting.device, dtype=kind)
    images = images.contiguous(memory_format=torch.channels_last)
    run = torch.compile(model, mode="max-autotune", dynamic=False, fullgraph=True) if compiled else model

    def call() -> None:
        with torch.inference_mode():
            run(images)
        if setting.device == "cuda":
            torch.cuda.synchronize()

    return _wall_clock(call)


def _onnxruntime_cuda(setting: Setting, opened: Opened, precision: str, batch: int, nhwc: bool = False) -> Timed:
    from regnet_deploy.serving.cuda_session import open_on_cuda
    from regnet_deploy.serving.runtime import installed_onnxruntime

    _, version = installed_onnxruntime()
    tf32 = precision == "tf32"
    session = open_on_cuda(opened.onnx(precision), version, threads=setting.threads, tf32=tf32, nhwc=nhwc)
    return _wall_clock(session.resident(opened.images(batch)))


def _onnxruntime_nhwc(setting: Setting, opened: Opened, precision: str, batch: int) -> Timed:
    return _onnxruntime_cuda(setting, opened, precision, batch, nhwc=True)


def _onnxruntime_cpu(setting: Setting, opened: Opened, precision: str, batch: int) -> Timed:
    from regnet_deploy.serving.runtime import open_onnx

    session, images = open_onnx(opened.onnx(precision), threads=setting.threads, device="cpu"), opened.images(batch)
    return _wall_clock(lambda: session.run(images))


def _tensorrt(setting: Setting, opened: Opened, precision: str, batch: int) -> Timed:
    """Run an engine of exactly this batch, with PyTorch's memory and, where it can be captured, a CUDA graph."""
    from regnet_deploy.engines.build import build_engine
    from regnet_deploy.engines.library import find_library
    from regnet_deploy.engines.options import EngineOptions

    library, subject = find_library(setting.gpu), opened.subject
    capabilities = (setting.gpu.compute_capability,) if library.runtime == "tensorrt-rtx" and setting.gpu else ()
    options = EngineOptions(
        min_batch=batch,
        tuned_batch=batch,
        max_batch=batch,
        tf32=precision == "tf32",
        compute_capabilities=capabilities,
    )
    onnx = opened.onnx(precision)
    plan = build_engine(library, setting.gpu, onnx, subject.resolution, options, lambda steps, what: None)
    trt = library.module
    logger = trt.Logger(trt.Logger.ERROR)
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise RegnetDeployError(f"{library} does not load the engine that it built")
    context = engine.create_execution_context()
    images = torch.from_numpy(opened.images(batch)).to(setting.device)
    logits = torch.empty((batch, subject.classes), device=setting.device)
    context.set_input_shape("images", tuple(images.shape))
    context.set_tensor_address("images", images.data_ptr())
    context.set_tensor_address("logits", logits.data_ptr())
    stream = torch.cuda.Stream()

    def enqueue() -> None:
        if not context.execute_async_v3(stream.cuda_stream):
            raise RegnetDeployError(f"{library} does not run the engine")

    enqueue()
    stream.synchronize()
    launch: Callable[[], None] = enqueue
    capturable = getattr(context, "is_stream_capturable", None)  # of TensorRT-RTX, which may compile as it runs
    if capturable is None or capturable(stream.cuda_stream):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            enqueue()
        launch = graph.replay
    held = (runtime, engine, logits, logger)  # what the context and the graph need while they run

    def call() -> None:
        with torch.cuda.stream(stream):
            launch()
        stream.synchronize()
        assert held

    return _wall_clock(call)


def _wall_clock(run: Callable[[], object]) -> Timed:
    def timed() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return timed


def _absent(*modules: str) -> Callable[[Setting], str | None]:
    def why_not(setting: Setting) -> str | None:
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        return f"{', '.join(missing)} not installed" if missing else None

    return why_not


def _only_on(device: str, *modules: str) -> Callable[[Setting], str | None]:
    absent = _absent(*modules)
    return lambda setting: absent(setting) if setting.device == device else f"it is for the {device}"


def _no_cuda_provider(setting: Setting) -> str | None:
    from regnet_deploy.serving.cuda_session import CUDA
    from regnet_deploy.serving.onnx_session import import_onnxruntime

    absent = _only_on("cuda", "onnx", "onnxruntime")(setting)
    if absent is None and CUDA not in import_onnxruntime().get_available_providers():
        return "onnxruntime is the build for CPUs"
    return absent


def _no_tensorrt(setting: Setting) -> str | None:
    absent = _only_on("cuda", "onnx")(setting)
    if absent is not None:
        return absent
    from regnet_deploy.engines.library import find_library

    try:
        find_library(setting.gpu)
    except RegnetDeployError as error:
        return str(error)
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
