"""Options of the build of an engine.

Flags of TensorRT have other numbers in each version, so options have names. The precision is not an option: it is in
the ONNX file, and engines are strongly typed.
"""

from __future__ import annotations

import re
from typing import Any, Literal, get_args

from regnet_deploy.bundle.record import Record, default
from regnet_deploy.errors import UsageError, did_you_mean
from regnet_deploy.field_types import check_field_types

#: ``ampere+``: all GPUs of compute capability 8.0 or later. ``same-compute-capability``: all with that of the builder.
HardwareCompatible = Literal["ampere+", "same-compute-capability"]

#: Default compute capabilities of TensorRT-RTX: Ampere and later, without the data center GPUs 9.0 and 10.0.
RTX_DEFAULT = ("8.0", "8.6", "8.9", "12.0", "12.1")
#: First compute capability with FP8.
FP8_FROM = (8, 9)


class EngineOptions(Record, frozen=True, forbid_unknown_fields=True):
    """How an engine is built. Unknown keys are rejected, because they could decide where an engine runs.

    Attributes:
        tuned_batch: batch size for which kernels are chosen, images.
        max_batch: maximum batch size, images.
        min_batch: minimum batch size, images.
        workspace_bytes: maximum GPU memory that a layer may use; None is no limit.
        optimization_level: of the builder, 0 to 5; a higher level searches longer.
        tf32: allow FP32 convolutions to round their factors to 10 bits.
        version_compatible: build an engine for later versions of TensorRT too, with the lean runtime of this one.
        hardware_compatible: GPUs on which it runs besides the model that built it; None for no others.
        compute_capabilities: for TensorRT-RTX only: GPUs to build for, such as ``("8.9", "12.0")``; empty is
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
        """Check the options.

        Raises:
            UsageError: no builder supports the value of an option; the message has what is allowed.
        """
        check_field_types(self)
        if not 1 <= self.min_batch <= self.tuned_batch <= self.max_batch:
            raise UsageError(
                f"batches of {self.min_batch} to {self.max_batch} images tuned for {self.tuned_batch} are impossible: "
                "1 <= min_batch <= tuned_batch <= max_batch is required"
            )
        if not 0 <= self.optimization_level <= 5:
            raise UsageError(f"optimization level {self.optimization_level} is not one of 0 to 5")
        if self.workspace_bytes is not None and self.workspace_bytes < 1:
            raise UsageError(
                f"a workspace of {self.workspace_bytes} bytes is not possible: give at least 1, or none for all"
            )
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
        """Return options for batches of 1 to ``max_batch`` images, tuned for the default batch if that is smaller."""
        return cls(tuned_batch=min(cls().tuned_batch, max_batch), max_batch=max_batch, **others)

    def suited_to(self, runtime: str) -> EngineOptions:
        """Return the options with the defaults of a runtime.

        Raises:
            UsageError: the runtime does not support one of them.
        """
        if runtime == "tensorrt":
            if self.compute_capabilities:
                raise UsageError(
                    f"compute capabilities ({', '.join(self.compute_capabilities)}) can be chosen for tensorrt-rtx "
                    "only: tensorrt builds for the GPU of this machine, or with --hardware-compatible for others"
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
    """Return the default compute capabilities of TensorRT-RTX that support a precision: FP8 needs 8.9."""
    return tuple(one for one in RTX_DEFAULT if not precision.startswith("fp8") or capability(one) >= FP8_FROM)
