"""What a variant computes in: the type of every operator, written into its ONNX graph and nowhere else.

TensorRT 11 and TensorRT-RTX compute a network exactly as its file is typed, so a precision is a way to write the file,
never a flag of a builder. Convolutions are told apart by :data:`Kind`: what is fast in a type depends on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from regnet_deploy.errors import UsageError, did_you_mean

#: ``stem`` is the first 3x3; ``1x1`` those of the bottlenecks and shortcuts; ``3x3`` those of the blocks, grouped or
#: not; ``gate`` the two of squeeze-and-excitation, which are matrices times vectors.
Kind = Literal["stem", "1x1", "3x3", "gate"]
#: Type of what is not quantised.
Float = Literal["fp32", "fp16", "bf16"]
#: Type of what is: ``int8`` signed and symmetric, as TensorRT takes it; ``uint8`` activations with a zero point and
#: every operator quantised, as ONNX Runtime is fast with on a CPU; ``fp8`` E4M3.
Small = Literal["int8", "uint8", "fp8"]


@dataclass(frozen=True)
class Precision:
    """A way to type a network.

    Attributes:
        name: as the user says it and as variants are called.
        computes: in words.
        rest: type of what is not quantised.
        small: type of what is, or None.
        kinds: convolutions that are.
        opset: of the ONNX file: 18, or the first that has what is needed (19: scales in FP16 and FP8; 22: BF16
            convolutions). TensorRT 10's parser and ONNX Runtime's CUDA kernels are surest with the oldest.
        opt_in: built only where it is asked for by name.
    """

    name: str
    computes: str
    rest: Float
    small: Small | None = None
    kinds: frozenset[Kind] = frozenset()
    opset: int = 18
    opt_in: bool = False

    @property
    def needs_ranges(self) -> bool:
        """Whether activations are quantised, so that their ranges have to be measured on images."""
        return self.small is not None

    @property
    def for_tensorrt(self) -> bool:
        """Whether ONNX Runtime's kernels are not what it is for: there it is run as written, without optimisations."""
        return self.small in ("int8", "fp8") or self.rest == "bf16"

    @property
    def for_engines(self) -> bool:
        """Whether TensorRT takes it."""
        return self.small != "uint8"

    def type_of(self, kind: Kind) -> str:
        """Return in which type a convolution of this kind computes: ``fp32``, ``fp16``, ``bf16``, ``int8``, ``fp8``."""
        if self.small is None or kind not in self.kinds:
            return self.rest
        return "int8" if self.small == "uint8" else self.small


_EVERY: frozenset[Kind] = frozenset({"stem", "1x1", "3x3", "gate"})

#: Name -> precision, from the most precise on.
PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision("fp32", "everything in FP32", "fp32"),
        Precision("fp16", "everything in FP16, input and output FP32", "fp16"),
        Precision("bf16", "everything in BF16, input and output FP32", "bf16", opset=22, opt_in=True),
        Precision(
            "int8-1x1",
            "1x1 convolutions in INT8, grouped 3x3 and the rest in FP16: for TensorRT",
            "fp16",
            "int8",
            frozenset({"1x1"}),
            opset=19,
        ),
        Precision(
            "int8",
            "all convolutions of the trunk in INT8, the rest in FP16: for TensorRT",
            "fp16",
            "int8",
            frozenset({"stem", "1x1", "3x3"}),
            opset=19,
        ),
        Precision(
            "int8-cpu",
            "every operator in INT8 with unsigned activations: for ONNX Runtime on a CPU",
            "fp32",
            "uint8",
            _EVERY,
        ),
        Precision(
            "fp8-1x1",
            "1x1 convolutions in FP8 (E4M3), grouped 3x3 and the rest in FP16: compute capability 8.9 and later",
            "fp16",
            "fp8",
            frozenset({"1x1"}),
            opset=19,
            opt_in=True,
        ),
    )
}


def find_precision(name: str) -> Precision:
    """Return the precision of this name.

    Raises:
        UsageError: there is none.
    """
    if name not in PRECISIONS:
        raise UsageError(f"no precision {name!r}{did_you_mean(name, PRECISIONS)}; there are {', '.join(PRECISIONS)}")
    return PRECISIONS[name]
