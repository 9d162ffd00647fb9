"""Quantization to 8 bits: scales, and weights that are rounded with them.

Weights are quantized symmetrically with one scale for each output channel, activations with one scale for each tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

#: Largest magnitude that is used of a type. INT8 does not use -128, so that it is symmetric.
LARGEST = {"int8": 127.0, "fp8": 448.0}
#: Largest magnitude with the reduced range of 7 bits. The sum of two products of UINT8 and INT8 then fits into the 16
#: bits of a CPU without VNNI: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
LARGEST_REDUCED = 64.0
#: Smallest normal number of FP16. A smaller scale would lose most of its bits, or become 0.
_SMALLEST_SCALE = float(np.finfo(np.float16).tiny)
#: Largest and smallest number of FP16.
_LARGEST_FP16, _SMALLEST_FP16 = float(np.finfo(np.float16).max), float(np.finfo(np.float16).smallest_subnormal)
#: Relative error of a few roundings to FP16.
_ROUNDINGS = 2e-3


@dataclass(frozen=True)
class TensorRange:
    """The lowest and the highest value that a quantized tensor can represent."""

    low: float
    high: float


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """A quantized tensor; it stands for ``values * scale``.

    Attributes:
        values: int8 or float8_e4m3fn.
        scale: ``(out,)`` in the float type of the graph.
    """

    values: NDArray[Any]
    scale: NDArray[Any]


def quantize_weights(
    weight: NDArray[np.float32],
    kind: str,
    scale_type: Any,
    *,
    reduce_range: bool = False,
    least_scale: NDArray[np.float64] | float = 0.0,
) -> QuantizedTensor:
    """Quantize a weight ``(out, in, ...)``.

    Args:
        weight: in FP32.
        kind: ``int8`` or ``fp8``.
        scale_type: NumPy type of the scales; the weights are rounded with the scales after conversion to this type.
        reduce_range: use 7 bits of INT8, for CPUs whose 16-bit sums would saturate.
        least_scale: ``(out,)``, the smallest scale that a channel may have.
    """
    largest = LARGEST_REDUCED if reduce_range else LARGEST[kind]
    magnitude = np.abs(weight.reshape(len(weight), -1)).max(axis=1).astype(np.float64)
    with np.errstate(over="ignore"):  # who writes the graph checks the scales, and knows their name
        scale = np.maximum(np.maximum(magnitude / largest, _SMALLEST_SCALE), least_scale).astype(scale_type)
    exact = weight / scale.astype(np.float64).reshape(-1, *[1] * (weight.ndim - 1))
    if kind == "fp8":
        return QuantizedTensor(np.clip(exact, -largest, largest).astype(ml_dtypes.float8_e4m3fn), scale)
    return QuantizedTensor(np.clip(np.rint(exact), -largest, largest).astype(np.int8), scale)


def least_weight_scale(bias: NDArray[Any], input_scale: float) -> NDArray[np.float64]:
    """Return the smallest scales ``(out,)`` of weights with which a bias can be quantized in FP16.

    ONNX Runtime's optimization ``WeightBiasQuantization`` divides the bias in FP16 by the product of both scales and
    converts it to INT32. A quotient beyond FP16 is infinite, and the bias becomes an arbitrary number; so does a
    product that is 0. Only biases of more than four times the largest product of an input and a weight need a larger
    scale, which then changes the result by less than one thousandth of the bias for each input.

    Args:
        bias: ``(out,)``.
        input_scale: of the quantized input.
    """
    magnitude = np.abs(bias.astype(np.float64))
    least_product = magnitude / _LARGEST_FP16 * (1 + _ROUNDINGS) + _SMALLEST_FP16
    return np.where(magnitude > 0, least_product / input_scale, 0.0)


def symmetric_scale(bounds: TensorRange, kind: str) -> float:
    """Return the scale of a tensor that is quantized symmetrically to ``int8`` or ``fp8``."""
    return max(max(abs(bounds.low), abs(bounds.high)) / LARGEST[kind], _SMALLEST_SCALE)


def affine_scale(bounds: TensorRange) -> tuple[float, int]:
    """Return scale and zero point of a tensor that is quantized to UINT8; it can always represent 0."""
    low, high = min(bounds.low, 0.0), max(bounds.high, 0.0)
    scale = max((high - low) / 255.0, _SMALLEST_SCALE)
    return scale, int(np.clip(np.rint(-low / scale), 0, 255))
