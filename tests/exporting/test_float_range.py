"""What is beyond the range of FP16 is named, and nothing else is refused."""

from dataclasses import replace

import numpy as np
import pytest

from regnet_deploy.errors import ProofError
from regnet_deploy.exporting.float_range import LARGEST_FP16, check_float_range, convert_constant
from regnet_deploy.exporting.precision import PRECISIONS


def test_a_constant_within_the_range_is_rounded():
    value = np.array([1e-3, -LARGEST_FP16, 7.0], np.float32)
    np.testing.assert_array_equal(convert_constant("w", value, np.float16, "fp16"), value.astype(np.float16))


@pytest.mark.parametrize("value", [65_520.0, -7e8, 3e38])
def test_a_constant_beyond_it_is_named_with_its_value(value):
    with pytest.raises(ProofError) as error:
        convert_constant("s1.b1.f.a.weight", np.array([0, value], np.float32), np.float16, "fp16")
    assert str(error.value).startswith(
        f"fp16 is not exported: s1.b1.f.a.weight has values up to {abs(value):.4g}, beyond the range"
    )


def scaled(source, name, factor):
    return replace(source, weights={**source.weights, name: source.weights[name] * np.float32(factor)})


def test_the_first_activation_beyond_fp16_is_named(source, golden):
    large = scaled(source, "s1.b1.f.b_bn.weight", 1e6)
    with pytest.raises(
        ProofError, match=r"^fp16 is not exported: the activation s1\.b1\.f\.b_af reaches \S+ on the golden"
    ):
        check_float_range(large, golden.golden, PRECISIONS["fp16"])
    for name in ("fp32", "bf16", "int8-cpu"):
        check_float_range(large, golden.golden, PRECISIONS[name])


def test_a_network_within_the_range_is_not_refused(source, golden):
    check_float_range(source, golden.golden, PRECISIONS["fp16"])
    check_float_range(source, golden.golden, PRECISIONS["int8"])


def test_the_scale_of_a_quantized_weight_beyond_fp16_is_named(source, measured_ranges, golden):
    large = scaled(source, "s1.b1.f.a_bn.weight", 1e9)
    images = np.zeros((1, 3, 32, 32), np.float32)
    ranges = measured_ranges(source.network, source.weights, source.preprocessing, images)
    with pytest.raises(ProofError, match=r"^int8 is not exported: the scale of s1\.b1\.f\.a\.weight is too large"):
        large.onnx(PRECISIONS["int8"], ranges)
