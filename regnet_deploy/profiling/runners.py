"""Runners of a bundle's network on this machine: the model in PyTorch and the proved variants.

Each inference is timed from images in host memory to logits in host memory, as in a server. With a GPU this includes
the copies in both directions.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from regnet_deploy.bundle import Bundle
from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.bundle.variants import OnnxVariant
from regnet_deploy.errors import ProofError, UsageError
from regnet_deploy.images.preprocessing import image_shape
from regnet_deploy.profiling.latency import Runner, TimedInference
from regnet_deploy.progress import Progress
from regnet_deploy.runtimes.checked_variant import open_checked_variant
from regnet_deploy.runtimes.default_variant import proof_of
from regnet_deploy.runtimes.runtime import Device, Session, runtime_unsupported_reason

#: Seed of the random images; their values do not change the duration of a convolution.
_SEED = 0


def pick_device(wanted: str) -> torch.device:
    """Return where PyTorch runs: with ``auto`` the GPU if PyTorch can use one.

    Raises:
        UsageError: CUDA is requested and PyTorch cannot use it.
    """
    if wanted in ("cuda", "tensorrt") and not torch.cuda.is_available():
        raise UsageError(
            f"--device {wanted}: PyTorch finds no CUDA device here; use --device cpu, or a CUDA build of torch"
        )
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def torch_runner(
    model: nn.Module, device: torch.device, preprocessing: Preprocessing, threads: int, *, compiled: bool = False
) -> Runner:
    """Return the PyTorch model: inference mode, channels last (the faster layout for grouped convolutions).

    Args:
        model: is moved to the device.
        device: where it runs.
        preprocessing: of the images.
        threads: number of CPU threads that PyTorch uses.
        compiled: run it by torch.compile, with its weights as constants and a program for each batch size. Preparing a
            batch size compiles it, and raises UsageError where that fails.
    """
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    forward: Callable[[torch.Tensor], torch.Tensor] = model
    if compiled:
        with _no_deprecations():
            forward = torch.compile(model, dynamic=False, options={"freezing": True})

    def prepare(batch: int) -> TimedInference:
        generator = torch.Generator().manual_seed(_SEED)
        images = torch.randn(batch, *image_shape(preprocessing, pixels=False), generator=generator)
        images = images.contiguous(memory_format=torch.channels_last)

        def run() -> None:
            with torch.inference_mode():
                forward(images.to(device)).cpu()

        if compiled:
            try:
                with _no_deprecations():
                    run()
            except _compile_errors() as error:
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise UsageError(f"torch.compile fails here ({reason}): leave --compile off") from None
        return _wall_clock(run)

    tf32 = device.type == "cuda" and torch.backends.cudnn.allow_tf32
    return Runner(
        runtime=f"torch {torch.__version__}" + (", compiled" if compiled else ""),
        variant=None,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        precision="tf32" if tf32 else "fp32",
        layout="channels_last",
        threads=threads,
        prepare=prepare,
    )


@contextmanager
def _no_deprecations() -> Iterator[None]:
    """Leave out warnings that the compiler of PyTorch uses deprecated functions of PyTorch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _compile_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that torch.compile raises if its compilers are missing or fail."""
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    return TorchDynamoException, CppCompileError, InvalidCxxCompiler


def variant_runners(bundle: Bundle, device: Device, threads: int, progress: Progress) -> list[Runner]:
    """Return the variants that are proved and that this machine can run; a message says why another one is left out."""
    runners = []
    for name, variant in bundle.manifest.variants.items():
        reason = runtime_unsupported_reason(bundle, name, device) or _unmeasured_reason(bundle, name)
        if reason:
            progress.message(f"{name} is not measured: {reason}")
            continue
        try:
            session = open_checked_variant(bundle, name, threads=threads, device=device)
        except ProofError as error:  # the speed of wrong answers is of no use
            progress.message(f"{name} is not measured: {error}")
            continue
        runners.append(session_runner(session, name, variant.precision, bundle.preprocessing, threads))
    return runners


def _unmeasured_reason(bundle: Bundle, name: str) -> str | None:
    if not proof_of(bundle, name):
        return "it is not proved"
    variant = bundle.variants[name]
    if isinstance(variant, OnnxVariant) and variant.exact:
        return "it is the source of TensorRT engines, and ONNX Runtime has no kernels for its types"
    return None


def session_runner(session: Session, name: str, precision: str, preprocessing: Preprocessing, threads: int) -> Runner:
    """Return a runner of an opened variant."""
    image = image_shape(preprocessing, pixels=session.input == "uint8")

    def prepare(batch: int) -> TimedInference:
        random = np.random.default_rng(_SEED)
        if session.input == "uint8":
            images = random.integers(0, 256, (batch, *image), dtype=np.uint8)
            return _wall_clock(lambda: session.run(images))
        normal = random.standard_normal((batch, *image), dtype=np.float32)
        return _wall_clock(lambda: session.run(normal))

    return Runner(
        runtime=session.runtime,
        variant=name,
        device=session.device,
        precision=precision,
        layout="channels_last" if session.input == "uint8" else "channels_first",
        threads=threads,
        prepare=prepare,
    )


def _wall_clock(run: Callable[[], object]) -> TimedInference:
    """Return a function that makes a call, which returns with its result, and returns the duration in seconds."""

    def timed() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return timed
