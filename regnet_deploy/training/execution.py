"""How training steps are executed: device, precision, memory layout, compilation."""

from __future__ import annotations

import importlib.util
import os
import shutil
from dataclasses import dataclass

import torch

from regnet_deploy.bundle.training import Execution
from regnet_deploy.cpu import available_cores, cpu_has_bf16
from regnet_deploy.errors import UsageError

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "fp32", "bf16")
_CPU_WORKERS, _CUDA_WORKERS = 1, 8


@dataclass(frozen=True)
class ExecutionRequest:
    """What the user requests; ``auto`` is decided by timed steps."""

    device: str = "auto"
    precision: str = "auto"
    channels_last: str = "auto"
    compiled: str = "auto"

    def contradictions(self, execution: Execution) -> list[str]:
        """Return, in words, what is requested and differs in ``execution``."""
        pairs = {
            "--device": (self.device, execution.device),
            "--precision": (self.precision, execution.precision),
            "--channels-last": (self.channels_last, "on" if execution.channels_last else "off"),
            "--compile": (self.compiled, "on" if execution.compiled else "off"),
        }
        return [f"{option} {now} (was {was})" for option, (now, was) in pairs.items() if now not in ("auto", was)]

    def candidates(self) -> list[Execution]:
        """Return the executions to choose from, FP32 and contiguous first; compiled only if it is requested.

        Raises:
            UsageError: the device is not available, or does not support what is requested.
        """
        device = resolve_device(self.device)
        native = has_bf16(device)
        if self.precision == "bf16" and device == "cuda" and not native:
            raise UsageError("this GPU does not support bfloat16: give --precision fp32")
        precisions = ["fp32", "bf16"] if self.precision == "auto" and native else [self.precision]
        precisions = ["fp32" if precision == "auto" else precision for precision in precisions]
        layouts = {"auto": [False, True], "on": [True], "off": [False]}[self.channels_last]
        compiled = self.compiled == "on"
        return [Execution(device, precision, layout, compiled) for precision in precisions for layout in layouts]


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
    return f"CPU, {torch.get_num_threads()} threads"
