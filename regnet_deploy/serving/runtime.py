"""Opens an exported file and runs it: the one place that knows ONNX Runtime."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.bundle import Bundle
from regnet_deploy.cores import available_cores
from regnet_deploy.errors import BundleError, MissingExtra, ProofError, UsageError, did_you_mean, require
from regnet_deploy.images.preprocess import Preprocessing, normalise
from regnet_deploy.serving.onnx_file import refuse_external_data

Device = Literal["auto", "cpu", "cuda"]

#: Both distributions put their files into the folder ``onnxruntime``.
_CPU_WHEEL, _GPU_WHEEL = "onnxruntime", "onnxruntime-gpu"

#: Runtimes of engines, which need PyTorch's memory and so are opened by ``exporting.tensorrt``.
ENGINES = ("tensorrt", "tensorrt-rtx")

#: Threads that wait for their part of an operator spin for this long before they sleep, and not at all between
#: inferences. On idle cores that is nearly as fast as ONNX Runtime's own spinning, which is many times longer and makes
#: an inference slower than one thread would be as soon as anything else, such as decoding, wants one of the cores.
#: Releases that do not know the duration spin during an inference as they always did.
_SPINNING = {"session.intra_op.spin_duration_us": "20", "session.force_spinning_stop": "1"}

#: FP32 means FP32, not factors rounded to the 10 bits of TF32. The search for the fastest algorithm of a convolution
#: is not exhaustive: that stalls the first request of every new batch size.
_CUDA_OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}

#: What an input of this ONNX type and rank is, in the words of the part ``variants``.
_INPUTS = {("tensor(float)", 4): "float32", ("tensor(uint8)", 4): "uint8"}


class Session(Protocol):
    """An opened network.

    Attributes:
        runtime: name and version, such as ``onnxruntime 1.32.0``.
        device: ``cpu`` or ``cuda:0``.
        input: ``float32`` for normalised images ``(n, 3, h, w)``, ``uint8`` for pixels ``(n, h, w, 3)``.
        input_name: name of the input tensor.
        output_name: name of the output tensor.
    """

    runtime: str
    device: str
    input: str
    input_name: str
    output_name: str

    def run(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Return the logits, ``(n, classes)``."""
        ...


class OnnxSession:
    """A network opened by ONNX Runtime; safe to call from several threads."""

    def __init__(self, data: bytes, threads: int, cuda: bool, version: str) -> None:
        ort = _import("onnxruntime")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        for key, value in _SPINNING.items():
            options.add_session_config_entry(key, value)
        options.log_severity_level = 3
        providers: list[Any] = ["CPUExecutionProvider"]
        if cuda:
            providers = [("CUDAExecutionProvider", _CUDA_OPTIONS)]
            # Not a node is quietly computed on the CPU: the session does not open instead.
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            with contextlib.redirect_stdout(sys.stderr):  # it prints what it cannot load
                ort.preload_dlls()
        try:
            self._session = ort.InferenceSession(data, options, providers=providers, enable_fallback=0)
        except _failures() as error:
            if cuda and "fallback to CPU EP" in str(error):
                raise _no_cuda(version) from None
            raise BundleError(f"ONNX Runtime {version} cannot open the network: {_first_line(error)}") from None
        if cuda and self._session.get_providers()[0] != "CUDAExecutionProvider":
            raise _no_cuda(version)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        kind = _INPUTS.get((inputs[0].type, len(inputs[0].shape))) if len(inputs) == 1 else None
        if kind is None or len(outputs) != 1 or outputs[0].type != "tensor(float)" or len(outputs[0].shape) != 2:
            ends = [[(end.name, end.type, end.shape) for end in side] for side in (inputs, outputs)]
            raise BundleError(f"the network does not map one batch of images to logits: {ends[0]} to {ends[1]}")
        self.runtime = f"onnxruntime {version}"
        self.device = "cuda:0" if cuda else "cpu"
        self.input = kind
        self.input_name, self.output_name = inputs[0].name, outputs[0].name

    def run(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Return the logits, ``(n, classes)``.

        Raises:
            ProofError: ONNX Runtime cannot run these images: another size or type, or out of memory.
        """
        try:
            logits: NDArray[np.float32] = self._session.run([self.output_name], {self.input_name: images})[0]
        except _failures() as error:
            raise ProofError(
                f"ONNX Runtime cannot run images {images.dtype} {images.shape}: {_first_line(error)}"
            ) from None
        return logits


def open_onnx(data: bytes, *, threads: int | None = None, device: Device = "auto") -> Session:
    """Open the bytes of an ONNX file.

    Args:
        data: one file without external data.
        threads: of the CPU; by default what :func:`available_cores` says.
        device: ``auto`` is CUDA where onnxruntime-gpu and a GPU are there, else the CPU.

    Raises:
        MissingExtra: ONNX Runtime is not installed.
        UsageError: it is installed twice, or CUDA was asked for and is not to be had.
        BundleError: the file is not such a network, or keeps tensors elsewhere.
    """
    refuse_external_data(data)
    name, version = installed_onnxruntime()
    if device == "cuda" and name != _GPU_WHEEL:
        raise UsageError(
            "CUDA needs onnxruntime-gpu, the CPU build is installed: "
            "pip uninstall -y onnxruntime && pip install 'regnet-deploy[gpu]'"
        )
    cuda = device == "cuda" or (device == "auto" and name == _GPU_WHEEL and cuda_devices() > 0)
    return OnnxSession(data, threads or available_cores(), cuda, version)


def open_variant(bundle: Bundle, name: str, *, threads: int | None = None, device: Device = "auto") -> Session:
    """Open a variant of a bundle, its bytes checked against the manifest.

    Raises:
        MissingPart: the bundle has no variants.
        UsageError: no variant of this name, or not one that this machine runs.
        BundleError: the file is damaged, or its input is not the one the manifest states.
    """
    variant = find_variant(bundle, name)
    reason = why_not_runnable(variant)
    if reason:
        raise UsageError(f"variant {name} cannot be run here: {reason}")
    session = open_onnx(bundle.read(variant["file"]), threads=threads, device=device)
    if session.input != variant["input"]:
        raise BundleError(f"variant {name} takes {session.input} images, bundle.json says {variant['input']}")
    return session


def find_variant(bundle: Bundle, name: str) -> dict[str, Any]:
    """Return what the manifest says of a variant.

    Raises:
        MissingPart: the bundle has no variants.
        UsageError: no variant of this name.
    """
    variants: dict[str, dict[str, Any]] = bundle.part("variants")
    if name not in variants:
        there = f"there are {', '.join(variants)}" if variants else "run `regnet-deploy export --onnx`"
        raise UsageError(f"{bundle.path} has no variant {name!r}{did_you_mean(name, variants)}; {there}")
    return variants[name]


def why_not_runnable(variant: dict[str, Any]) -> str | None:
    """Return why this program cannot run a variant on this machine, or None where it can."""
    runtime = variant["runtime"]
    if runtime in ENGINES:
        return f"it is a {runtime} engine, which only export and verify run, where PyTorch, {runtime} and a GPU are"
    if runtime != "onnxruntime":
        return f"runtime {runtime!r} is not known to this version"
    try:
        installed_onnxruntime()
    except (MissingExtra, UsageError) as error:
        return str(error)
    return None


def classify_pixels(session: Session, pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Return the logits, ``(n, classes)``, of pixels ``(n, h, w, 3)``, normalised here where the network does not."""
    return session.run(pixels if session.input == "uint8" else normalise(pixels, preprocessing))


def installed_onnxruntime() -> tuple[str, str]:
    """Return the name and version of the ONNX Runtime that is installed.

    Raises:
        MissingExtra: none is.
        UsageError: two are; they overwrite each other's files, so neither can be relied on.
    """
    found = []
    for name in (_CPU_WHEEL, _GPU_WHEEL):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append((name, metadata.version(name)))
    if not found:
        raise MissingExtra(
            "this needs ONNX Runtime, which is not installed: pip install 'regnet-deploy[cpu]', "
            "or 'regnet-deploy[gpu]' where there is an NVIDIA GPU"
        )
    if len(found) == 2:
        raise UsageError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: "
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'regnet-deploy[cpu]' (or [gpu])"
        )
    return found[0]


def cuda_devices() -> int:
    """Return how many GPUs the NVIDIA driver shows to this process; 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return None


def _import(module: str) -> ModuleType:
    """Import a module of ONNX Runtime, with its telemetry off.

    Releases from 2026 on write an identifier of the machine into the home folder and report to Microsoft unless the
    environment says otherwise before they are loaded. A user who wants that sets the variable to 0.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return require(module, "cpu")


def _no_cuda(version: str) -> UsageError:
    return UsageError(
        f"CUDA was asked for but ONNX Runtime {version} fell back to the CPU: check the driver and "
        "pip install --force-reinstall 'onnxruntime-gpu[cuda,cudnn]', or choose the CPU with --device cpu"
    )


def _failures() -> tuple[type[Exception], ...]:
    """Return what ONNX Runtime raises; its errors share no base but Exception."""
    state = _import("onnxruntime.capi.onnxruntime_pybind11_state")
    own = (kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception))
    return (*own, RuntimeError, ValueError)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
