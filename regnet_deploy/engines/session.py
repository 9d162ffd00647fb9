"""Loads and runs an engine: pinned memory, one stream, and a CUDA graph for each batch size that is repeated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.bundle.engine_options import EngineOptions
from regnet_deploy.engines.builder_log import BuilderLog, build_error
from regnet_deploy.engines.capture_lock import capture_lock
from regnet_deploy.engines.cuda import Cuda
from regnet_deploy.engines.gpu import Gpu
from regnet_deploy.engines.inspection import Layer, layers_of_report, report_of
from regnet_deploy.engines.kernel_cache import KernelCache, kernel_cache
from regnet_deploy.engines.library import Library, lean_wheel
from regnet_deploy.errors import BundleError, ProofError, RegnetDeployError

#: Maximum number of graphs; each needs an execution context.
_MAX_GRAPHS = 16


@dataclass(frozen=True, eq=False)
class DeserializedEngine:
    """An engine, and the objects that have to live as long as it.

    Attributes:
        engine: TensorRT's ``ICudaEngine``.
        log: errors of the library, also of later calls on the engine.
        runtimes: TensorRT's runtimes that loaded it.
    """

    engine: Any
    log: BuilderLog
    runtimes: tuple[Any, ...]


def deserialize_engine(
    library: Library, plan: bytes, gpu: Gpu | None = None, lean: Path | None = None
) -> DeserializedEngine:
    """Load a plan. Its sha256 must have been checked, because a plan can do what a program can.

    Args:
        library: of the engine's runtime.
        plan: the engine's bytes.
        gpu: that it runs on, for the message.
        lean: library of the lean runtime that built a version-compatible engine.

    Raises:
        RegnetDeployError: it cannot be loaded; one line with the library's reason.
    """
    log = BuilderLog(library.module)
    try:
        runtimes = [library.module.Runtime(log.logger)]
    except TypeError:  # raised by the Python binding if the driver cannot be used
        raise build_error(library, "does not start", log.errors, gpu) from None
    if lean is not None:
        runtimes.append(runtimes[0].load_runtime(str(lean)))
    if runtimes[-1] is None:
        raise build_error(library, f"does not load the lean runtime {lean}", log.errors, gpu)
    runtimes[-1].engine_host_code_allowed = False  # the default, set because it is a matter of security
    log.attach_to(library.runtime, runtimes[-1])
    engine = runtimes[-1].deserialize_cuda_engine(plan)
    if engine is None:
        where = f" on {gpu.name}" if gpu else ""
        raise build_error(library, f"does not load the engine{where}", log.errors, gpu)
    log.attach_to(library.runtime, engine)
    return DeserializedEngine(engine, log, tuple(runtimes))


@dataclass(frozen=True, eq=False)
class _Context:
    """An execution context with what has to live as long as it.

    Attributes:
        context: TensorRT's ``IExecutionContext``.
        settings: that it was created with: an ``IRuntimeConfig`` of TensorRT-RTX, to which it refers.
        kernels: the cache to which the settings refer, or None.
        batch: batch size for which its shapes are set; 0 before.
    """

    context: Any
    settings: Any
    kernels: KernelCache | None
    batch: int = 0


class EngineSession:
    """An engine on the GPU; safe to call from several threads. A :class:`regnet_deploy.runtimes.runtime.Session`.

    The first run of a batch size uses the common context. The second run uses a new context and captures a graph, which
    later runs replay; the context of a graph must not be used for anything else. All contexts share one block of the
    GPU's memory, because they run one after another.

    Attributes:
        runtime: name and version of the library.
        device: the GPU.
        max_batch: maximum number of images in one run; :meth:`run` splits larger batches.
        uncaptured: batch size -> why its graph could not be captured. It runs without one.
        is_lean: whether a lean runtime runs the engine; that has no inspector.

    Raises:
        MissingExtra: ``cuda-bindings`` is not installed.
        BundleError: the engine does not map one batch of images to logits.
        RegnetDeployError: it cannot be loaded (with the library's reason), or memory is short.
    """

    input = "float32"

    def __init__(
        self, library: Library, gpu: Gpu, plan: bytes, options: EngineOptions, *, lean: Path | None = None
    ) -> None:
        """Load a plan, see :func:`deserialize_engine`.

        Args:
            library: of the engine's runtime.
            gpu: that it runs on.
            plan: the engine's bytes.
            options: that it was built with.
            lean: library of the lean runtime that built a version-compatible engine.
        """
        self.runtime, self.device = str(library), f"cuda:0 ({gpu.name})"
        self.min_batch, self.max_batch, self._tuned_batch = options.min_batch, options.max_batch, options.tuned_batch
        self.uncaptured: dict[int, str] = {}
        self.is_lean = lean is not None
        self._library, self._gpu, self._lock = library, gpu, Lock()
        self._kernels = kernel_cache(library, gpu, plan) if library.runtime == "tensorrt-rtx" else None
        self._seen: set[int] = set()
        self._graphs: dict[int, Any] = {}
        self._contexts: list[_Context] = []  # of the graphs: they have to live as long
        with capture_lock().working():
            self._open(plan, options, lean)

    def _open(self, plan: bytes, options: EngineOptions, lean: Path | None) -> None:
        """Load the plan and allocate memory on the GPU."""
        library, gpu = self._library, self._gpu
        self._cuda = Cuda()
        try:
            self._loaded = deserialize_engine(library, plan, gpu, lean)
        except RegnetDeployError as error:
            if lean is not None or not options.version_compatible:
                raise
            wheel = lean_wheel(library.version, library.toolkit)
            raise RegnetDeployError(f"{error}; version-compatible engines may need {wheel}") from None
        self._engine = self._loaded.engine
        self.input_name, self.output_name = self._tensor_names()
        _, *image = self._engine.get_tensor_shape(self.input_name)
        self._image, classes = tuple(map(int, image)), int(self._engine.get_tensor_shape(self.output_name)[1])
        self._images = self._cuda.pinned((self.max_batch, *self._image))
        self._logits = self._cuda.pinned((self.max_batch, classes))
        self._on_gpu = self._cuda.memory(self._images.nbytes), self._cuda.memory(self._logits.nbytes)
        self._scratch_bytes = int(self._engine.device_memory_size_v2)
        self._scratch = self._cuda.memory(max(self._scratch_bytes, 1))
        self._plain = self._context(self._on_gpu)

    def run(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Return the logits, ``(n, classes)``, of normalized images ``(n, channels, h, w)``; any ``n``.

        Raises:
            ProofError: the images are of another size.
            RegnetDeployError: the GPU fails.
        """
        self._ensure_fits(images)
        logits = np.empty((len(images), self._logits.shape[1]), np.float32)
        with capture_lock().working(), self._lock:
            for start in range(0, len(images), self.max_batch):
                part = images[start : start + self.max_batch]
                batch = max(len(part), self.min_batch)
                self._images[: len(part)] = part
                self._run(batch)
                logits[start : start + len(part)] = self._logits[: len(part)]
        return logits

    def layers(self) -> tuple[Layer, ...]:
        """Return the layers from the engine inspector, at the batch size for which the engine is tuned.

        Raises:
            ProofError: the runtime has no inspector, or its report cannot be read.
        """
        with capture_lock().working(), self._lock:
            shaped = self._shaped(self._plain, self._tuned_batch)
            return layers_of_report(report_of(self._library, self._engine, shaped.context))

    def resident(self, images: NDArray[Any]) -> Callable[[], None]:
        """Return a function that runs ``images``, for measurements: images and logits stay on the GPU.

        It replays a graph; if none can be captured, :attr:`uncaptured` has the reason.

        Raises:
            ProofError: the images are of another size, or their number is outside of the engine's batch sizes.
            RegnetDeployError: the GPU fails, or memory is short.
        """
        self._ensure_fits(images)
        batch = len(images)
        if not self.min_batch <= batch <= self.max_batch:
            raise ProofError(
                f"the engine cannot run {batch} images at once: it takes {self.min_batch} to {self.max_batch}"
            )
        with capture_lock().working(), self._lock:
            buffers = self._cuda.memory(images.nbytes), self._cuda.memory(self._logits[:batch].nbytes)
            own = self._shaped(self._context(buffers), batch)
            self._images[:batch] = images
            self._cuda.copy_in(buffers[0], self._images[:batch])
            self._execute(own)
            self._cuda.wait()
            self._save_kernels()
            graph = self._captured(own, lambda: self._execute(own))
            plain = None if graph is not None else self._shaped(self._context(buffers), batch)

        def call() -> None:
            with capture_lock().working(), self._lock:
                if plain is not None:
                    self._execute(plain)
                else:
                    self._cuda.replay(graph)
                self._cuda.wait()

        return call

    def _ensure_fits(self, images: NDArray[Any]) -> None:
        if images.ndim != 4 or images.shape[1:] != self._image:
            raise ProofError(f"the engine cannot run images {images.shape}: it takes (n, {str(self._image)[1:]}")

    def _run(self, batch: int) -> None:
        """Run the images in pinned memory."""
        if batch in self._graphs:
            self._cuda.replay(self._graphs[batch])
            self._cuda.wait()
            return
        if batch in self._seen and batch not in self.uncaptured and len(self._graphs) < _MAX_GRAPHS:
            try:
                self._run_and_capture(batch)
                return
            except RegnetDeployError as error:  # such as too little memory, which a run without a graph does not need
                self.uncaptured[batch] = str(error)
        self._enqueue(self._shaped(self._plain, batch))
        self._cuda.wait()
        if batch not in self._seen:
            self._seen.add(batch)
            self._save_kernels()

    def _run_and_capture(self, batch: int) -> None:
        """Run in a new context, which prepares it for capture, and capture a graph."""
        own = self._shaped(self._context(self._on_gpu), batch)
        self._enqueue(own)
        self._cuda.wait()
        self._save_kernels()
        graph = self._captured(own, lambda: self._enqueue(own))
        if graph is not None:
            self._graphs[batch] = graph

    def _captured(self, own: _Context, work: Callable[[], None]) -> Any:
        """Return a graph of the work of a context, or None, with the reason in :attr:`uncaptured`."""
        capturable = getattr(own.context, "is_stream_capturable", None)  # of TensorRT-RTX
        if capturable is not None and not capturable(self._cuda.stream):
            self.uncaptured[own.batch] = f"{self.runtime} compiles kernels as it runs and cannot be captured"
            return None
        try:
            graph = self._cuda.capture(work)
        except RegnetDeployError as error:
            self.uncaptured[own.batch] = str(error)
            return None
        self._contexts.append(own)  # a graph uses the memory of its context
        return graph

    def _enqueue(self, shaped: _Context) -> None:
        self._cuda.copy_in(self._on_gpu[0], self._images[: shaped.batch])
        self._execute(shaped)
        self._cuda.copy_out(self._logits[: shaped.batch], self._on_gpu[1])

    def _execute(self, shaped: _Context) -> None:
        self._loaded.log.clear()
        if not shaped.context.execute_async_v3(self._cuda.stream):
            raise self._failure("does not run the engine")

    def _save_kernels(self) -> None:
        """Keep kernels that were compiled for a new batch size."""
        if self._kernels is not None:
            self._kernels.save()

    def _context(self, buffers: tuple[int, int]) -> _Context:
        """Return a new execution context in the shared memory, with input and output at these addresses."""
        self._loaded.log.clear()  # or the message has earlier errors
        settings = self._context_settings()
        context = self._engine.create_execution_context(settings)
        if context is None:
            raise self._failure("does not start the engine")
        self._loaded.log.attach_to(self._library.runtime, context)
        context.set_device_memory(self._scratch, self._scratch_bytes)
        for name, address in zip((self.input_name, self.output_name), buffers, strict=True):
            context.set_tensor_address(name, address)
        return _Context(context, settings, self._kernels)

    def _context_settings(self) -> Any:
        """Return the settings of a new context: memory from us and, for TensorRT-RTX, kernels compiled for the shape.

        Contexts share compiled kernels by a cache. By default, TensorRT-RTX runs general kernels until those of a new
        shape are compiled, and a graph that is captured meanwhile would always run the general ones.
        """
        trt = self._library.module
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._library.runtime == "tensorrt":
            return strategy
        settings = self._engine.create_runtime_config()
        settings.set_execution_context_allocation_strategy(strategy)
        settings.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        if self._kernels is not None:
            self._kernels.attach(settings)
        return settings

    def _shaped(self, own: _Context, batch: int) -> _Context:
        self._loaded.log.clear()
        if not own.context.set_input_shape(self.input_name, (batch, *self._image)):
            raise self._failure(f"does not run a batch of {batch} images")
        return replace(own, batch=batch)

    def _failure(self, problem: str) -> RegnetDeployError:
        return build_error(self._library, f"{problem} on {self.device}", self._loaded.log.errors, self._gpu)

    def _tensor_names(self) -> tuple[str, str]:
        """Return the names of input and output."""
        trt, engine = self._library.module, self._engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        by_mode = {
            mode: [name for name in names if engine.get_tensor_mode(name) == mode]
            for mode in (trt.TensorIOMode.INPUT, trt.TensorIOMode.OUTPUT)
        }
        inputs, outputs = by_mode.values()
        fits = (
            (len(inputs), len(outputs)) == (1, 1)
            and all(engine.get_tensor_dtype(name) == trt.DataType.FLOAT for name in names)
            and len(engine.get_tensor_shape(inputs[0])) == 4
            and len(engine.get_tensor_shape(outputs[0])) == 2
        )
        if not fits:
            tensors = [
                (name, str(engine.get_tensor_dtype(name)), tuple(engine.get_tensor_shape(name))) for name in names
            ]
            raise BundleError(f"the engine does not map one batch of images to logits, its tensors are {tensors}")
        return inputs[0], outputs[0]
