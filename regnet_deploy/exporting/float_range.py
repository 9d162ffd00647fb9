"""Range of FP16: a network with larger values is not exported in it.

ONNX Runtime on a CPU computes some FP16 tensors in FP32, so its logits do not always show what overflows on a GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.errors import ProofError
from regnet_deploy.exporting.activation_ranges import observe_activations
from regnet_deploy.exporting.precision import PRECISIONS, Precision

if TYPE_CHECKING:
    from regnet_deploy.exporting.model_source import ModelSource
    from regnet_deploy.runtimes.golden_set import GoldenSet

#: Largest finite number of FP16.
LARGEST_FP16 = float(np.finfo(np.float16).max)


def check_float_range(source: ModelSource, golden: GoldenSet, precision: Precision) -> None:
    """Check that the activations and the logits of the golden images are within the range of a precision's float type.

    Args:
        source: the network; it runs in FP32.
        golden: images and logits.
        precision: only one that computes in FP16 has a smaller range than FP32.

    Raises:
        ProofError: an activation is larger; the message has the first one in the order of the network.
    """
    if precision.float_type != "fp16":
        return
    fp32 = source.onnx(PRECISIONS["fp32"])
    observed = observe_activations(fp32, source.activation_names(), golden.images, source.preprocessing)
    for name, histogram in observed.tensors.items():
        if histogram.largest > LARGEST_FP16:
            what = f"the activation {name} reaches {histogram.largest:.4g} on the golden images"
            raise ProofError(_line(precision.name, what))
    logit = float(np.abs(golden.logits).max())
    if logit > LARGEST_FP16:
        what = f"logits (the output of head.fc) reach {logit:.4g} on the golden images"
        raise ProofError(_line(precision.name, what))


def convert_constant(name: str, value: NDArray[Any], dtype: Any, precision: str) -> NDArray[Any]:
    """Return a constant of a graph in another float type.

    Args:
        name: of the constant.
        value: numbers.
        dtype: NumPy type of the result.
        precision: for the message.

    Raises:
        ProofError: a finite number is beyond the range of the type.
    """
    with np.errstate(over="ignore"):  # found below, with its name
        converted: NDArray[Any] = value.astype(dtype)
    if np.isfinite(value).all():  # what is not finite in the model itself is found in its logits
        check_finite(name, converted, precision, f"{name} has values up to {np.abs(value).max():.4g}")
    return converted


def check_finite(name: str, converted: NDArray[Any], precision: str, what: str = "") -> None:
    """Check that a constant is finite in its type.

    Args:
        name: of the constant.
        converted: the constant in its type.
        precision: for the message.
        what: what is too large, in words; by default that the constant is.

    Raises:
        ProofError: a number is not finite.
    """
    if not np.isfinite(converted.astype(np.float64)).all():
        raise ProofError(_line(precision, what or f"{name} is too large"))


def _line(precision: str, what: str) -> str:
    return (
        f"{precision} is not exported: {what}, beyond the range of its floating-point type (FP16 ends at 65,504): "
        "export --precision bf16, which has the range of FP32, or int8-cpu, or train with a lower --lr"
    )
