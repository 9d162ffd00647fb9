import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from regnet_deploy.exporting.quantization import (
    TensorRange,
    affine_scale,
    least_weight_scale,
    quantize_weights,
    symmetric_scale,
)

TINY = float(np.finfo(np.float16).tiny)  # no scale is smaller
weights = arrays.arrays(
    np.float64,
    st.tuples(st.integers(1, 5), st.integers(1, 4), st.just(3), st.just(3)),
    elements=st.floats(-50, 50, allow_subnormal=False),
)
finite = st.floats(-1e4, 1e4)
ranges = st.tuples(finite, finite).map(lambda ends: TensorRange(min(ends), max(ends)))


def stood_for(small):
    scale = small.scale.astype(np.float64).reshape(-1, 1, 1, 1)
    return small.values.astype(np.float64) * scale, scale


@given(weights, st.booleans())
def test_a_weight_is_rounded_to_the_nearest_step_of_its_channel(weight, reduce_range):
    small = quantize_weights(weight, "int8", np.float32, reduce_range=reduce_range)
    back, scale = stood_for(small)
    assert small.values.dtype == np.int8
    assert small.scale.dtype == np.float32
    assert small.scale.shape == (len(weight),)
    assert (np.abs(back - weight) <= 0.5001 * scale).all()
    assert np.abs(small.values.astype(int)).max() <= (64 if reduce_range else 127)


@given(weights)
def test_the_largest_of_each_channel_uses_the_whole_type(weight):
    values = quantize_weights(weight, "int8", np.float32).values.astype(int)
    for channel, rounded in zip(weight, values, strict=True):
        if np.abs(channel).max() > 127 * TINY:
            assert np.abs(rounded).max() == 127


@given(weights)
def test_scales_of_16_bits_are_those_that_the_weights_are_rounded_with(weight):
    small = quantize_weights(weight, "int8", np.float16)
    back, scale = stood_for(small)
    assert small.scale.dtype == np.float16
    assert (np.abs(back - weight) <= (0.5 + 127 * 2**-11) * scale * 1.0001).all()  # the largest may be cut by the scale


@given(weights)
def test_fp8_keeps_three_bits_of_what_is_normal(weight):
    small = quantize_weights(weight, "fp8", np.float16)
    back, scale = stood_for(small)
    assert small.values.dtype == ml_dtypes.float8_e4m3fn
    assert np.isfinite(back).all()  # E4M3 has no infinity: what is too large would be NaN
    allowed = np.maximum(np.abs(weight) * 2**-4, scale * 2**-10)
    assert (np.abs(back - weight) <= allowed * 1.01).all()


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_channel_of_zeros_stays_zero_with_a_scale_that_can_be_divided_by(kind):
    small = quantize_weights(np.zeros((2, 3, 1, 1)), kind, np.float16)
    assert not small.values.astype(float).any()
    assert (small.scale >= TINY).all()


@given(ranges, st.sampled_from([("int8", 127), ("fp8", 448)]))
def test_a_symmetric_scale_reaches_both_ends(bounds, kind):
    name, largest = kind
    scale = symmetric_scale(bounds, name)
    assert scale >= TINY
    most = max(abs(bounds.low), abs(bounds.high))
    assert scale * largest >= most * (1 - 1e-9)
    assert scale == pytest.approx(max(most / largest, TINY))


@given(ranges)
def test_an_affine_scale_reaches_both_ends_and_has_a_zero(bounds):
    scale, point = affine_scale(bounds)
    assert scale >= TINY
    assert isinstance(point, int)
    assert 0 <= point <= 255
    assert -point * scale <= bounds.low + 0.5001 * scale
    assert (255 - point) * scale >= bounds.high - 0.5001 * scale


@pytest.mark.parametrize(
    ("bounds", "scale", "point"),
    [
        (TensorRange(0.0, 2.55), 0.01, 0),
        (TensorRange(1.0, 2.55), 0.01, 0),  # 0 is a value always: padding is 0
        (TensorRange(-2.55, -1.0), 0.01, 255),
        (TensorRange(-1.28, 1.27), 0.01, 128),
        (TensorRange(0.0, 0.0), TINY, 0),
    ],
)
def test_affine_scales_are_those_of_the_definition(bounds, scale, point):
    assert affine_scale(bounds) == (pytest.approx(scale), point)


@given(
    weights,
    st.floats(2**-13, 2.0),
    st.lists(st.floats(-2000, 2000, allow_subnormal=False), min_size=5, max_size=5),
)
def test_every_bias_divided_by_its_scales_is_within_fp16(weight, input_scale, biases):
    bias = np.asarray(biases[: len(weight)])
    small = quantize_weights(weight, "int8", np.float16, least_scale=least_weight_scale(bias, input_scale))
    product = np.float16(input_scale) * small.scale
    nonzero = bias.astype(np.float16) != 0
    assert (product[nonzero] > 0).all()
    quotient = bias.astype(np.float16)[nonzero].astype(np.float32) / product[nonzero].astype(np.float32)
    assert np.isfinite(quotient.astype(np.float16)).all()
    assert np.isfinite(small.scale).all()


def test_weights_of_usual_biases_have_the_scale_of_their_largest_value():
    weight, bias = np.full((2, 3, 1, 1), 0.5), np.array([0.0, 4 * 0.5 * 0.9])
    plain = quantize_weights(weight, "int8", np.float16)
    small = quantize_weights(weight, "int8", np.float16, least_scale=least_weight_scale(bias, 0.9 / 127))
    np.testing.assert_array_equal(small.scale, plain.scale)
    np.testing.assert_array_equal(small.values, plain.values)
