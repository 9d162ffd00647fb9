"""How a training step is run: on which device, in which precision and memory layout, compiled or not."""

from __future__ import annotations

import importlib.util
import os
import shutil
from dataclasses import asdict, dataclass
from typing import Any

import torch

from regnet_deploy.cpu import available_cores, cpu_has_bf16
from regnet_deploy.errors import UsageError

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "fp32", "bf16")
SWITCH = ("auto", "on", "off")
_CPU_WORKERS, _CUDA_WORKERS = 1, 8


@dataclass(frozen=True)
class Execution:
    """How a step is run.

    Attributes:
        device: ``cpu`` or ``cuda``.
        precision: ``fp32``, or ``bf16`` for autocast.
        channels_last: whether activations and weights lie in memory as NHWC.
        compiled: whether the forward pass goes through torch.compile.
    """

    device: str
    precision: str = "fp32"
    channels_last: bool = False
    compiled: bool = False

    def __str__(self) -> str:
        """Return it in words."""
        layout = "channels_last" if self.channels_last else "contiguous"
        return f"{self.precision}, {layout}{', compiled' if self.compiled else ''} on {self.device}"

    def to_json(self) -> dict[str, Any]:
        """Return JSON data; ``Execution(**data)`` reads it."""
        return asdict(self)


@dataclass(frozen=True)
class ExecutionRequest:
    """What the user asked for; ``auto`` leaves it to a trial."""

    device: str = "auto"
    precision: str = "auto"
    channels_last: str = "auto"
    compiled: str = "auto"

    def contradictions(self, execution: Execution) -> list[str]:
        """Return, in words, what was asked for and is not so in ``execution``."""
        pairs = {
            "--device": (self.device, execution.device),
            "--precision": (self.precision, execution.precision),
            "--channels-last": (self.channels_last, "on" if execution.channels_last else "off"),
            "--compile": (self.compiled, "on" if execution.compiled else "off"),
        }
        return [f"{option} {now} (was {was})" for option, (now, was) in pairs.items() if now not in ("auto", was)]

    def candidates(self) -> list[Execution]:
        """Return what may be tried, the plainest first; compilation only where it was asked for.

        Raises:
            UsageError: the device is not there, or cannot do what was asked.
        """
        device = resolve_device(self.device)
        native = has_bf16(device)
        if self.precision == "bf16" and device == "cuda" and not native:
            raise UsageError("this GPU has no bfloat16 of its own: give --precision fp32")
        precisions = ["fp32", "bf16"] if self.precision == "auto" and native else [self.precision]
        precisions = ["fp32" if precision == "auto" else precision for precision in precisions]
        layouts = {"auto": [False, True], "on": [True], "off": [False]}[self.channels_last]
        compiled = self.compiled == "on"
        return [Execution(device, precision, layout, compiled) for precision in precisions for layout in layouts]


def resolve_device(wanted: str) -> str:
    """Return ``cuda`` or ``cpu`` for what was asked.

    Raises:
        UsageError: CUDA was asked for and is not there.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device cuda: PyTorch {torch.__version__} finds no CUDA device here; give --device cpu")
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted


def disable_tf32() -> None:
    """Have convolutions on a GPU computed in FP32 where that is what is asked for, not rounded to TF32's 10 bits."""
    torch.backends.cudnn.allow_tf32 = False


def has_bf16(device: str) -> bool:
    """Tell whether the device multiplies in bfloat16 itself (emulation is slower than FP32)."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return cpu_has_bf16()


def can_compile(device: str) -> bool:
    """Tell whether what torch.compile needs on this device is installed: a C compiler, and Triton for CUDA."""
    compiler = any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++", "gcc", "cc"))
    return compiler and (device != "cuda" or importlib.util.find_spec("triton") is not None)


def default_workers(device: str, in_memory: bool) -> int:
    """Return how many processes load images.

    With CUDA up to 8. On a CPU the cores are busy with the network: none where the decoded images are in memory, else
    one, so that reading and decoding overlap with it.
    """
    if device == "cuda":
        return min(_CUDA_WORKERS, available_cores())
    return 0 if in_memory else _CPU_WORKERS


def device_name(device: str) -> str:
    """Return what the device calls itself."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads"
