"""A network opened by OpenVINO on the CPU: in FP32 throughout, out of memory, nothing written and nothing reported.

OpenVINO divides the cores it is given into streams, each of which computes one inference at a time. A session has as
many as there are threads that call it at once: with fewer they wait for each other, with more a lone one has not all
the cores. Its threads are not bound to cores, which decoding and other sessions want too.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.errors import BundleError, MissingExtra, ProofError, require
from regnet_deploy.runtimes.onnx_file import refuse_external_data

#: The converter, which ``import openvino`` loads where it can and does without where it cannot, counts its uses in the
#: home folder and reports to Google Analytics as soon as it is loaded. No variable of the environment stops it.
_REPORTING = ("openvino.tools.ovc", "openvino_telemetry")

#: What an input of this type and rank is, in the words of the part ``variants``.
_INPUTS: dict[tuple[str, int | None], str] = {("f32", 4): "float32", ("u8", 4): "uint8"}

#: What OpenVINO raises: its own errors share no other base.
_FAILURES = (RuntimeError, ValueError, TypeError, MemoryError)

#: Lines of its errors that name a place in its sources.
_PLACES = ("Exception from ", "Check '")


class OpenVinoSession:
    """A network opened by OpenVINO, from arrays to arrays; safe to call from several threads.

    Attributes:
        runtime: name and version.
        device: ``cpu``.
        input: ``float32`` for normalized images ``(n, 3, h, w)``, ``uint8`` for pixels ``(n, h, w, 3)``.
        input_name: name of the input tensor.
        output_name: name of the output tensor.
    """

    device = "cpu"

    def __init__(self, compiled: Any, runtime: str) -> None:
        """Take a compiled network.

        Raises:
            BundleError: it does not map one batch of images to logits.
        """
        self.runtime = runtime
        self.input, self.input_name, self.output_name = _ends_of(compiled)
        self._compiled, self._tensor = compiled, import_openvino().Tensor
        self._idle: deque[Any] = deque()  # requests that nobody is using; there are as many as calls at once ever were

    def run(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Return the logits, ``(n, classes)``.

        Raises:
            ProofError: OpenVINO cannot run these images: another size or type, or out of memory.
        """
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        try:
            # Memory that can be read as it is need not be copied; OpenVINO takes only what it could write to as well.
            shared = images.flags.c_contiguous and images.flags.writeable
            request.set_input_tensor(self._tensor(images, shared_memory=shared))
            request.infer()
            logits: NDArray[np.float32] = request.get_output_tensor().data.copy()
        except _FAILURES as error:
            raise ProofError(f"OpenVINO cannot run images {images.dtype} {images.shape}: {_said(error)}") from None
        self._idle.append(request)  # one that failed is not used again
        return logits


def open_by_openvino(data: bytes, *, threads: int, callers: int = 1) -> OpenVinoSession:
    """Open the bytes of an ONNX file by OpenVINO on the CPU.

    Args:
        data: one file without external data.
        threads: that compute an inference.
        callers: threads that will call the session at once, each of which gets ``threads`` of its own.

    Raises:
        MissingExtra: OpenVINO is not installed.
        BundleError: it cannot open the file, or the file does not map images to logits or keeps tensors elsewhere.
    """
    refuse_external_data(data)
    version = installed_openvino()
    settings = {
        # FP32 means FP32: by itself it computes in BF16 wherever the CPU is fast in that.
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads * callers,
        "NUM_STREAMS": callers,
        "ENABLE_CPU_PINNING": False,
    }
    try:
        core = import_openvino().Core()
        compiled = core.compile_model(core.read_model(data), "CPU", settings)
    except _FAILURES as error:
        raise BundleError(f"OpenVINO {version} cannot open the network: {_said(error)}") from None
    return OpenVinoSession(compiled, f"openvino {version}")


def installed_openvino() -> str:
    """Return the version of OpenVINO that is installed, which is not imported for that.

    Raises:
        MissingExtra: none is.
    """
    try:
        return metadata.version("openvino")
    except metadata.PackageNotFoundError:
        raise MissingExtra(
            "this needs OpenVINO, which is not installed: pip install 'regnet-deploy[openvino]'"
        ) from None


def import_openvino() -> ModuleType:
    """Import OpenVINO without what reports its use.

    Raises:
        MissingExtra: it is not installed.
    """
    loaded = sys.modules.get("openvino")
    if loaded is not None and hasattr(loaded, "compile_model"):  # not half imported by another thread
        return loaded
    with _kept_out(_REPORTING):
        return require("openvino", "openvino")


@contextmanager
def _kept_out(names: tuple[str, ...]) -> Iterator[None]:
    """Make imports of these modules fail for a while, where they are not loaded already."""
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


def _ends_of(compiled: Any) -> tuple[str, str, str]:
    """Return the input in the words of the part ``variants`` and the names of input and output."""
    sides = [
        [(end.any_name, end.get_element_type().get_type_name(), end.get_partial_shape()) for end in side]
        for side in (compiled.inputs, compiled.outputs)
    ]
    if all(len(side) == 1 for side in sides):
        (entered, entered_type, image), (left, left_type, logits) = (side[0] for side in sides)
        kind = _INPUTS.get((entered_type, _rank(image)))
        if kind is not None and left_type == "f32" and _rank(logits) == 2:
            return kind, entered, left
    told = [[(name, kind, str(shape)) for name, kind, shape in side] for side in sides]
    raise BundleError(f"the network does not map one batch of images to logits: {told[0]} to {told[1]}")


def _rank(shape: Any) -> int | None:
    return len(shape) if shape.rank.is_static else None


def _said(error: BaseException) -> str:
    """Return what an error of OpenVINO says in a line, without the places in its sources that it came through."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(_PLACES)]
    return " ".join(told or lines)[:300] or type(error).__name__
