"""Runs networks on an NVIDIA GPU with ONNX Runtime's CUDA provider, without fallback, and with CUDA graphs.

A CUDA graph replays the kernels of an inference as one launch. It needs the same addresses each time, so each graph has
its own input and output on the GPU. A batch size gets a graph when it is repeated. ONNX Runtime keeps graphs per thread
and a server has several threads, so each session computes in a thread of its own. While a graph is captured, no other
session of the process may use the GPU, see :mod:`regnet_deploy.engines.capture_lock`.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.engines.capture_lock import capture_lock
from regnet_deploy.errors import UsageError
from regnet_deploy.runtimes.onnx_session import (
    GraphIO,
    create_session,
    first_line,
    graph_io,
    import_onnxruntime,
    open_error,
    ort_failures,
    run_error,
    session_options,
)
from regnet_deploy.runtimes.shared_libraries import missing_libraries, needed_libraries

CUDA = "CUDAExecutionProvider"

#: The provider loads cuDNN for the first convolution, so it is not among the libraries that its file needs.
_CUDNN = "libcudnn.so.9"
_DRIVER = "libcuda.so.1"

#: Number of runs of a batch size before its graph is captured: kernels are chosen by then, and a size that occurs once
#: needs no memory.
_USES = 3
#: Maximum number of graphs; each has an input and an output on the GPU.
_GRAPHS = 8
#: Number of captures of a batch size that may fail before it runs without a graph: other CUDA work of the process, such
#: as a model that is released, can break a capture.
_TRIES = 3
#: Maximum wait for other sessions before a capture, seconds; they wait as long. Opening a session takes longer, and the
#: capture is then left for later.
_PATIENCE_S = 0.05
#: The same for measurements, where nobody waits.
_MEASURING_PATIENCE_S = 60.0
#: Value of the run option ``gpu_graph_id`` that means no graph; 0 is ONNX Runtime's default.
_NO_GRAPH = -1

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Graph:
    """A captured graph: its number, input, output and binding."""

    number: int
    input: Any
    output: Any
    binding: Any


class CudaSession:
    """A network in the CUDA provider; safe to call from several threads, which wait for each other.

    Attributes:
        runtime: name and version.
        device: ``cuda:0``.
        graphs: whether batches get CUDA graphs. A batch size whose graph cannot be captured runs without one, which is
            logged.
    """

    device = "cuda:0"

    def __init__(self, session: Any, signature: GraphIO, runtime: str, *, graphs: bool, memory: str = "cuda") -> None:
        """Use an ONNX Runtime session; ``memory`` is the kind of memory of its inputs and outputs."""
        self._session, self._signature, self._memory = session, signature, memory
        self.runtime, self.graphs = runtime, graphs and signature.classes is not None
        self.input, self.input_name, self.output_name = signature.input, signature.input_name, signature.output_name
        self._uses: Counter[tuple[int, ...]] = Counter()
        self._captured: dict[tuple[int, ...], _Graph] = {}
        self._failed: Counter[tuple[int, ...]] = Counter()  # captures
        self._next_try: dict[tuple[int, ...], int] = {}  # number of uses
        self._numbers = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cuda")

    def run(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Return the logits, ``(n, classes)``.

        Raises:
            ProofError: ONNX Runtime cannot run these images: another size or type, or out of memory.
        """
        try:
            return self._thread.submit(self._run, images).result()
        except ort_failures() as error:
            hint = f"; {install_hint([_CUDNN])}" if missing_libraries([_CUDNN]) else ""
            raise run_error(images, error, hint) from None

    def resident(self, images: NDArray[Any]) -> Callable[[], None]:
        """Return a function that runs ``images``, for measurements: images and logits stay on the GPU.

        Only the calling thread may call it. Where other sessions do not stop for long enough, it has no graph.

        Raises:
            ProofError: ONNX Runtime cannot run these images.
        """
        try:
            with capture_lock().working():
                self._plain(images)  # kernels are chosen before a graph is captured
            graph = self._measured_graph(images) if self.graphs else None
            if graph is None:
                with capture_lock().working():
                    graph = self._bound(_NO_GRAPH, images)
        except ort_failures() as error:
            raise run_error(images, error) from None
        binding, options = graph.binding, _run_options(graph.number)

        def call() -> None:
            with capture_lock().working():
                self._session.run_with_iobinding(binding, options)

        return call

    def _measured_graph(self, images: NDArray[Any]) -> _Graph | None:
        """Return a captured graph; None where other sessions work on, whose runs a capture would break."""
        for turn in range(_TRIES):
            with capture_lock().capturing(_MEASURING_PATIENCE_S) as alone:
                if not alone:
                    return None
                try:
                    return self._bound(self._number(), images)
                except ort_failures():
                    if turn == _TRIES - 1:
                        raise
        return None

    def _number(self) -> int:
        """Return an unused graph number."""
        self._numbers += 1
        return self._numbers

    def _run(self, images: NDArray[Any]) -> NDArray[np.float32]:
        graph = self._graph_for(images)
        with capture_lock().working():
            return self._plain(images) if graph is None else self._replay(graph, images)

    def _graph_for(self, images: NDArray[Any]) -> _Graph | None:
        """Return the graph for these images, or None; captures it if their shape has been repeated often enough."""
        shape = images.shape
        if not self.graphs or images.dtype != np.dtype(self.input) or not len(images):
            return None
        if shape in self._captured:
            return self._captured[shape]
        given_up = sum(failures >= _TRIES for failures in self._failed.values())
        due = self._next_try.get(shape, _USES)
        if self._uses[shape] < due or self._failed[shape] >= _TRIES or len(self._captured) + given_up >= _GRAPHS:
            return None
        self._next_try[shape] = 2 * due  # if it does not succeed now
        with capture_lock().capturing(_PATIENCE_S) as alone:
            if not alone:
                return None
            try:
                self._captured[shape] = self._bound(self._number(), images)
            except ort_failures() as error:
                self._failed[shape] += 1
                if self._failed[shape] == _TRIES:
                    _LOG.warning(
                        "%s runs batches of %d without a CUDA graph, %d captures failed: %s",
                        self.runtime,
                        len(images),
                        _TRIES,
                        first_line(error),
                    )
        return self._captured.get(shape)

    def _bound(self, number: int, images: NDArray[Any]) -> _Graph:
        """Run with an input and output of its own; the first run with a new number captures the graph."""
        value, binding = import_onnxruntime().OrtValue, self._session.io_binding()
        entered = value.ortvalue_from_shape_and_type(list(images.shape), images.dtype.type, self._memory, 0)
        left = value.ortvalue_from_shape_and_type([len(images), self._signature.classes], np.float32, self._memory, 0)
        binding.bind_ortvalue_input(self.input_name, entered)
        binding.bind_ortvalue_output(self.output_name, left)
        graph = _Graph(number, entered, left, binding)
        self._replay(graph, images)
        return graph

    def _replay(self, graph: _Graph, images: NDArray[Any]) -> NDArray[np.float32]:
        graph.input.update_inplace(np.ascontiguousarray(images))
        # It returns when the stream is idle. Synchronizing the outputs would wait for the whole device, also for the
        # streams of other sessions, and break their captures.
        self._session.run_with_iobinding(graph.binding, _run_options(graph.number))
        logits: NDArray[np.float32] = graph.output.numpy()
        return (
            logits.copy() if self._memory == "cpu" else logits
        )  # on the CPU it is a view of memory that the next run overwrites

    def _plain(self, images: NDArray[Any]) -> NDArray[np.float32]:
        # Also set without graphs: without a number, ONNX Runtime would capture this run.
        options, feed = _run_options(_NO_GRAPH), {self.input_name: images}
        logits: NDArray[np.float32] = self._session.run([self.output_name], feed, options)[0]
        self._uses[images.shape] += 1  # counted after the run: a shape that fails is not counted
        return logits


def open_on_cuda(
    data: bytes,
    version: str,
    *,
    threads: int,
    exact: bool = False,
    tf32: bool = False,
    nhwc: bool = False,
    graphs: bool = True,
    exhaustive: bool = False,
) -> CudaSession:
    """Open the bytes of an ONNX file on the first GPU.

    Args:
        data: one file without external data.
        version: of ONNX Runtime.
        threads: number of CPU threads; the CPU has little to do.
        exact: compute every operator as in the file, without graph optimizations.
        tf32: allow FP32 factors to be rounded to the 10 bits of TF32.
        nhwc: let the provider use channels-last layout.
        graphs: capture repeated batch sizes.
        exhaustive: try all algorithms of a convolution at the first run of a batch size, for measurements.

    Raises:
        UsageError: the provider or a library that it needs is missing, or an operator has no kernel on the GPU.
        BundleError: ONNX Runtime cannot open it, or it does not map images to logits.
    """
    ort = import_onnxruntime()
    require_cuda_provider(ort, CUDA, version)
    settings = {
        # No TF32 unless requested. The exhaustive search of convolution algorithms is off by default, because it delays
        # the first request of each batch size.
        "use_tf32": str(int(tf32)),
        "cudnn_conv_algo_search": "EXHAUSTIVE" if exhaustive else "HEURISTIC",
        "prefer_nhwc": str(int(nhwc)),
        "enable_cuda_graph": str(int(graphs)),
    }
    try:
        with capture_lock().working():
            session = create_session(data, strict_options(session_options(threads, exact)), [(CUDA, settings)])
    except ort_failures() as error:
        raise _not_on_gpu(version, error) from None
    refuse_fallback(session, CUDA, version)
    return CudaSession(session, graph_io(session), f"onnxruntime {version}", graphs=graphs)


def strict_options(options: Any) -> Any:
    """Return ``options`` with fallback to the CPU disabled: opening a session fails instead."""
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


def require_cuda_provider(ort: ModuleType, provider: str, version: str) -> None:
    """Check that the libraries that ``provider`` needs can be loaded.

    ONNX Runtime would only print some lines and continue without the GPU.

    Raises:
        UsageError: libraries are missing; the message names them and how to install them.
    """
    file = provider_file(ort, provider, version)
    missing = missing_libraries(needed_libraries(file))
    if missing:
        raise UsageError(f"ONNX Runtime {version} cannot use the GPU: {install_hint(missing)}, or --device cpu")


def refuse_fallback(session: Any, provider: str, version: str) -> None:
    """Check that a session uses the requested provider.

    Raises:
        UsageError: it uses another one.
    """
    first = session.get_providers()[0]
    if first != provider:
        raise UsageError(
            f"{provider} was requested, but ONNX Runtime {version} fell back to {first}: check the driver with "
            "nvidia-smi and pip install --force-reinstall 'onnxruntime-gpu[cuda,cudnn]', or --device cpu"
        )


def provider_file(ort: ModuleType, provider: str, version: str) -> Path:
    """Preload CUDA's libraries, and return the path of the library of a provider.

    Builds of ONNX Runtime whose providers are plugins list a provider only when its libraries are loaded.

    Raises:
        UsageError: ONNX Runtime was built or installed without it.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it cannot load; an error of the caller has that
        ort.preload_dlls()
    short = provider.removesuffix("ExecutionProvider").lower()
    file = Path(str(ort.__file__)).parent / "capi" / f"libonnxruntime_providers_{short}.so"
    if provider not in ort.get_available_providers() or not file.is_file():
        raise UsageError(
            f"ONNX Runtime {version} is installed without its {provider} ({file.name}): "
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'regnet-deploy[gpu]', or --device cpu"
        )
    return file


def install_hint(missing: list[str]) -> str:
    """Return a phrase with the missing libraries and how to install them."""
    listed = f"{', '.join(missing)} cannot be loaded"
    if missing == [_DRIVER]:
        return f"{listed}: install the NVIDIA driver (in a container: docker run --gpus all)"
    also = ", and install the NVIDIA driver" if _DRIVER in missing else ""
    return f"{listed}: pip install 'onnxruntime-gpu[cuda,cudnn]'{also}"


def _not_on_gpu(version: str, error: Exception) -> Exception:
    text = str(error)
    if missing_libraries([_CUDNN]):
        return UsageError(f"ONNX Runtime {version} cannot use the GPU: {install_hint([_CUDNN])}, or --device cpu")
    if "fallback to CPU EP" in text or "have not been partitioned to the CUDAExecutionProvider" in text:
        return UsageError(
            f"ONNX Runtime {version} would compute a part of this network on the CPU, because a kernel or a working "
            "GPU (nvidia-smi) is missing: use another variant, or --device cpu"
        )
    if "CUDA failure" in text:
        return UsageError(
            f"ONNX Runtime {version} cannot use the GPU: {first_line(error)}: check it with nvidia-smi, or --device cpu"
        )
    return open_error(version, error)


def _run_options(graph: int) -> Any:
    options = import_onnxruntime().RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph))
    return options
