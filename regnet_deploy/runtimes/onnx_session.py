"""Opens and runs networks with ONNX Runtime; has what all execution providers share."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.engines.capture_lock import capture_lock
from regnet_deploy.errors import BundleError, ProofError, require

#: Threads that wait within an operator spin for this time before they sleep, and do not spin between inferences. On
#: idle cores this is nearly as fast as ONNX Runtime's default, which spins many times longer and makes an inference
#: slower than with one thread if other work, such as decoding, needs a core. Releases without this option spin as by
#: default during an inference.
_SPINNING = {"session.intra_op.spin_duration_us": "20", "session.force_spinning_stop": "1"}

#: Type and rank of an ONNX input -> the value of ``input`` in the part ``variants``.
_INPUTS = {("tensor(float)", 4): "float32", ("tensor(uint8)", 4): "uint8"}

_REASONS = re.compile(
    r"((?:CUDA|CUDNN|CUBLAS|CURAND|CUFFT)\w* failure \d+: [^;]*);|(Failed to allocate memory for .*? of size \d+)"
)


@dataclass(frozen=True)
class GraphIO:
    """The input and output of a network.

    Attributes:
        input: ``float32`` for normalized images ``(n, channels, h, w)``, ``uint8`` for pixels ``(n, h, w, channels)``.
        input_name: name of the input tensor.
        output_name: name of the output tensor.
        classes: number of logits of an image; None if it is not in the file.
    """

    input: str
    input_name: str
    output_name: str
    classes: int | None


class OnnxSession:
    """A network in ONNX Runtime, from arrays to arrays; safe to call from several threads.

    Attributes:
        runtime: name and version.
        device: ``cpu`` or ``cuda:0``.
        largest: maximum number of images in one run, larger batches are split; None for no limit.
    """

    def __init__(self, session: Any, io: GraphIO, runtime: str, device: str, largest: int | None = None) -> None:
        self._session = session
        self.runtime, self.device, self.largest = runtime, device, largest
        self.input, self.input_name, self.output_name = io.input, io.input_name, io.output_name

    def run(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Return the logits, ``(n, classes)``.

        Raises:
            ProofError: ONNX Runtime cannot run these images: another size or type, or out of memory.
        """
        step = self.largest or max(1, len(images))
        parts = [self._run(images[start : start + step]) for start in range(0, max(1, len(images)), step)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _run(self, images: NDArray[Any]) -> NDArray[np.float32]:
        apart = contextlib.nullcontext() if self.device == "cpu" else capture_lock().working()
        try:
            with apart:
                logits: NDArray[np.float32] = self._session.run([self.output_name], {self.input_name: images})[0]
        except ort_failures() as error:
            raise run_error(images, error) from None
        return logits


def open_on_cpu(data: bytes, version: str, *, threads: int, exact: bool) -> OnnxSession:
    """Open the bytes of an ONNX file on the CPU; see :func:`regnet_deploy.runtimes.runtime.open_onnx`.

    Raises:
        BundleError: ONNX Runtime cannot open it, or it does not map images to logits.
    """
    try:
        session = create_session(data, session_options(threads, exact), ["CPUExecutionProvider"])
    except ort_failures() as error:
        raise open_error(version, error) from None
    return OnnxSession(session, graph_io(session), f"onnxruntime {version}", "cpu")


def import_onnxruntime(module: str = "onnxruntime") -> ModuleType:
    """Import a module of ONNX Runtime, with its telemetry off.

    Releases since 2026 write an identifier of the machine into the home folder and report to Microsoft unless an
    environment variable is set before they are loaded. A user who wants telemetry sets the variable to 0.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return require(module, "cpu")


def session_options(threads: int, exact: bool) -> Any:
    """Return session options; with ``exact``, graph optimizations are disabled."""
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    if exact:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    for key, value in _SPINNING.items():
        options.add_session_config_entry(key, value)
    options.log_severity_level = 3
    return options


def create_session(data: bytes, options: Any, providers: list[Any]) -> Any:
    """Return an ONNX Runtime session with these providers only, apart from those it always adds."""
    return import_onnxruntime().InferenceSession(data, options, providers=providers, enable_fallback=0)


def graph_io(session: Any) -> GraphIO:
    """Return the input and output of an ONNX Runtime session.

    Raises:
        BundleError: it does not map one batch of images to logits.
    """
    inputs, outputs = session.get_inputs(), session.get_outputs()
    kind = _INPUTS.get((inputs[0].type, len(inputs[0].shape))) if len(inputs) == 1 else None
    if kind is None or len(outputs) != 1 or outputs[0].type != "tensor(float)" or len(outputs[0].shape) != 2:
        tensors = [[(one.name, one.type, one.shape) for one in side] for side in (inputs, outputs)]
        raise BundleError(f"the network does not map one batch of images to logits: {tensors[0]} to {tensors[1]}")
    classes = outputs[0].shape[1]
    return GraphIO(kind, inputs[0].name, outputs[0].name, classes if isinstance(classes, int) else None)


def open_error(version: str, error: Exception) -> BundleError:
    """Return the error for a file that ONNX Runtime cannot open."""
    return BundleError(f"ONNX Runtime {version} cannot open the network: {first_line(error)}")


def run_error(images: NDArray[Any], error: Exception, hint: str = "") -> ProofError:
    """Return the error for images that ONNX Runtime cannot run."""
    return ProofError(f"ONNX Runtime cannot run images {images.dtype} {images.shape}: {first_line(error)}{hint}")


def ort_failures() -> tuple[type[Exception], ...]:
    """Return the exceptions that ONNX Runtime raises; they have no common base but Exception."""
    state = import_onnxruntime("onnxruntime.capi.onnxruntime_pybind11_state")
    own = (kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception))
    return (*own, RuntimeError, ValueError)


def first_line(error: Exception) -> str:
    """Return an error in one line: CUDA's message or the failed allocation if it has one, else its first line.

    These two are behind a page of C++ code and before the name of the machine.
    """
    text = str(error).strip()
    match = _REASONS.search(text)
    if match:
        return str(match[1] or match[2]).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
