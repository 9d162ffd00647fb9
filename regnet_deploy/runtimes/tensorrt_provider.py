"""Runs networks on an NVIDIA GPU with ONNX Runtime's TensorRT provider, with a separate engine cache for each network.

The provider names cached engines by the structure of the graph, so other weights, or another GPU, driver or release,
would get a wrong engine. Here, each combination has its own folder, named by a hash of all of these. A folder is filled
under a temporary name and then renamed, so that an interrupted build leaves nothing that could be loaded.

The provider builds weakly typed networks: TensorRT may compute a convolution in another type than that of the file, and
this is not checked. The types of engines from `export --trt` are checked.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import json
import os
import re
import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from regnet_deploy.engines.capture_lock import capture_lock
from regnet_deploy.engines.gpu import Gpu, find_gpu
from regnet_deploy.errors import UsageError
from regnet_deploy.runtimes.cuda_session import provider_file, refuse_fallback, require_cuda_provider, strict_options
from regnet_deploy.runtimes.onnx_file import BFLOAT16, FLOAT16, INT8, OnnxSignature, read_onnx_signature
from regnet_deploy.runtimes.onnx_session import (
    OnnxSession,
    create_session,
    graph_io,
    import_onnxruntime,
    open_error,
    ort_failures,
    session_options,
)
from regnet_deploy.runtimes.shared_libraries import load_shared_library, needed_libraries
from regnet_deploy.user_cache import cache_folder

TENSORRT = "TensorrtExecutionProvider"

#: Maximum batch size of an engine, and the batch size for which its kernels are chosen.
LARGEST_BATCH, TUNED_BATCH = 32, 8

#: Environment variable that disables TF32; TensorRT reads it when it is loaded, and the provider has no such option.
_TF32 = "NVIDIA_TF32_OVERRIDE"


def open_on_tensorrt(data: bytes, version: str, *, threads: int, tf32: bool = False) -> OnnxSession:
    """Open the bytes of an ONNX file with TensorRT on the first GPU; the first time, this builds an engine for minutes.

    Args:
        data: one file without external data.
        version: of ONNX Runtime.
        threads: number of CPU threads; the CPU has little to do.
        tf32: allow FP32 factors to be rounded to the 10 bits of TF32. This is the same for all sessions of a process.

    Raises:
        UsageError: there is no GPU, the provider or a library that it needs is missing, TensorRT does not support the
            whole network, or engines cannot be stored.
        BundleError: ONNX Runtime cannot open the file, or it does not map images to logits.
    """
    if not tf32:
        os.environ.setdefault(_TF32, "0")
    gpu = find_gpu()
    if gpu is None:
        raise UsageError("TensorRT needs an NVIDIA GPU and the driver shows none (nvidia-smi): choose --device cpu")
    ort = import_onnxruntime()
    tensorrt = load_tensorrt(provider_file(ort, TENSORRT, version), version)
    require_cuda_provider(ort, TENSORRT, version)
    signature = read_onnx_signature(data)
    settings = _settings(signature)
    key = engine_key(data, settings, version, tensorrt, gpu)
    with _engine_folder(key) as folder:
        settings |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(folder)}
        try:
            with capture_lock().working():
                session = create_session(
                    data, strict_options(session_options(threads, exact=False)), [(TENSORRT, settings)]
                )
        except ort_failures() as error:
            if "fallback to CPU EP" in str(error):
                raise UsageError(
                    f"TensorRT {tensorrt} does not support the whole network: use another variant, or --device cuda"
                ) from None
            raise open_error(version, error) from None
        refuse_fallback(session, TENSORRT, version)
    name = f"onnxruntime {version}, TensorRT {tensorrt}"
    return OnnxSession(session, graph_io(session), name, "cuda:0", largest=LARGEST_BATCH)


def load_tensorrt(provider: Path, version: str) -> str:
    """Load the libraries of the TensorRT that ``provider`` was built with, and return its version.

    Raises:
        UsageError: it is not installed; the message has the installed version, if there is another.
    """
    loaded = {}
    for name in needed_libraries(provider):
        if not name.startswith(("libnvinfer.", "libnvonnxparser.")):
            continue
        found = load_shared_library(name) or next(filter(None, map(load_shared_library, _in_wheels(name))), None)
        if found is None:
            major = name.rpartition(".")[2]
            installed = _installed_tensorrt()
            raise UsageError(
                f"ONNX Runtime {version} needs TensorRT {major}, {name} cannot be loaded"
                + (f" (TensorRT {installed} is installed)" if installed else "")
                + f": pip install 'tensorrt>={major},<{int(major) + 1}', or --device cuda"
            )
        loaded[name.split(".")[0]] = found
    ask = loaded["libnvinfer"].getInferLibVersion
    ask.restype, ask.argtypes = ctypes.c_int32, []
    number = ask()
    return f"{number // 10_000}.{number // 100 % 100}.{number % 100}"


def engine_key(data: bytes, settings: dict[str, str], version: str, tensorrt: str, gpu: Gpu) -> str:
    """Return the hash of everything that an engine depends on: network, weights, settings, releases, GPU and driver."""
    facts = {
        "onnx": hashlib.sha256(data).hexdigest(),
        "settings": settings,
        "onnxruntime": version,
        "tensorrt": tensorrt,
        "gpu": [gpu.name, gpu.compute_capability, gpu.multiprocessors, gpu.driver, gpu.cuda],
        "tf32": os.environ.get(_TF32),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _settings(signature: OnnxSignature) -> dict[str, str]:
    """Return the provider's options: the types of the file, one engine for 1 to LARGEST_BATCH images."""
    shapes = {"min": 1, "opt": TUNED_BATCH, "max": LARGEST_BATCH}
    image = "x".join(map(str, signature.image))
    return {
        "trt_fp16_enable": str(int(FLOAT16 in signature.types)),
        "trt_bf16_enable": str(int(BFLOAT16 in signature.types)),
        "trt_int8_enable": str(int(INT8 in signature.types)),
        **{f"trt_profile_{end}_shapes": f"{signature.name}:{batch}x{image}" for end, batch in shapes.items()},
    }


@contextlib.contextmanager
def _engine_folder(key: str) -> Any:
    """Yield the folder for the engines of ``key``; a new folder is stored only if the body succeeds."""
    home = cache_folder("onnxruntime-tensorrt")
    kept = home / key[:32]
    if kept.is_dir():
        yield kept
        return
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f"{key[:32]}.", dir=home))
    except OSError as error:
        raise UsageError(
            f"engines cannot be stored in {home}: {error.strerror}; set XDG_CACHE_HOME to a folder that can be written"
        ) from None
    try:
        yield fresh
        with contextlib.suppress(OSError):  # another process was faster; its engine is equal
            fresh.rename(kept)
    finally:
        if fresh.is_dir():
            shutil.rmtree(fresh)


def _in_wheels(name: str) -> list[Path]:
    """Return the paths of a TensorRT library in NVIDIA's wheels, where the loader does not search."""
    spec = importlib.util.find_spec("tensorrt_libs")
    return [Path(folder) / name for folder in (spec.submodule_search_locations or ())] if spec else []


def _installed_tensorrt() -> str | None:
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"] or ""
        if re.fullmatch(r"tensorrt(-cu\d+)?", name.replace("_", "-")):
            return distribution.version
    return None
