"""What ONNX Runtime's kernels on a CPU do not compute as a file is typed. Imports no onnx: ``verify`` asks without."""

from __future__ import annotations

import re

from regnet_deploy.exporting.precision import Precision
from regnet_deploy.runtimes.runtime import installed_onnxruntime

#: First release that rounds where a file quantises FP16 to INT8. Those before truncate, which no other runtime does:
#: github.com/microsoft/onnxruntime/issues/18576.
_ROUNDS = (1, 30)


def truncates_fp16_to_int8(version: str) -> bool:
    """Tell whether this release of ONNX Runtime truncates on a CPU where a file quantises FP16 to INT8."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return numbers is not None and (int(numbers[1]), int(numbers[2])) < _ROUNDS


def runs_as_typed(precision: Precision) -> bool:
    """Tell whether the installed ONNX Runtime computes files of a precision on a CPU as they are typed.

    Raises:
        MissingExtra: none is installed.
        UsageError: it is installed twice.
    """
    if precision.rest == "bf16":  # there are no convolutions
        return False
    return not (
        precision.rest == "fp16" and precision.small == "int8" and truncates_fp16_to_int8(installed_onnxruntime()[1])
    )
