"""Runs an engine: pinned memory, one stream, and for batch sizes that come again a CUDA graph that is replayed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.bundle.engine_options import EngineOptions
from regnet_deploy.engines.builder_log import failure
from regnet_deploy.engines.cuda import Cuda
from regnet_deploy.engines.deserialize import deserialize_engine
from regnet_deploy.engines.gpu import Gpu
from regnet_deploy.engines.inspection import Layer, layers_of_report, report_of
from regnet_deploy.engines.library import Library, lean_wheel
from regnet_deploy.errors import BundleError, ProofError, RegnetDeployError

#: Batch sizes that get a graph of their own; a server's are few, and each takes a context.
_MOST_GRAPHS = 16


@dataclass(frozen=True, eq=False)
class _Context:
    """An execution context whose shapes are set for a batch size."""

    context: Any
    batch: int


class EngineSession:
    """An engine on the GPU; safe to call from several threads. A :class:`regnet_deploy.runtimes.runtime.Session`.

    A batch size runs as it is the first time, gets a context of its own the second, where a graph is captured behind
    the run, and is a replay of that graph from then on: a context must not be used otherwise once a graph of it is
    there. All contexts share one block of the GPU's memory, for they run one after another.

    Attributes:
        runtime: name and version of the library.
        device: the GPU.
        max_batch: largest batch that is run at once, images; more are run in turns.
        uncaptured: batch size -> why it has no graph, where capturing one failed. It runs all the same.

    Raises:
        MissingExtra: ``cuda-bindings`` is not installed.
        BundleError: the engine does not map one batch of images to logits.
        RegnetDeployError: it does not load (with the library's reason), or memory is short.
    """

    input = "float32"

    def __init__(
        self, library: Library, gpu: Gpu, plan: bytes, options: EngineOptions, *, lean: Path | None = None
    ) -> None:
        """Load a plan, whose sha256 has to be checked before: a plan is as good as a program.

        Args:
            library: of the engine's runtime.
            gpu: that it runs on.
            plan: the engine's bytes.
            options: that it was built with.
            lean: the lean runtime's library, for a version-compatible engine: of the version that built it.
        """
        self.runtime, self.device = str(library), f"cuda:0 ({gpu.name})"
        self.min_batch, self.max_batch, self._tuned_batch = options.min_batch, options.max_batch, options.tuned_batch
        self.uncaptured: dict[int, str] = {}
        self._library, self._gpu, self._lock = library, gpu, Lock()
        self._cuda = Cuda()
        try:
            self._loaded = deserialize_engine(library, plan, gpu, lean)
        except RegnetDeployError as error:
            if lean is not None or not options.version_compatible:
                raise
            wheel = lean_wheel(library.version, library.toolkit)
            raise RegnetDeployError(f"{error}; version-compatible engines may need {wheel}") from None
        self._engine = self._loaded.engine
        self.input_name, self.output_name = self._ends()
        _, *image = self._engine.get_tensor_shape(self.input_name)
        self._image, classes = tuple(map(int, image)), int(self._engine.get_tensor_shape(self.output_name)[1])
        self._images = self._cuda.pinned((self.max_batch, *self._image))
        self._logits = self._cuda.pinned((self.max_batch, classes))
        self._on_gpu = self._cuda.memory(self._images.nbytes), self._cuda.memory(self._logits.nbytes)
        self._scratch_bytes = int(self._engine.device_memory_size_v2)
        self._scratch = self._cuda.memory(max(self._scratch_bytes, 1))
        self._plain = self._context(self._on_gpu)
        self._seen: set[int] = set()
        self._graphs: dict[int, Any] = {}
        self._contexts: list[_Context] = []  # of the graphs, which need them

    def run(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Return the logits, ``(n, classes)``, of normalized images ``(n, 3, h, w)``; any ``n``.

        Raises:
            ProofError: the images are of another size.
            RegnetDeployError: the GPU fails.
        """
        self._ensure_fits(images)
        logits = np.empty((len(images), self._logits.shape[1]), np.float32)
        with self._lock:
            for start in range(0, len(images), self.max_batch):
                part = images[start : start + self.max_batch]
                batch = max(len(part), self.min_batch)
                self._images[: len(part)] = part
                self._run(batch)
                logits[start : start + len(part)] = self._logits[: len(part)]
        return logits

    def layers(self) -> tuple[Layer, ...]:
        """Return the layers as the engine inspector tells of them, at the batch size that the engine is tuned for."""
        with self._lock:
            shaped = self._shaped(self._plain, self._tuned_batch)
            return layers_of_report(report_of(self._library, self._engine, shaped.context))

    def resident(self, images: NDArray[Any]) -> Callable[[], None]:
        """Return a call that computes ``images``, which stay on the GPU, and leaves the logits there: for measurements.

        It is a replay of a graph; where none can be captured, ``uncaptured`` says why.

        Raises:
            ProofError: the images are of another size, or more or fewer than the engine takes at once.
            RegnetDeployError: the GPU fails, or memory is short.
        """
        self._ensure_fits(images)
        batch = len(images)
        if not self.min_batch <= batch <= self.max_batch:
            raise ProofError(
                f"the engine cannot run {batch} images at once: it takes {self.min_batch} to {self.max_batch}"
            )
        with self._lock:
            there = self._cuda.memory(images.nbytes), self._cuda.memory(self._logits[:batch].nbytes)
            own = self._shaped(self._context(there), batch)
            self._images[:batch] = images
            self._cuda.copy_in(there[0], self._images[:batch])
            self._execute(own)
            self._cuda.wait()
            graph = self._captured(own, lambda: self._execute(own))
            plain = None if graph is not None else self._shaped(self._context(there), batch)

        def call() -> None:
            with self._lock:
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
        """Run what lies in the pinned images."""
        if batch in self._graphs:
            self._cuda.replay(self._graphs[batch])
            self._cuda.wait()
            return
        if batch in self._seen and batch not in self.uncaptured and len(self._graphs) < _MOST_GRAPHS:
            try:
                self._run_and_capture(batch)
                return
            except RegnetDeployError as error:  # such as memory that is short: without a graph it needs no more of it
                self.uncaptured[batch] = str(error)
        self._enqueue(self._shaped(self._plain, batch))
        self._cuda.wait()
        self._seen.add(batch)

    def _run_and_capture(self, batch: int) -> None:
        """Run in a context of its own, which also makes it ready to be captured, and capture."""
        own = self._shaped(self._context(self._on_gpu), batch)
        self._enqueue(own)
        self._cuda.wait()
        graph = self._captured(own, lambda: self._enqueue(own))
        if graph is not None:
            self._graphs[batch] = graph

    def _captured(self, own: _Context, work: Callable[[], None]) -> Any:
        """Return a graph of what a context that is ready does, or None and put into ``uncaptured`` why."""
        capturable = getattr(own.context, "is_stream_capturable", None)  # of TensorRT-RTX
        if capturable is not None and not capturable(self._cuda.stream):
            self.uncaptured[own.batch] = f"{self.runtime} compiles kernels as it runs and cannot be captured"
            return None
        try:
            graph = self._cuda.capture(work)
        except RegnetDeployError as error:
            self.uncaptured[own.batch] = str(error)
            return None
        self._contexts.append(own)  # a graph works in what its context has
        return graph

    def _enqueue(self, shaped: _Context) -> None:
        self._cuda.copy_in(self._on_gpu[0], self._images[: shaped.batch])
        self._execute(shaped)
        self._cuda.copy_out(self._logits[: shaped.batch], self._on_gpu[1])

    def _execute(self, shaped: _Context) -> None:
        self._loaded.heard.forget()
        if not shaped.context.execute_async_v3(self._cuda.stream):
            raise self._failure("does not run the engine")

    def _context(self, ends: tuple[int, int]) -> Any:
        """Return a context that works in the memory that all share, with its input and output at these addresses."""
        self._loaded.heard.forget()  # or a failure is told with the reasons of earlier ones
        context = self._engine.create_execution_context(self._settings())
        if context is None:
            raise self._failure("does not start the engine")
        self._loaded.heard.listen_to(self._library.runtime, context)
        context.set_device_memory(self._scratch, self._scratch_bytes)
        for name, address in zip((self.input_name, self.output_name), ends, strict=True):
            context.set_tensor_address(name, address)
        return context

    def _settings(self) -> Any:
        """Return how contexts are made: in our memory and, by TensorRT-RTX, with kernels made for the shape at once.

        Left to itself, TensorRT-RTX runs general kernels until those of a new shape are compiled, and a graph that is
        captured meanwhile would keep the general ones for good.
        """
        trt = self._library.module
        ours = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._library.runtime == "tensorrt":
            return ours
        settings = self._engine.create_runtime_config()
        settings.set_execution_context_allocation_strategy(ours)
        settings.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        return settings

    def _shaped(self, context: Any, batch: int) -> _Context:
        self._loaded.heard.forget()
        if not context.set_input_shape(self.input_name, (batch, *self._image)):
            raise self._failure(f"does not run a batch of {batch} images")
        return _Context(context, batch)

    def _failure(self, what: str) -> RegnetDeployError:
        return failure(self._library, f"{what} on {self.device}", self._loaded.heard.errors, self._gpu)

    def _ends(self) -> tuple[str, str]:
        """Return the names of input and output."""
        trt, engine = self._library.module, self._engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        ends = {
            mode: [name for name in names if engine.get_tensor_mode(name) == mode]
            for mode in (trt.TensorIOMode.INPUT, trt.TensorIOMode.OUTPUT)
        }
        inputs, outputs = ends.values()
        fits = (
            (len(inputs), len(outputs)) == (1, 1)
            and all(engine.get_tensor_dtype(name) == trt.DataType.FLOAT for name in names)
            and len(engine.get_tensor_shape(inputs[0])) == 4
            and len(engine.get_tensor_shape(outputs[0])) == 2
        )
        if not fits:
            told = [(name, str(engine.get_tensor_dtype(name)), tuple(engine.get_tensor_shape(name))) for name in names]
            raise BundleError(f"the engine does not map one batch of images to logits, its ends are {told}")
        return inputs[0], outputs[0]
