"""How training steps are executed: device, precision, memory layout, compilation."""

from __future__ import annotations

import importlib.util
import os
import shutil
from dataclasses import dataclass

import torch

from regnet_deploy.bundle.training import Autotune, Execution
from regnet_deploy.cpu import available_cores, cpu_has_bf16
from regnet_deploy.errors import UsageError

DEVICES = ("auto", "cpu", "cuda")
#: Fewest images that may be taken through the network at a time: a part of a step then has two images or more.
SMALLEST_PART = 4
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
#: Compilation for a GPU takes a minute or two; it is used for runs of this many steps or more.
COMPILED_STEPS = 10_000
_CPU_WORKERS, _CUDA_WORKERS = 1, 8


@dataclass(frozen=True)
class ExecutionRequest:
    """What the user requests; :meth:`execution` decides ``auto`` by rule.

    Attributes:
        device: ``cpu``, ``cuda`` or ``auto``.
        precision: ``fp32``, ``bf16``, ``fp16`` or ``auto``.
        channels_last: ``on``, ``off`` or ``auto``.
        compiled: ``on``, ``off`` or ``auto``.
        threads: CPU threads; None is one for each core that this process may use.
        sync_bn: whether batch norm in training has the statistics of the images of all processes.
        micro_batch: most images that a process takes through the network at a time, 4 or more; None is its whole share
            of a step. Batch norm has the statistics of each part.
    """

    device: str = "auto"
    precision: str = "auto"
    channels_last: str = "auto"
    compiled: str = "auto"
    threads: int | None = None
    sync_bn: bool = False
    micro_batch: int | None = None

    def __post_init__(self) -> None:
        """Check the number of images.

        Raises:
            UsageError: it is too small for batch norm.
        """
        if self.micro_batch is not None and self.micro_batch < SMALLEST_PART:
            raise UsageError(f"--micro-batch must be {SMALLEST_PART} images or more, got {self.micro_batch}")

    def contradictions(self, before: Autotune) -> list[str]:
        """Return, in words, what is requested and differs from an earlier execution."""
        execution = before.execution
        pairs = {
            "--device": (self.device, execution.device),
            "--precision": (self.precision, execution.precision),
            "--channels-last": (self.channels_last, "on" if execution.channels_last else "off"),
            "--compile": (self.compiled, "on" if execution.compiled else "off"),
            "--micro-batch": (str(self.micro_batch or "none"), str(execution.micro_batch or "none")),
            "--sync-bn": ("on" if self.sync_bn else "off", "on" if execution.sync_bn else "off"),
        }
        if self.threads is not None and before.threads is not None:
            pairs["--threads"] = (str(self.threads), str(before.threads))
        return [f"{option} {now} (was {was})" for option, (now, was) in pairs.items() if now not in ("auto", was)]

    def execution(self, steps: int = 0) -> Execution:
        """Return how steps are executed.

        ``auto`` follows from the device and the length of the run alone. A timed trial would choose by the load of the
        machine, and another precision or memory layout gives other weights: the same command would not give the same
        weights twice. FP32 on a CPU, BF16 on a GPU that supports it, channels last, and compilation on a GPU for
        :data:`COMPILED_STEPS` steps or more.

        Args:
            steps: of the whole run.

        Raises:
            UsageError: the device is not available, or does not support what is requested.
        """
        device = resolve_device(self.device)
        cuda = device == "cuda"
        if self.precision == "bf16" and cuda and not has_bf16(device):
            raise UsageError("this GPU does not support bfloat16: give --precision fp32")
        ensure_fp16(self.precision, device)
        if self.compiled == "on" and not can_compile(device):
            raise UsageError(
                "--compile on: torch.compile finds no C compiler here (or no Triton for CUDA); leave it off"
            )
        precision = "bf16" if cuda and has_bf16(device) else "fp32"
        long = self.compiled == "auto" and cuda and steps >= COMPILED_STEPS and can_compile(device)
        return Execution(
            device,
            precision if self.precision == "auto" else self.precision,
            channels_last=self.channels_last != "off",
            compiled=self.compiled == "on" or long,
            sync_bn=self.sync_bn or None,
            micro_batch=self.micro_batch,
        )


def resolve_device(device: str) -> str:
    """Return ``cuda`` or ``cpu`` for a requested device; ``auto`` is CUDA if it is available.

    Raises:
        UsageError: CUDA is requested and not available.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device cuda: PyTorch {torch.__version__} finds no CUDA device; give --device cpu")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def disable_tf32() -> None:
    """Compute FP32 convolutions on a GPU in FP32, not in TF32 with a mantissa of 10 bits."""
    torch.backends.cudnn.allow_tf32 = False


def has_bf16(device: str) -> bool:
    """Tell whether the hardware supports bfloat16 (emulation is slower than FP32)."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return cpu_has_bf16()


def ensure_fp16(precision: str, device: str) -> None:
    """Check that the device computes in float16, if that is the precision.

    Raises:
        UsageError: it does not.
    """
    if precision == "fp16" and not has_fp16(device):
        raise UsageError(
            f"--precision fp16: PyTorch {torch.__version__} has no convolutions in float16 for this {device.upper()}: "
            "give --precision fp32"
        )


def has_fp16(device: str) -> bool:
    """Tell whether a convolution and its gradients are computed in float16, with or without instructions for it."""
    weight = torch.ones(4, 2, 3, 3, device=device, requires_grad=True)
    try:
        with torch.autocast(device, torch.float16):
            out = torch.nn.functional.conv2d(torch.ones(2, 4, 5, 5, device=device), weight, groups=2)
        out.float().sum().backward()  # type: ignore[no-untyped-call]
    except RuntimeError:  # "not implemented for 'Half'"
        return False
    return out.dtype == torch.float16


def can_compile(device: str) -> bool:
    """Tell whether torch.compile has what it needs: a C compiler, and Triton for CUDA."""
    compiler = any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++", "gcc", "cc"))
    return compiler and (device != "cuda" or importlib.util.find_spec("triton") is not None)


def default_workers(device: str, in_memory: bool) -> int:
    """Return the number of processes that load images.

    With CUDA it is up to 8. On a CPU the network needs the cores: 0 if the decoded images are in memory, else 1, so
    that loading overlaps with training.
    """
    if device == "cuda":
        return min(_CUDA_WORKERS, available_cores())
    return 0 if in_memory else _CPU_WORKERS


def device_name(device: str) -> str:
    """Return the name of the device."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'' if threads == 1 else 's'}"
