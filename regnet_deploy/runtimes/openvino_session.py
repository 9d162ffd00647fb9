"""Runs networks with OpenVINO on the CPU, without files on disk and without telemetry.

What a file has in FP32 is computed in FP32, or in BF16 where that is asked for: never in a type that OpenVINO prefers.

OpenVINO divides its cores into streams, each of which computes one inference at a time. A session has one stream per
calling thread: with fewer, threads wait for each other; with more, a single call does not use all cores. The threads
are not pinned to cores, because decoding and other sessions need them too.
"""

from __future__ import annotations

import functools
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.errors import BundleError, MissingExtra, ProofError, UsageError, require
from regnet_deploy.runtimes.onnx_file import refuse_external_data

#: The converter, which ``import openvino`` loads if it can, counts its uses in the home folder and reports to Google
#: Analytics as soon as it is loaded. No environment variable prevents this.
_REPORTING = ("openvino.tools.ovc", "openvino_telemetry")

#: Type and rank of an input -> the value of ``input`` in the part ``variants``.
_INPUTS: dict[tuple[str, int | None], str] = {("f32", 4): "float32", ("u8", 4): "uint8"}

#: Type in which FP32 is computed, as the part ``variants`` names it -> as OpenVINO does.
Compute: TypeAlias = Literal["fp32", "bf16"]
_HINTS: dict[Compute, str] = {"fp32": "f32", "bf16": "bf16"}

#: Exceptions of OpenVINO: they have no other common base.
_FAILURES = (RuntimeError, ValueError, TypeError, MemoryError)

#: Starts of lines of its errors that are places in its source code.
_PLACES = ("Exception from ", "Check '")


class OpenVinoSession:
    """A network in OpenVINO, from arrays to arrays; safe to call from several threads.

    Attributes:
        runtime: name and version.
        device: ``cpu``.
        input: ``float32`` for normalized images ``(n, channels, h, w)``, ``uint8`` for pixels ``(n, h, w, channels)``.
        input_name: name of the input tensor.
        output_name: name of the output tensor.
    """

    device = "cpu"

    def __init__(self, model: Any, compile_model: Callable[[Any], Any], runtime: str) -> None:
        """Compile a network for single images; for batches it is compiled when the first one is run.

        Args:
            model: as it was read.
            compile_model: compiles it.
            runtime: name and version.

        Raises:
            BundleError: it does not map one batch of images to logits, or cannot be compiled.
            UsageError: it is not computed in the requested type.
        """
        self.runtime = runtime
        self.input, self.input_name, self.output_name = _graph_io(model)
        self._tensor = import_openvino().Tensor
        self._model, self._compile, self._compiling = model, compile_model, threading.Lock()
        # Unused inference requests, one for each concurrent call so far: of single images, and of batches.
        self._idle: tuple[deque[Any], deque[Any]] = (deque(), deque())
        # With shapes that are not fixed, each inference takes longer, which counts for single images.
        self._compiled: list[Any] = [compile_model(_with_batch_of_one(model)), None]

    def run(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Return the logits, ``(n, classes)``.

        Raises:
            ProofError: OpenVINO cannot run these images: another size or type, or out of memory.
        """
        several = int(len(images) != 1)
        try:
            request = self._idle[several].pop()
        except IndexError:
            request = self._network(several).create_infer_request()
        try:
            # Contiguous memory is not copied; OpenVINO accepts only writable memory.
            shared = images.flags.c_contiguous and images.flags.writeable
            request.set_input_tensor(self._tensor(images, shared_memory=shared))
            request.infer()
            logits: NDArray[np.float32] = request.get_output_tensor().data.copy()
        except _FAILURES as error:
            raise ProofError(f"OpenVINO cannot run images {images.dtype} {images.shape}: {_reason(error)}") from None
        self._idle[several].append(request)  # a request that failed is not reused
        return logits

    def _network(self, several: int) -> Any:
        """Return the compiled network: 0 for single images, 1 for batches."""
        with self._compiling:
            if self._compiled[several] is None:
                self._compiled[several] = self._compile(self._model)
            return self._compiled[several]


def open_by_openvino(data: bytes, *, threads: int, callers: int = 1, compute: Compute = "fp32") -> OpenVinoSession:
    """Open the bytes of an ONNX file with OpenVINO on the CPU.

    Args:
        data: one file without external data.
        threads: number of threads of an inference.
        callers: number of threads that call the session concurrently; each gets ``threads`` threads.
        compute: type in which it computes what the file has in FP32.

    Raises:
        MissingExtra: OpenVINO is not installed.
        UsageError: it does not compute in this type on this CPU.
        BundleError: it cannot open the file, or the file does not map images to logits or keeps tensors elsewhere.
    """
    refuse_external_data(data)
    return _open(data, None, threads, callers, compute)


def open_ir(xml: bytes, weights: bytes, *, threads: int) -> OpenVinoSession:
    """Open a network in OpenVINO's own format (IR): its ``.xml`` and its ``.bin``.

    Raises:
        MissingExtra: OpenVINO is not installed.
        BundleError: it cannot open them, or they do not map images to logits.
    """
    return _open(xml, weights, threads, 1, "fp32")


def onnx_to_ir(data: bytes, info: Mapping[str, str]) -> tuple[bytes, bytes]:
    """Return an ONNX file in OpenVINO's own format (IR): the ``.xml``, and the ``.bin`` with the weights in FP32.

    Args:
        data: one file without external data.
        info: key -> text, written as runtime information ``regnet_deploy``.

    Raises:
        MissingExtra: OpenVINO is not installed.
        BundleError: it cannot open the file.
        UsageError: there is no space for it in the temporary folder.
    """
    refuse_external_data(data)
    version = installed_openvino()
    openvino = import_openvino()
    try:
        model = _core(openvino).read_model(data)
        for key, text in info.items():
            model.set_rt_info(text, ["regnet_deploy", key])
    except _FAILURES as error:
        raise BundleError(f"OpenVINO {version} cannot convert the network: {_reason(error)}") from None
    try:
        with tempfile.TemporaryDirectory() as folder:  # it writes to paths only
            path = Path(folder) / "model.xml"
            openvino.save_model(model, path, compress_to_fp16=False)
            return path.read_bytes(), path.with_suffix(".bin").read_bytes()
    except (OSError, *_FAILURES) as error:  # "iostream error" where the disk is full
        raise UsageError(
            f"OpenVINO cannot write {len(data):,} bytes into the temporary folder {tempfile.gettempdir()} "
            f"({_reason(error)}): free space there, or name another folder in TMPDIR"
        ) from None


def bf16_unsupported_reason() -> str | None:
    """Return why OpenVINO does not compute in BF16 here, or None if it does.

    Raises:
        MissingExtra: OpenVINO is not installed.
    """
    installed_openvino()
    try:
        found = _core(import_openvino()).get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    except _FAILURES as error:
        return f"OpenVINO does not say what this CPU computes in: {_reason(error)}"
    if "BF16" in found:
        return None
    return f"OpenVINO computes in {', '.join(found)} on this CPU, which has no instructions for BF16"


def _open(data: bytes, weights: bytes | None, threads: int, callers: int, compute: Compute) -> OpenVinoSession:
    version = installed_openvino()
    settings = {
        # By default, OpenVINO computes in BF16 if the CPU supports it.
        "INFERENCE_PRECISION_HINT": _HINTS[compute],
        "INFERENCE_NUM_THREADS": threads * callers,
        "NUM_STREAMS": callers,
        "ENABLE_CPU_PINNING": False,
    }
    core = _core(import_openvino())

    def compile_model(model: Any) -> Any:
        try:
            compiled = core.compile_model(model, "CPU", settings)
            used = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        except _FAILURES as error:
            raise BundleError(f"OpenVINO {version} cannot open the network: {_reason(error)}") from None
        if used != _HINTS[compute]:  # without such instructions, it silently takes another type
            raise UsageError(f"OpenVINO {version} computes in {used} on this CPU, and {_HINTS[compute]} was requested")
        return compiled

    try:
        model = core.read_model(data) if weights is None else core.read_model(data, weights)
    except _FAILURES as error:
        raise BundleError(f"OpenVINO {version} cannot open the network: {_reason(error)}") from None
    return OpenVinoSession(model, compile_model, f"openvino {version}")


def _with_batch_of_one(model: Any) -> Any:
    """Return a copy of a network that takes single images only."""
    copy = model.clone()
    shape = copy.inputs[0].get_partial_shape()
    shape[0] = 1
    copy.reshape(shape)
    return copy


def installed_openvino() -> str:
    """Return the version of the installed OpenVINO without importing it.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return metadata.version("openvino")
    except metadata.PackageNotFoundError:
        raise MissingExtra(
            "this needs OpenVINO, which is not installed: pip install 'regnet-deploy[openvino]'"
        ) from None


def import_openvino() -> ModuleType:
    """Import OpenVINO without its telemetry.

    Raises:
        MissingExtra: it is not installed.
    """
    loaded = sys.modules.get("openvino")
    if loaded is not None and hasattr(loaded, "compile_model"):  # not half imported by another thread
        return loaded
    with _blocked_imports(_REPORTING):
        return require("openvino", "openvino")


@functools.cache
def _core(openvino: ModuleType) -> Any:
    """Return the core of this process, which has the plugin for the CPU and is kept until the process ends.

    The plugin gives the thread that loads it another stack for signals, and unmaps that when it is unloaded. Where
    another thread does that, the next signal to the first one ends the process (SIGSEGV): a server that has replaced a
    model would die of SIGTERM in place of draining.
    """
    return openvino.Core()


@contextmanager
def _blocked_imports(names: tuple[str, ...]) -> Iterator[None]:
    """Make imports of these modules fail while the context is open, unless they are already loaded."""
    missing = object()
    kept_out = [name for name in names if sys.modules.get(name, missing) is missing]
    absent: dict[str, Any] = dict.fromkeys(kept_out)
    sys.modules.update(absent)
    try:
        yield
    finally:
        for name in kept_out:
            if sys.modules.get(name, missing) is None:
                del sys.modules[name]


def _graph_io(model: Any) -> tuple[str, str, str]:
    """Return the kind of the input, as in the part ``variants``, and the names of input and output."""
    sides = [
        [(end.any_name, end.get_element_type().get_type_name(), end.get_partial_shape()) for end in side]
        for side in (model.inputs, model.outputs)
    ]
    if all(len(side) == 1 for side in sides):
        (entered, entered_type, image), (left, left_type, logits) = (side[0] for side in sides)
        kind = _INPUTS.get((entered_type, _rank(image)))
        if kind is not None and left_type == "f32" and _rank(logits) == 2:
            return kind, entered, left
    tensors = [[(name, kind, str(shape)) for name, kind, shape in side] for side in sides]
    raise BundleError(f"the network does not map one batch of images to logits: {tensors[0]} to {tensors[1]}")


def _rank(shape: Any) -> int | None:
    return len(shape) if shape.rank.is_static else None


def _reason(error: BaseException) -> str:
    """Return the message of an OpenVINO error in one line, without places in its source code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reasons = [line for line in lines if not line.startswith(_PLACES)]
    return " ".join(reasons or lines)[:300] or type(error).__name__
