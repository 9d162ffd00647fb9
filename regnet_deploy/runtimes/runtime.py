"""Opens variants of a bundle: chooses the file, the runtime and the device."""

from __future__ import annotations

import contextlib
from importlib import metadata
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.bundle import Bundle
from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.bundle.variants import EngineVariant, OnnxVariant, OpenvinoVariant, Variant
from regnet_deploy.cpu import available_cores
from regnet_deploy.engines.bundle_engines import no_engine_reason, open_engine
from regnet_deploy.engines.gpu import find_gpu
from regnet_deploy.errors import BundleError, MissingExtra, UsageError, did_you_mean
from regnet_deploy.images.preprocessing import normalize
from regnet_deploy.runtimes.cuda_session import open_on_cuda
from regnet_deploy.runtimes.gates import GATES, unknown_precision
from regnet_deploy.runtimes.onnx_file import refuse_external_data
from regnet_deploy.runtimes.onnx_session import open_on_cpu
from regnet_deploy.runtimes.openvino_session import bf16_unsupported_reason, installed_openvino, open_by_openvino
from regnet_deploy.runtimes.tensorrt_provider import open_on_tensorrt

#: ``tensorrt`` is ONNX Runtime's TensorRT provider, which builds an engine from an ONNX variant.
Device = Literal["auto", "cpu", "cuda", "tensorrt"]
DEVICES: tuple[str, ...] = get_args(Device)

#: The runtime of a variant: ``onnxruntime`` and ``openvino`` run ONNX variants, ``tensorrt`` runs engines of TensorRT
#: and TensorRT-RTX. ``auto`` is the runtime for which the variant was made; variants of OpenVINO run in nothing else.
Runtime = Literal["auto", "onnxruntime", "tensorrt", "openvino"]
RUNTIMES: tuple[str, ...] = get_args(Runtime)

#: Precisions that are fast on CPUs only: a GPU would convert the file back to FP32.
_FOR_CPUS = ("int8-cpu",)

#: Both distributions install into the folder ``onnxruntime``.
_CPU_WHEEL, _GPU_WHEEL = "onnxruntime", "onnxruntime-gpu"


class Session(Protocol):
    """Runs a network.

    Attributes:
        runtime: name and version, such as ``onnxruntime 1.32.0``.
        device: ``cpu`` or ``cuda:0``.
        input: ``float32`` for normalized images ``(n, channels, h, w)``, ``uint8`` for pixels ``(n, h, w, channels)``.
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


def open_onnx(
    data: bytes,
    *,
    threads: int | None = None,
    device: Device = "auto",
    exact: bool = False,
    tf32: bool = False,
    runtime: Runtime = "auto",
    callers: int = 1,
) -> Session:
    """Open the bytes of an ONNX file.

    Args:
        data: one file without external data.
        threads: number of CPU threads; by default :func:`available_cores`.
        device: ``auto`` is CUDA if there are onnxruntime-gpu and a GPU, else the CPU.
        exact: compute every operator as in the file, without graph optimizations, for proofs.
        tf32: on a GPU, allow FP32 factors to be rounded to the 10 bits of TF32.
        runtime: ``auto`` is ONNX Runtime.
        callers: number of threads that call the session concurrently. With OpenVINO, each gets ``threads`` threads;
            with ONNX Runtime, they share those of the session, and each also computes.

    Raises:
        MissingExtra: the runtime is not installed.
        UsageError: it is installed twice, there is no such device or runtime, they do not go together, or the GPU is
            not available.
        BundleError: the file is not such a network, or has external data.
    """
    check_runtime(runtime, device)
    refuse_external_data(data)
    if runtime == "tensorrt":
        raise UsageError("--runtime tensorrt runs engines, and this is an ONNX file: choose --runtime onnxruntime")
    if runtime == "openvino":
        if exact:
            raise UsageError("OpenVINO always fuses operators: open the file exactly with ONNX Runtime")
        return open_by_openvino(data, threads=threads or available_cores(), callers=callers)
    name, version = installed_onnxruntime()
    threads = threads or available_cores()
    if device in ("cuda", "tensorrt") and name != _GPU_WHEEL:
        raise UsageError(
            f"{'CUDA' if device == 'cuda' else 'TensorRT'} needs onnxruntime-gpu, the CPU build is installed: "
            "pip uninstall -y onnxruntime && pip install 'regnet-deploy[gpu]'"
        )
    if device == "tensorrt":
        if exact:
            raise UsageError("TensorRT always fuses operators: open the file exactly on the CPU or with CUDA")
        return open_on_tensorrt(data, version, threads=threads, tf32=tf32)
    if device == "cuda" or (device == "auto" and name == _GPU_WHEEL and find_gpu() is not None):
        return open_on_cuda(data, version, threads=threads, exact=exact, tf32=tf32)
    return open_on_cpu(data, version, threads=threads, exact=exact)


def open_variant(
    bundle: Bundle,
    name: str,
    *,
    threads: int | None = None,
    device: Device = "auto",
    exact: bool | None = None,
    runtime: Runtime = "auto",
    callers: int = 1,
) -> Session:
    """Open a variant of a bundle: its ONNX file, or its engine for this machine. The sha256 is checked before.

    Args:
        bundle: has the variant.
        name: of the variant.
        threads: number of CPU threads.
        device: where to run it.
        exact: see :func:`open_onnx`; by default as it was proved.
        runtime: which runtime runs it.
        callers: see :func:`open_onnx`.

    Raises:
        MissingPart: the bundle has no variants.
        UsageError: no variant has this name, or this machine cannot run it.
        BundleError: the file is damaged, or its input is not the one the manifest states.
        RegnetDeployError: an engine cannot be loaded.
    """
    reason = runtime_unsupported_reason(bundle, name, device, runtime)
    if reason:
        raise UsageError(f"variant {name} cannot be run here: {reason}")
    variant = find_variant(bundle, name)
    if isinstance(variant, EngineVariant):
        return open_engine(bundle, name)
    if isinstance(variant, OpenvinoVariant):
        data = _source_of(bundle, name, variant)
        session: Session = open_by_openvino(
            data, threads=threads or available_cores(), callers=callers, compute=variant.compute
        )
        return _with_input(session, name, variant)
    exact = variant.exact if exact is None else exact
    if device == "auto" and (exact or variant.precision in _FOR_CPUS):
        device = "cpu"
    data = bundle.read(variant.file)
    session = open_onnx(data, threads=threads, device=device, exact=exact, runtime=runtime, callers=callers)
    return _with_input(session, name, variant)


def _with_input(session: Session, name: str, variant: Variant) -> Session:
    if session.input != variant.input:
        raise BundleError(f"variant {name} takes {session.input} images, bundle.json says {variant.input}")
    return session


def _source_of(bundle: Bundle, name: str, variant: OpenvinoVariant) -> bytes:
    """Return the ONNX file that a variant of OpenVINO runs, if it is the one that was proved."""
    source = bundle.variants.get(variant.source)
    if not isinstance(source, OnnxVariant) or bundle.files[source.file].sha256 != variant.onnx_sha256:
        raise BundleError(
            f"variant {name} of {bundle.path} was proved with another file than that of {variant.source}: run "
            f"`regnet-deploy export --openvino{bundle.argument}`"
        )
    return bundle.read(source.file)


def find_variant(bundle: Bundle, name: str) -> Variant:
    """Return a variant of a bundle.

    Raises:
        MissingPart: the bundle has no variants.
        UsageError: no variant has this name, or its runtime is not known to this version.
    """
    if name in bundle.unknown_variants:
        raise UsageError(f"variant {name} of {bundle.path} cannot be used: {_unknown_runtime(bundle, name)}")
    variants = bundle.variants
    if name not in variants:
        known = (
            f"there are {', '.join(variants)}" if variants else f"run `regnet-deploy export --onnx{bundle.argument}`"
        )
        raise UsageError(f"{bundle.path} has no variant {name!r}{did_you_mean(name, variants)}; {known}")
    return variants[name]


def check_runtime(runtime: str, device: str) -> None:
    """Check that there are such a runtime and device and that they go together.

    Raises:
        UsageError: one of them is not known, or they do not go together.
    """
    for what, word, known in (("device", device, DEVICES), ("runtime", runtime, RUNTIMES)):
        if word not in known:
            raise UsageError(f"no {what} {word!r}{did_you_mean(str(word), known)}; there are {', '.join(known)}")
    if runtime == "openvino" and device in ("cuda", "tensorrt"):
        raise UsageError(
            f"--runtime openvino runs on the CPU, and --device {device} was requested: choose --device cpu, or "
            "--runtime onnxruntime"
        )
    if runtime == "tensorrt" and device == "cpu":
        raise UsageError(
            "--runtime tensorrt runs on a GPU, and --device cpu was requested: choose --device auto, or --runtime "
            "onnxruntime"
        )


def runtime_unsupported_reason(
    bundle: Bundle, name: str, device: Device = "auto", runtime: Runtime = "auto"
) -> str | None:
    """Return why this machine cannot run a variant, or None if it can.

    Raises:
        MissingPart: the bundle has no variants.
        UsageError: no variant has this name, or there is no such device or runtime, or they do not go together.
    """
    check_runtime(runtime, device)
    if name in bundle.unknown_variants:
        return _unknown_runtime(bundle, name)
    variant = find_variant(bundle, name)
    precision = variant.precision
    if precision not in GATES:
        return unknown_precision(precision)
    if isinstance(variant, EngineVariant):
        if runtime not in ("auto", "tensorrt"):
            return f"it is a {variant.runtime} engine, and {runtime} was requested"
        if device == "cpu":
            return f"it is a {variant.runtime} engine, which runs on a GPU, and the CPU was requested"
        return no_engine_reason(bundle, name)
    if isinstance(variant, OpenvinoVariant):
        return _openvino_unsupported_reason(variant, device, runtime)
    if runtime == "tensorrt":
        return "it is an ONNX file, and TensorRT engines were requested"
    if precision in _FOR_CPUS and device in ("cuda", "tensorrt"):
        return f"{precision} is for CPUs, and {device} was requested"
    if variant.exact and runtime == "openvino":
        return f"{precision} is for TensorRT engines, and OpenVINO does not compute the types of the file"
    if precision == "bf16":
        return "ONNX Runtime has no BF16 convolutions; the file is for building TensorRT engines"
    try:
        if runtime == "openvino":
            installed_openvino()
        else:
            installed_onnxruntime()
    except (MissingExtra, UsageError) as error:
        return str(error)
    return None


def _openvino_unsupported_reason(variant: OpenvinoVariant, device: Device, runtime: Runtime) -> str | None:
    if runtime not in ("auto", "openvino"):
        return f"it is for OpenVINO, and {runtime} was requested"
    if device in ("cuda", "tensorrt"):
        return f"it is for OpenVINO on a CPU, and {device} was requested"
    try:
        installed_openvino()
        return bf16_unsupported_reason() if variant.compute == "bf16" else None
    except MissingExtra as error:
        return str(error)


def _unknown_runtime(bundle: Bundle, name: str) -> str:
    runtime = bundle.unknown_variants[name]
    return f"runtime {runtime!r} is not known to this version: pip install --upgrade regnet-deploy"


def classify_pixels(session: Session, pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Return the logits, ``(n, classes)``, of pixels ``(n, h, w, channels)``, normalized here if necessary."""
    return session.run(pixels if session.input == "uint8" else normalize(pixels, preprocessing))


def installed_onnxruntime() -> tuple[str, str]:
    """Return the name and version of the ONNX Runtime that is installed.

    Raises:
        MissingExtra: it is not installed.
        UsageError: both distributions are installed; they overwrite each other's files.
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
