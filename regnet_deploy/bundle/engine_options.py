"""What an engine is built with, beside the network: every choice that can change it, by name.

TensorRT numbers its flags anew from version to version, so nothing here is one of its numbers. The precision is none
of the choices: it is in the ONNX file, and engines are strongly typed.
"""

from __future__ import annotations

import re
from typing import Any, Literal, get_args

from regnet_deploy.bundle.record import Record, default
from regnet_deploy.errors import UsageError, did_you_mean

#: ``ampere+``: any GPU of compute capability 8.0 or later. ``same-compute-capability``: any with that of the builder's.
HardwareCompatible = Literal["ampere+", "same-compute-capability"]

#: What an engine of TensorRT-RTX runs on when nothing else is asked for: Ampere and later, not the data-center GPUs of
#: compute capability 9.0 and 10.0.
RTX_DEFAULT = ("8.0", "8.6", "8.9", "12.0", "12.1")
#: The first compute capability that has FP8.
FP8_FROM = (8, 9)


class EngineOptions(Record, frozen=True, forbid_unknown_fields=True):
    """How an engine is built. Unknown keys are refused: they would decide where an engine runs.

    Attributes:
        tuned_batch: batch size in images that kernels are chosen for.
        max_batch: largest batch size in images.
        min_batch: smallest.
        workspace_bytes: memory of the GPU that a layer may use for itself; None is all of it.
        optimization_level: of the builder, 0 to 5: how long it searches.
        tf32: FP32 convolutions may round their factors to 10 bits.
        version_compatible: later versions of TensorRT can run it, with the lean runtime of the version that built it.
        hardware_compatible: GPUs that it runs on beside the model that built it; None: no others.
        compute_capabilities: of TensorRT-RTX alone: GPUs to build for, such as ``("8.9", "12.0")``; empty is
            :data:`RTX_DEFAULT`.
    """

    tuned_batch: int = default(8)
    max_batch: int = default(32)
    min_batch: int = default(1)
    workspace_bytes: int | None = default(None)
    optimization_level: int = default(3)
    tf32: bool = default(False)
    version_compatible: bool = default(False)
    hardware_compatible: HardwareCompatible | None = default(None)
    compute_capabilities: tuple[str, ...] = default(())

    def __post_init__(self) -> None:
        """Refuse what no builder takes.

        Raises:
            UsageError: one line with the option, the value and what is allowed.
        """
        if not 1 <= self.min_batch <= self.tuned_batch <= self.max_batch:
            raise UsageError(
                f"batches of {self.min_batch} to {self.max_batch} images tuned for {self.tuned_batch} cannot be: "
                "1 <= min_batch <= tuned_batch <= max_batch is needed"
            )
        if not 0 <= self.optimization_level <= 5:
            raise UsageError(f"optimization level {self.optimization_level} is not one of 0 to 5")
        if self.workspace_bytes is not None and self.workspace_bytes < 1:
            raise UsageError(f"a workspace of {self.workspace_bytes} bytes cannot be: give at least 1, or none for all")
        levels = get_args(HardwareCompatible)
        if self.hardware_compatible is not None and self.hardware_compatible not in levels:
            raise UsageError(
                f"no hardware compatibility {self.hardware_compatible!r}"
                f"{did_you_mean(str(self.hardware_compatible), levels)}; there are {', '.join(levels)}"
            )
        for capability in self.compute_capabilities:
            if not re.fullmatch(r"\d{1,2}\.\d", capability):
                raise UsageError(f"{capability!r} is not a compute capability such as 8.9")

    @classmethod
    def up_to(cls, max_batch: int, **others: Any) -> EngineOptions:
        """Return options for batches of 1 to ``max_batch`` images, tuned for the usual batch where that is smaller."""
        return cls(tuned_batch=min(cls().tuned_batch, max_batch), max_batch=max_batch, **others)

    def suited_to(self, runtime: str) -> EngineOptions:
        """Return the options as this runtime takes them.

        Raises:
            UsageError: one of them is not the runtime's.
        """
        if runtime == "tensorrt":
            if self.compute_capabilities:
                raise UsageError(
                    f"compute capabilities ({', '.join(self.compute_capabilities)}) can be chosen for tensorrt-rtx "
                    "only: tensorrt builds for the GPU that is there, or with --hardware-compatible for others"
                )
            return self
        for option in ("version_compatible", "hardware_compatible"):
            if getattr(self, option):
                raise UsageError(
                    f"{option} is an option of tensorrt; engines of tensorrt-rtx run on several GPUs by default"
                )
        return self.replace(compute_capabilities=self.compute_capabilities or RTX_DEFAULT)


def capability(text: str) -> tuple[int, int]:
    """Return a compute capability as numbers that can be compared: ``8.9`` is ``(8, 9)``."""
    major, _, minor = text.partition(".")
    return int(major), int(minor)


def rtx_capabilities(precision: str) -> tuple[str, ...]:
    """Return the usual GPUs that TensorRT-RTX can build this precision for: FP8 from 8.9 on."""
    return tuple(one for one in RTX_DEFAULT if not precision.startswith("fp8") or capability(one) >= FP8_FROM)
