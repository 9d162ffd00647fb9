"""Numbers of eight bits: scales, and weights rounded to them.

Weights are quantised symmetrically, each output channel with a scale of its own; activations with one scale a tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

#: Largest magnitude that is used of a type. INT8 leaves -128 alone, so that it is symmetric.
LARGEST = {"int8": 127.0, "fp8": 448.0}
#: With 7 bits of a weight the sums of two products of UINT8 and INT8 stay in 16 bits, where a CPU without VNNI keeps
#: them: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
REDUCED = 64.0
#: Smallest normal number of FP16: a scale below it would be rounded to a few bits, or to 0.
_SMALLEST_SCALE = float(np.finfo(np.float16).tiny)


@dataclass(frozen=True)
class TensorRange:
    """Lowest and highest value that a tensor's quantisation has room for."""

    low: float
    high: float


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """A tensor in a small type: ``values * scale`` is what it stands for.

    Attributes:
        values: int8, or float8_e4m3fn.
        scale: ``(out,)`` in the type that is computed with.
    """

    values: NDArray[Any]
    scale: NDArray[Any]


def quantize_weights(
    weight: NDArray[np.float32], kind: str, scale_type: Any, *, reduced: bool = False
) -> QuantizedTensor:
    """Round a weight ``(out, in, ...)`` to ``int8`` or ``fp8``.

    Args:
        weight: in FP32.
        kind: ``int8`` or ``fp8``.
        scale_type: NumPy's type of the scales; the weights are rounded with the scales as that type holds them.
        reduced: use 7 bits of INT8, for a CPU that would saturate.
    """
    largest = REDUCED if reduced else LARGEST[kind]
    most = np.abs(weight.reshape(len(weight), -1)).max(axis=1).astype(np.float64)
    scale = np.maximum(most / largest, _SMALLEST_SCALE).astype(scale_type)
    exact = weight / scale.astype(np.float64).reshape(-1, *[1] * (weight.ndim - 1))
    if kind == "fp8":
        return QuantizedTensor(np.clip(exact, -largest, largest).astype(ml_dtypes.float8_e4m3fn), scale)
    return QuantizedTensor(np.clip(np.rint(exact), -largest, largest).astype(np.int8), scale)


def symmetric_scale(bounds: TensorRange, kind: str) -> float:
    """Return the scale of a tensor that is quantised symmetrically to ``int8`` or ``fp8``."""
    return max(max(abs(bounds.low), abs(bounds.high)) / LARGEST[kind], _SMALLEST_SCALE)


def affine_scale(bounds: TensorRange) -> tuple[float, int]:
    """Return scale and zero point of a tensor that is quantised to UINT8; 0 is always one of its values."""
    low, high = min(bounds.low, 0.0), max(bounds.high, 0.0)
    scale = max((high - low) / 255.0, _SMALLEST_SCALE)
    return scale, int(np.clip(np.rint(-low / scale), 0, 255))
