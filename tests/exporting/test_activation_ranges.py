"""Ranges: what the network's own activations are, and where each method clips."""

import math

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from regnet_deploy.errors import ProofError, UsageError
from regnet_deploy.exporting import activation_ranges
from regnet_deploy.exporting.activation_ranges import (
    METHODS,
    ActivationHistogram,
    ObservedActivations,
    compute_ranges,
    observe_activations,
)
from regnet_deploy.exporting.onnx_graph import activation_names, build_onnx
from regnet_deploy.exporting.quantization import TensorRange
from regnet_deploy.images.preprocessing import default_preprocessing, normalize
from regnet_deploy.space.published import published_networks

SIDE, CLASSES = 32, 5
PREPROCESSING = default_preprocessing(SIDE)


@pytest.fixture
def model(random_model, network):
    return random_model(network, CLASSES, 4)


@pytest.fixture
def exported(model, network):
    """The FP32 file and the tensors between its operators."""
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    return build_onnx(network, weights, PREPROCESSING), activation_names(network, weights)


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (11, SIDE, SIDE, 3), np.uint8)


def seen(*batches):
    activations = ActivationHistogram()
    for batch in batches:
        activations.add(np.asarray(batch, np.float32))
    return activations


def range_of(activations, method):
    return compute_ranges(ObservedActivations({"x": activations}, 1), method)["x"]


def test_lowest_and_highest_are_those_of_the_model(model, exported, pixels):
    data, tensors = exported
    found = compute_ranges(observe_activations(data, tensors, pixels, PREPROCESSING), "minmax")
    assert list(found) == tensors
    bounds = {}

    def note(name):
        def hook(module, given, result):
            bounds[name] = TensorRange(float(result.min()), float(result.max()))

        return hook

    for name, module in model.named_modules():
        module.register_forward_hook(note(name))
    images = normalize(pixels, PREPROCESSING)
    with torch.inference_mode():
        model(torch.from_numpy(images))
    assert (found["images"].low, found["images"].high) == (float(images.min()), float(images.max()))
    compared = [name for name in tensors if name.endswith("af")]
    assert len(compared) == 1 + 3 * 3
    for name in compared:
        assert found[name].low == pytest.approx(bounds[name].low, rel=1e-4, abs=1e-5)
        assert found[name].high == pytest.approx(bounds[name].high, rel=1e-4)


def test_batches_change_nothing(exported, pixels, monkeypatch):
    data, tensors = exported
    whole = observe_activations(data, tensors, pixels, PREPROCESSING)
    monkeypatch.setattr(activation_ranges, "_BATCH_BYTES", 1)
    alone = observe_activations(data, tensors, pixels, PREPROCESSING)
    for name in tensors:
        one, other = whole.tensors[name], alone.tensors[name]
        assert (one.low, one.high) == (pytest.approx(other.low, rel=1e-5), pytest.approx(other.high, rel=1e-5))
        assert one.counts.sum() == pytest.approx(other.counts.sum(), abs=2)


def test_progress_receives_the_images_done_and_nothing_is_printed(exported, pixels, capfd, recorded_progress):
    recorded_progress.step("activations")
    observe_activations(*exported, pixels, PREPROCESSING, recorded_progress, threads=1)
    assert recorded_progress.updates == [("activations", 1, 11, ""), ("activations", 11, 11, "")]
    assert capfd.readouterr() == ("", "")


def test_some_tensors_alone(exported, pixels):
    data, tensors = exported
    every = compute_ranges(observe_activations(data, tensors, pixels, PREPROCESSING), "minmax")
    some = compute_ranges(observe_activations(data, [tensors[3], "images"], pixels, PREPROCESSING), "minmax")
    assert list(some) == [tensors[3], "images"]
    assert some["images"] == every["images"]
    assert some[tensors[3]].high == pytest.approx(every[tensors[3]].high, rel=1e-5)


def test_values_that_are_not_finite_end_it(exported, pixels):
    data, tensors = exported
    model = onnx.load_from_string(data)
    bias = next(one for one in model.graph.initializer if one.name == "stem.conv.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(bias.dims, np.inf, np.float32), bias.name))
    with pytest.raises(ProofError, match="values inside the network are not finite"):
        observe_activations(model.SerializeToString(), tensors, pixels, PREPROCESSING)


def test_images_of_another_size_are_one_line(exported):
    with pytest.raises(ProofError, match=r"ONNX Runtime cannot run images float32 \(1, 3, 8, 8\)") as error:
        observe_activations(*exported, np.zeros((2, 8, 8, 3), np.uint8), PREPROCESSING)
    assert "\n" not in str(error.value)


@given(
    st.lists(
        hnp.arrays(
            np.float32, hnp.array_shapes(min_dims=2, max_dims=3, max_side=6), elements=st.floats(-1e6, 1e6, width=32)
        ),
        min_size=1,
        max_size=5,
    )
)
def test_a_histogram_grown_is_the_histogram_at_once(batches):
    found = seen(*batches)
    values = np.concatenate([batch.ravel() for batch in batches])
    assert (found.low, found.high) == (values.min(), values.max())
    magnitudes = np.abs(values[values != 0])
    assert found.counts.sum() == len(magnitudes)
    if len(magnitudes):
        assert found.largest <= found.width * 4096 * (1 + 1e-6)
        # Joining pairs is exact; a batch's largest magnitude, on the edge of the last bin, is counted below it.
        bins = np.minimum(magnitudes.astype(np.float64) / found.width, 4095).astype(int)
        assert np.abs(np.repeat(np.arange(4096), found.counts) - np.sort(bins)).max() <= 1


def test_growing_keeps_half_the_bins_or_more_in_use():
    found = seen([[1.0, 0.5]], [[1000.0, 2.0]])
    assert 2048 <= math.ceil(found.largest / found.width) <= 4096
    assert found.counts.sum() == 4


def test_large_tensors_are_sampled_and_bounds_are_of_all_values():
    values = np.random.default_rng(0).normal(size=(2, 300_000)).astype(np.float32)
    values[1, 123_457] = 99.0
    found = seen(values)
    assert found.high == 99.0
    assert 2 * 4096 <= found.counts.sum() <= 2 * 8192


def test_the_sample_comes_to_every_place_of_the_maps_of_every_published_network():
    """At 224 pixels: the last stage is 7 wide, and a step of 7 would meet a single column."""
    maps = {(3, 224)}
    for published in published_networks():
        network, side = published.network, 224 // published.network.stem_stride
        maps.add((network.stem_width, side))
        for width, bottleneck in zip(network.widths, network.bottlenecks, strict=True):
            maps |= {(round(width * bottleneck), side), (round(width * bottleneck), side // 2), (width, side // 2)}
            side //= 2
    assert {side for _, side in maps} >= {7, 14, 28, 56, 112}
    for width, side in maps:
        values = width * side**2
        places = np.arange(0, values, activation_ranges._stride(values, side**2)) % side**2
        assert len(np.unique(places)) == min(side**2, len(places))
        assert len(np.unique(places % side)) == len(np.unique(places // side)) == side
        assert len(places) > 8192 / 2 or len(places) == values


@pytest.mark.parametrize("side", [1, 2, 4, 8, 16, 32, 64])
def test_of_maps_of_a_power_of_two_every_odd_step_will_do(side):
    for channels in range(3, 2000, 7):
        values = channels * side**2
        least = -(-values // 8192)
        assert activation_ranges._stride(values, side**2) == (least if side == 1 else least + 1 - least % 2)


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_of_zeros_has_no_room_to_find(method):
    assert range_of(seen(np.zeros((2, 5)), np.zeros((1, 5))), method) == TensorRange(0.0, 0.0)


@pytest.mark.parametrize("method", METHODS)
@given(hnp.arrays(np.float32, (3, 50), elements=st.floats(-1e4, 1e4, width=32)))
def test_no_range_is_wider_than_what_was_seen(method, values):
    found = range_of(seen(values), method)
    assert values.min() <= found.low <= found.high <= values.max() or found.low == found.high == 0


def test_percentile_clips_what_is_beyond_its_share():
    values = np.concatenate([np.linspace(-1, 1, 99_980), np.full(4, 50.0)]).astype(np.float32)
    found = range_of(seen(*np.array_split(values[None], 17, axis=1)), "percentile")
    assert found.low == -1.0
    assert found.high == pytest.approx(1.0, abs=50 / 2048)
    values[-40:] = 50.0
    assert range_of(seen(*np.array_split(values[None], 17, axis=1)), "percentile").high == 50.0


def test_entropy_clips_a_lonely_value_and_minmax_does_not():
    values = np.random.default_rng(0).normal(size=(40, 5000)).astype(np.float32)
    values[0, 0] = 60.0
    found = seen(values)
    assert range_of(found, "minmax").high == 60.0
    assert 2.5 < range_of(found, "entropy").high < 15.0


def test_entropy_keeps_all_of_even_values():
    found = range_of(seen(np.random.default_rng(0).uniform(-1, 1, (40, 5000)).astype(np.float32)), "entropy")
    assert found.high == pytest.approx(1.0, abs=0.02)


def as_published(activations):
    """Return the threshold by the algorithm of the GTC talk, a candidate and a level at a time."""
    counts = activations.counts.astype(float)
    used = int(np.flatnonzero(counts).max()) + 1
    best, threshold = math.inf, activations.largest
    for i in range(128, used + 1):
        kept, p = counts[:i], counts[:i].copy()
        p[-1] += counts[i:].sum()
        starts = np.arange(128) * i // 128
        filled = np.add.reduceat((p > 0).astype(float), starts)
        level = np.add.reduceat(kept, starts) / np.maximum(filled, 1)
        q = np.where(p > 0, np.repeat(level, np.diff([*starts, i])), 0.0)
        if (q[p > 0] == 0).any():
            continue
        p, q = p / p.sum(), q / q.sum()
        divergence = (p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum()
        if divergence < best - 1e-12:
            best, threshold = divergence, min(activations.largest, i * activations.width)
    return best, threshold


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["normal", "laplace", "exponential"]), st.floats(1.0, 30.0))
def test_entropy_is_the_published_algorithm(seed, kind, outlier):
    draw = np.random.default_rng(seed)
    values = getattr(draw, kind)(size=(10, 300)).astype(np.float32)
    values[0, 0] *= outlier
    found = seen(values[:5], values[5:])
    assert activation_ranges._least_divergence(found) == pytest.approx(as_published(found)[1], rel=1e-9)


@pytest.mark.parametrize(("given_name", "hint"), [("entrpy", " (did you mean entropy?)"), ("kl", "")])
def test_a_method_that_is_not_known(given_name, hint):
    with pytest.raises(UsageError) as error:
        compute_ranges(ObservedActivations({}, 0), given_name)
    methods = "the methods are minmax, entropy, percentile"
    assert str(error.value) == f"unknown calibration method '{given_name}'{hint}; {methods}"
