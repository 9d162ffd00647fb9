import pytest

from regnet_deploy.errors import UsageError
from regnet_deploy.exporting.precision import PRECISIONS, find_precision

KINDS = ("stem", "1x1", "3x3", "gate")

#: Precision -> types of the stem, 1x1, 3x3 and gate convolutions.
TYPES = {
    "fp32": ("fp32", "fp32", "fp32", "fp32"),
    "fp16": ("fp16", "fp16", "fp16", "fp16"),
    "bf16": ("bf16", "bf16", "bf16", "bf16"),
    "int8": ("int8", "int8", "int8", "fp16"),
    "int8-1x1": ("fp16", "int8", "fp16", "fp16"),
    "int8-cpu": ("int8", "int8", "int8", "int8"),
    "fp8-1x1": ("fp16", "fp8", "fp16", "fp16"),
}


def test_each_convolution_has_the_type_that_the_name_says():
    assert {name: tuple(map(one.convolution_type, KINDS)) for name, one in PRECISIONS.items()} == TYPES


def test_a_precision_is_found_by_its_name():
    assert all(find_precision(name) is precision and precision.name == name for name, precision in PRECISIONS.items())


def test_what_quantises_needs_ranges_and_what_tensorrt_does_not_take_is_for_onnx_runtime():
    assert {name for name, one in PRECISIONS.items() if one.needs_ranges} == {"int8", "int8-1x1", "int8-cpu", "fp8-1x1"}
    assert {name for name, one in PRECISIONS.items() if not one.tensorrt_supported} == {"int8-cpu"}
    assert {name for name, one in PRECISIONS.items() if one.opt_in} == {"bf16", "fp8-1x1"}
    assert {name for name, one in PRECISIONS.items() if one.tensorrt_only} == {"bf16", "int8", "int8-1x1", "fp8-1x1"}


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("in8", " (did you mean int8?)"), ("fp61", " (did you mean fp16?)"), ("", ""), ("tf32", "")],
)
def test_another_name_is_one_line_with_a_suggestion_and_the_names(name, suggestion):
    with pytest.raises(UsageError) as error:
        find_precision(name)
    line = str(error.value)
    assert line.startswith(f"unknown precision {name!r}{suggestion}") or not suggestion
    assert line.endswith("; the precisions are fp32, fp16, bf16, int8-1x1, int8, int8-cpu, fp8-1x1")
