from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper, shape_inference

from regnet_deploy.exporting.emulation import emulate, emulate_bf16
from regnet_deploy.exporting.onnx_graph import build_onnx, convolution_types
from regnet_deploy.exporting.precision import PRECISIONS
from regnet_deploy.images.preprocessing import default_preprocessing, normalize
from regnet_deploy.runtimes.runtime import open_onnx
from regnet_deploy.space.network import Network

SMALL = {TensorProto.INT8: "int8", TensorProto.UINT8: "uint8", TensorProto.FLOAT8E4M3FN: "fp8"}
FLOATS = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
SIDE = 32
SOME = Network((1, 2), (16, 24), (8, 8), (1.0, 1.0), se_ratio=0.25, stem_stride=1, stem_width=8)

every_precision = pytest.mark.parametrize("precision", PRECISIONS.values(), ids=lambda one: one.name)


def arrays(model):
    return {name: value.numpy() for name, value in model.state_dict().items()}


def pixels_of(count, seed=0):
    draw = np.random.default_rng(seed)
    colours = draw.integers(0, 256, (count, 1, 1, 3)) + draw.integers(-60, 60, (count, SIDE, SIDE, 3))
    return np.clip(colours, 0, 255).astype(np.uint8)


class Written:
    """A file and what its tensors are."""

    def __init__(self, data):
        onnx.checker.check_model(data, full_check=True)
        self.model = onnx.load_from_string(data)
        graph = shape_inference.infer_shapes(self.model, strict_mode=True).graph
        self.constants = {one.name: one for one in graph.initializer}
        self.types = {name: one.data_type for name, one in self.constants.items()}
        for one in (*graph.input, *graph.output, *graph.value_info):
            self.types[one.name] = one.type.tensor_type.elem_type
        self.nodes = list(graph.node)
        self.from_node = {node.output[0]: node for node in self.nodes}

    def of(self, operator):
        return [node for node in self.nodes if node.op_type == operator]

    def small_type(self, tensor):
        """Return the type behind a DequantizeLinear, or None where there is none."""
        node = self.from_node.get(tensor)
        return SMALL[self.types[node.input[0]]] if node is not None and node.op_type == "DequantizeLinear" else None

    def convolutions(self):
        """Return in which type each computes; a pair of types where data and weights differ."""
        found = {}
        for node in self.of("Conv"):
            data, weight = (self.small_type(tensor) for tensor in node.input[:2])
            if data is None and weight is None:
                found[node.name] = FLOATS[self.types[node.output[0]]]
            else:
                found[node.name] = {("int8", "int8"): "int8", ("uint8", "int8"): "int8", ("fp8", "fp8"): "fp8"}.get(
                    (data, weight), (data, weight)
                )
        return found


@pytest.fixture
def build(random_model, measured_ranges):
    """Return a maker of files: network, seed, precision -> bytes, and the model."""

    def make(network, seed, precision, **options):
        model, preprocessing = random_model(network, 5, seed), default_preprocessing(SIDE)
        weights = arrays(model)
        ranges = None
        if precision.needs_ranges:
            ranges = measured_ranges(network, weights, preprocessing, normalize(pixels_of(16, seed), preprocessing))
        return build_onnx(network, weights, preprocessing, precision, ranges, **options), model

    return make


@every_precision
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), seed=st.integers(0, 999), pixels=st.booleans(), reduce_range=st.booleans())
def test_every_file_is_valid_and_typed_as_asked(networks, build, precision, data, seed, pixels, reduce_range):
    network = data.draw(networks)
    made, model = build(network, seed, precision, pixels=pixels, reduce_range=reduce_range)
    file = Written(made)
    assert made == build(network, seed, precision, pixels=pixels, reduce_range=reduce_range)[0]
    assert [(one.domain, one.version) for one in file.model.opset_import] == [("", precision.opset)]
    (images,), (logits,) = file.model.graph.input, file.model.graph.output
    assert file.types[images.name] == (TensorProto.UINT8 if pixels else TensorProto.FLOAT)
    assert file.types[logits.name] == TensorProto.FLOAT
    assert file.convolutions() == convolution_types(network, arrays(model), precision)
    # One pair a tensor, however many operators read it; and Q is followed by its DQ alone.
    for operator in ("QuantizeLinear", "DequantizeLinear"):
        read = Counter(node.input[0] for node in file.of(operator))
        assert set(read.values()) <= {1}
    assert {node.output[0] for node in file.of("QuantizeLinear")} <= {
        node.input[0] for node in file.of("DequantizeLinear")
    }
    zeros = {name: numpy_helper.to_array(one) for name, one in file.constants.items() if name.endswith(".zero")}
    assert {name for name, zero in zeros.items() if zero.astype(float).any()} <= {
        name for name in zeros if file.types[name] == TensorProto.UINT8
    }
    assert (TensorProto.INT32 in file.types.values()) is (precision.quantized_type == "uint8")
    if precision.quantized_type is None:
        assert not zeros
        assert not file.of("DequantizeLinear")
    elif precision.quantized_type != "uint8":
        assert TensorProto.UINT8 not in {file.types[name] for name in zeros}


@every_precision
def test_everything_that_is_not_quantised_computes_in_the_rest_type(build, precision):
    made, _ = build(SOME, 0, precision)
    file = Written(made)
    for node in file.nodes:
        if node.op_type not in ("Cast", "QuantizeLinear"):
            assert FLOATS[file.types[node.output[0]]] == precision.float_type or node.output[0] == "logits"
    casts = {node.output[0] for node in file.of("Cast")}
    assert casts == (set() if precision.float_type == "fp32" else {f"images.{precision.float_type}", "logits"})


def test_reduced_weights_have_seven_bits_and_activations_eight(build):
    for reduce_range, most in ((False, 127), (True, 64)):
        file = Written(build(SOME, 0, PRECISIONS["int8-cpu"], reduce_range=reduce_range)[0])
        values = [numpy_helper.to_array(one) for one in file.constants.values() if one.data_type == TensorProto.INT8]
        assert max(int(np.abs(value.astype(int)).max()) for value in values) == most


def test_biases_of_int8_cpu_are_in_units_of_the_products(build):
    file = Written(build(SOME, 0, PRECISIONS["int8-cpu"])[0])
    for node in (*file.of("Conv"), *file.of("Gemm")):
        data, weight, bias = (file.from_node[tensor] for tensor in node.input)
        scales = [numpy_helper.to_array(file.constants[one.input[1]]).astype(float) for one in (data, weight, bias)]
        np.testing.assert_allclose(scales[2], scales[0] * scales[1], rtol=1e-6)
        assert file.types[bias.input[0]] == TensorProto.INT32


@every_precision
def test_constants_are_little_endian_of_their_type(build, precision):
    model = onnx.load_from_string(build(SOME, 0, precision)[0])
    for one in model.graph.initializer:
        array = numpy_helper.to_array(one)
        assert array.nbytes == len(one.raw_data)
        assert np.isfinite(array.astype(np.float64)).all()


def signal_to_noise_db(build, network, seed, precision, *, pixels):
    """Return it for ONNX Runtime's logits against torch's, in dB, on images that the ranges were not measured on."""
    preprocessing, views = default_preprocessing(SIDE), pixels_of(12, seed + 1)
    images = normalize(views, preprocessing)
    made, model = build(network, seed, precision, pixels=pixels)
    if precision.float_type == "bf16":
        made = emulate_bf16(made)
    session = open_onnx(made, threads=1, device="cpu", exact=precision.tensorrt_only)
    with torch.inference_mode():
        wanted = model(torch.from_numpy(images)).numpy().astype(float)
    error = session.run(views if pixels else images) - wanted
    return 10 * np.log10((wanted**2).sum() / max((error**2).sum(), 1e-30))


#: Precision -> least dB for any network, and for the usual one.
LEAST_DB = {
    "fp32": (100, 120),
    "fp16": (50, 55),
    "bf16": (30, 35),
    "int8": (15, 25),
    "int8-1x1": (15, 25),
    "int8-cpu": (8, 25),
    "fp8-1x1": (15, 20),
}


@every_precision
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), seed=st.integers(0, 999), pixels=st.booleans())
def test_onnx_runtime_gives_nearly_the_logits_of_torch(networks, build, precision, data, seed, pixels):
    network = data.draw(networks)
    assert signal_to_noise_db(build, network, seed, precision, pixels=pixels) >= LEAST_DB[precision.name][0]


@every_precision
@pytest.mark.parametrize("seed", range(4))
def test_of_the_usual_network_it_is_nearer(build, precision, seed):
    assert signal_to_noise_db(build, SOME, seed, precision, pixels=bool(seed % 2)) >= LEAST_DB[precision.name][1]


@pytest.mark.parametrize("level", ["ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"])
@pytest.mark.parametrize("precision", ["int8", "int8-1x1", "fp8-1x1"])
@pytest.mark.parametrize("block", ["bottleneck", "v", "vr"])
def test_a_plain_session_computes_a_file_for_tensorrt_as_well_as_one_without_optimizations(
    random_model, measured_ranges, block, precision, level
):
    """Biases are large and weights small in some channels: divided by their scales, they are beyond FP16."""
    network = SOME if block == "bottleneck" else Network((1, 2), (16, 24), (16, 24), (1.0, 1.0), 0.0, 2, 8, block=block)
    model, preprocessing, views = random_model(network, 5, 0), default_preprocessing(SIDE), pixels_of(12, 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bn.weight"):
                parameter[::4] *= 0.01
            elif name.endswith("bn.bias"):
                parameter[::4] = 2.0
    images, weights = normalize(views, preprocessing), arrays(model)
    ranges = measured_ranges(network, weights, preprocessing, images)
    made = emulate(build_onnx(network, weights, preprocessing, PRECISIONS[precision], ranges), PRECISIONS[precision])
    exact = open_onnx(made, threads=1, device="cpu", exact=True).run(images)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    plain = onnxruntime.InferenceSession(made, options, providers=["CPUExecutionProvider"])
    got = plain.run(None, {"images": images})[0]
    with torch.inference_mode():
        wanted = model(torch.from_numpy(images)).numpy()
    spread = wanted.std(axis=0).mean()
    assert np.abs(got - wanted).mean() / spread <= np.abs(exact - wanted).mean() / spread + 0.05


@pytest.mark.parametrize("block", ["bottleneck", "v", "vr"])
def test_onnx_runtime_computes_every_convolution_of_int8_cpu_in_integers(build, tmp_path, block):
    network = SOME if block == "bottleneck" else Network((1, 2), (16, 24), (16, 24), (1.0, 1.0), 0.0, 2, 8, block=block)
    made, _ = build(network, 0, PRECISIONS["int8-cpu"])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(made, options, providers=["CPUExecutionProvider"])
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert operators["QLinearConv"] == len(Written(made).of("Conv"))
    assert operators["QGemm"] == 1
    assert not {"Conv", "Gemm", "Relu", "Sigmoid"} & set(operators)
