"""Precisions: the type of every operator, written into the ONNX graph.

TensorRT 11 and TensorRT-RTX compute a network in exactly the types of its ONNX file. A precision is therefore a way to
write the file, not an option of a builder. Which type is fast depends on the kind of a convolution, so a precision sets
the type of each :data:`ConvolutionKind` separately.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from regnet_deploy.errors import UsageError, did_you_mean

#: ``stem``: the first 3x3. ``1x1``: in bottlenecks and projection shortcuts. ``3x3``: in blocks, grouped or not.
#: ``gate``: the two of squeeze-and-excitation, which are matrix-vector products.
ConvolutionKind = Literal["stem", "1x1", "3x3", "gate"]
#: Type of tensors that are not quantized.
FloatType = Literal["fp32", "fp16", "bf16"]
#: Type of tensors that are quantized. ``int8``: signed and symmetric, as TensorRT requires. ``uint8``: activations with
#: a zero point and every operator quantized, which is fast in ONNX Runtime on a CPU. ``fp8``: E4M3.
QuantizedType = Literal["int8", "uint8", "fp8"]


@dataclass(frozen=True)
class Precision:
    """The types of a network.

    Attributes:
        name: used on the command line and in the names of variants.
        description: in words.
        float_type: type of what is not quantized.
        quantized_type: type of what is quantized, or None.
        quantized_kinds: kinds of convolutions that are quantized.
        opset: ONNX opset: 18, or the first with the required types (19: FP16 scales and FP8; 22: BF16 convolutions).
            The oldest possible opset works with most versions of TensorRT 10's parser and ONNX Runtime's CUDA kernels.
        opt_in: exported only if requested by name.
    """

    name: str
    description: str
    float_type: FloatType
    quantized_type: QuantizedType | None = None
    quantized_kinds: frozenset[ConvolutionKind] = frozenset()
    opset: int = 18
    opt_in: bool = False

    @property
    def needs_ranges(self) -> bool:
        """Whether activations are quantized, so that their ranges must be measured on images."""
        return self.quantized_type is not None

    @property
    def tensorrt_only(self) -> bool:
        """Whether ONNX Runtime has no fast kernels for it; there it runs as written, without graph optimizations."""
        return self.quantized_type in ("int8", "fp8") or self.float_type == "bf16"

    @property
    def tensorrt_supported(self) -> bool:
        """Whether TensorRT can build an engine from its file."""
        return self.quantized_type != "uint8"

    def convolution_type(self, kind: ConvolutionKind) -> str:
        """Return the type in which convolutions of a kind compute: ``fp32``, ``fp16``, ``bf16``, ``int8``, ``fp8``."""
        if self.quantized_type is None or kind not in self.quantized_kinds:
            return self.float_type
        return "int8" if self.quantized_type == "uint8" else self.quantized_type


#: Name -> precision, the most precise first.
PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision("fp32", "everything in FP32", "fp32"),
        Precision("fp16", "everything in FP16, input and output in FP32", "fp16"),
        Precision("bf16", "everything in BF16, input and output in FP32", "bf16", opset=22, opt_in=True),
        Precision(
            "int8-1x1",
            "1x1 convolutions in INT8, grouped 3x3 convolutions and the rest in FP16: for TensorRT",
            "fp16",
            "int8",
            frozenset({"1x1"}),
            opset=19,
        ),
        Precision(
            "int8",
            "all convolutions except those of squeeze-and-excitation in INT8, the rest in FP16: for TensorRT",
            "fp16",
            "int8",
            frozenset({"stem", "1x1", "3x3"}),
            opset=19,
        ),
        Precision(
            "int8-cpu",
            "every operator in INT8 with unsigned activations: for ONNX Runtime and OpenVINO on a CPU",
            "fp32",
            "uint8",
            frozenset({"stem", "1x1", "3x3", "gate"}),
        ),
        Precision(
            "fp8-1x1",
            "1x1 convolutions in FP8 (E4M3), grouped 3x3 convolutions and the rest in FP16: for TensorRT on GPUs with "
            "compute capability 8.9 or later",
            "fp16",
            "fp8",
            frozenset({"1x1"}),
            opset=19,
            opt_in=True,
        ),
    )
}


def find_precision(name: str) -> Precision:
    """Return the precision with this name.

    Raises:
        UsageError: there is none.
    """
    if name not in PRECISIONS:
        raise UsageError(
            f"unknown precision {name!r}{did_you_mean(name, PRECISIONS)}; the precisions are {', '.join(PRECISIONS)}"
        )
    return PRECISIONS[name]
