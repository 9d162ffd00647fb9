"""What can run a bundle's network on this machine: the model in PyTorch and the exported variants that are proved.

All are timed alike, from images in the host's memory to logits there, as a server meets them: with a GPU the copies
both ways are in it, and a call has ended when its result is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from regnet_deploy.bundle import Bundle
from regnet_deploy.errors import UsageError
from regnet_deploy.profiling.latency import Runner, Timed
from regnet_deploy.runtimes.default_variant import proof_of
from regnet_deploy.runtimes.runtime import Device, Session, find_variant, open_variant, runtime_unsupported_reason

#: Seed of the pixels that are measured with; their values do not change how long a convolution takes.
_SEED = 0


def pick_device(wanted: str) -> torch.device:
    """Return where to measure: ``auto`` is the GPU where PyTorch has one.

    Raises:
        UsageError: CUDA was asked for and PyTorch has none.
    """
    if wanted in ("cuda", "tensorrt") and not torch.cuda.is_available():
        raise UsageError(
            f"--device {wanted}: PyTorch sees no CUDA device here; use --device cpu, or a CUDA build of torch"
        )
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def torch_runner(model: nn.Module, device: torch.device, resolution: int, threads: int) -> Runner:
    """Return the model itself: eager, inference mode, channels last (the faster layout for grouped convolutions)."""
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def prepare(batch: int) -> Timed:
        generator = torch.Generator().manual_seed(_SEED)
        images = torch.randn(batch, 3, resolution, resolution, generator=generator)
        images = images.contiguous(memory_format=torch.channels_last)

        def run() -> None:
            with torch.inference_mode():
                model(images.to(device)).cpu()

        return _wall_clock(run)

    tf32 = device.type == "cuda" and torch.backends.cudnn.allow_tf32
    return Runner(
        runtime=f"torch {torch.__version__}",
        variant=None,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        precision="tf32" if tf32 else "fp32",
        layout="channels_last",
        threads=threads,
        prepare=prepare,
    )


def variant_runners(
    bundle: Bundle, device: Device, resolution: int, threads: int, note: Callable[[str], None]
) -> list[Runner]:
    """Return the variants that are proved and that this machine runs; ``note`` is told why another one is not."""
    contenders = []
    for name, variant in bundle.parts.get("variants", {}).items():
        reason = runtime_unsupported_reason(bundle, name, device) or _why_not_measured(bundle, name)
        if reason:
            note(f"{name} is not measured: {reason}")
            continue
        session = open_variant(bundle, name, threads=threads, device=device)
        contenders.append(session_runner(session, name, variant, resolution, threads))
    return contenders


def _why_not_measured(bundle: Bundle, name: str) -> str | None:
    if not proof_of(bundle, name):
        return "it is not proved"
    if find_variant(bundle, name).get("exact"):
        return "TensorRT engines are built from it, ONNX Runtime has no kernels of its own for it"
    return None


def session_runner(session: Session, name: str, variant: dict[str, Any], resolution: int, threads: int) -> Runner:
    """Return an opened variant; ``variant`` is what the manifest says of it."""

    def prepare(batch: int) -> Timed:
        random = np.random.default_rng(_SEED)
        if session.input == "uint8":
            images = random.integers(0, 256, (batch, resolution, resolution, 3), dtype=np.uint8)
            return _wall_clock(lambda: session.run(images))
        normal = random.standard_normal((batch, 3, resolution, resolution), dtype=np.float32)
        return _wall_clock(lambda: session.run(normal))

    return Runner(
        runtime=session.runtime,
        variant=name,
        device=session.device,
        precision=variant["precision"],
        layout="channels_last" if session.input == "uint8" else "channels_first",
        threads=threads,
        prepare=prepare,
    )


def _wall_clock(run: Callable[[], object]) -> Timed:
    """Time a call that returns when its result is there."""

    def timed() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return timed
