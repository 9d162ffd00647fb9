import re
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.errors import UsageError
from regnet_deploy.exporting.onnx_graph import activation_names, build_onnx, convolution_types, fold
from regnet_deploy.exporting.precision import PRECISIONS
from regnet_deploy.images.preprocessing import default_preprocessing, normalize
from regnet_deploy.models.anynet import AnyNet
from regnet_deploy.runtimes.runtime import open_onnx
from regnet_deploy.space.network import Network


def arrays(model):
    return {name: value.numpy() for name, value in model.state_dict().items()}


def pixels_of(count, side, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def logits_of(model, pixels, preprocessing):
    with torch.inference_mode():
        return model(torch.from_numpy(normalize(pixels, preprocessing))).numpy()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), side=st.sampled_from([16, 23, 32]), classes=st.integers(2, 9), seed=st.integers(0, 999))
def test_onnx_runtime_gives_the_logits_of_torch(random_model, networks, data, side, classes, seed):
    """Both variants, and batches of other sizes than one."""
    network = data.draw(networks)
    model, preprocessing = random_model(network, classes, seed), default_preprocessing(side)
    floats = open_onnx(build_onnx(network, arrays(model), preprocessing), threads=1)
    whole = open_onnx(build_onnx(network, arrays(model), preprocessing, pixels=True), threads=1)
    for count in (1, 3, 7):
        pixels = pixels_of(count, side, seed)
        wanted = logits_of(model, pixels, preprocessing)
        scale = max(1.0, np.abs(wanted).max())
        np.testing.assert_allclose(floats.run(normalize(pixels, preprocessing)), wanted, atol=1e-5 * scale)
        np.testing.assert_allclose(whole.run(pixels), wanted, atol=1e-5 * scale)


def test_the_uint8_variant_normalises_as_the_host_does_for_any_mean_and_std(random_model, network):
    preprocessing = Preprocessing(resize=32, crop=32, mean=(0.1, 0.5, 0.9), std=(0.5, 0.25, 1.0))
    model = random_model(network, 4, 5)
    floats, whole = (
        open_onnx(build_onnx(network, arrays(model), preprocessing, pixels=pixels)) for pixels in (False, True)
    )
    pixels = pixels_of(4, 32)
    assert (floats.input, whole.input) == ("float32", "uint8")
    np.testing.assert_allclose(whole.run(pixels), floats.run(normalize(pixels, preprocessing)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("pixels", [False, True])
def test_the_file_is_valid_opset_18_with_a_dynamic_batch(random_model, network, pixels):
    data = build_onnx(network, arrays(random_model(network, 4, 0)), default_preprocessing(32), pixels=pixels)
    onnx.checker.check_model(data, full_check=True)
    model = onnx.load_from_string(data)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    assert model.ir_version == 8
    (images,), (logits,) = model.graph.input, model.graph.output
    shape = [dim.dim_param or dim.dim_value for dim in images.type.tensor_type.shape.dim]
    assert (images.name, shape) == ("images", ["batch", 32, 32, 3] if pixels else ["batch", 3, 32, 32])
    assert images.type.tensor_type.elem_type == (onnx.TensorProto.UINT8 if pixels else onnx.TensorProto.FLOAT)
    shape = [dim.dim_param or dim.dim_value for dim in logits.type.tensor_type.shape.dim]
    assert (logits.name, shape) == ("logits", ["batch", 4])


def test_nodes_are_called_as_the_modules_and_no_batch_norm_is_left(random_model, network):
    model = random_model(network, 4, 0)
    graph = onnx.load_from_string(build_onnx(network, arrays(model), default_preprocessing(32))).graph
    names = {node.op_type: set() for node in graph.node}
    for node in graph.node:
        names[node.op_type].add(node.name)
    assert names["Conv"] == {name for name, module in model.named_modules() if isinstance(module, torch.nn.Conv2d)}
    assert names["Gemm"] == {"head.fc"}
    assert set(names) == {"Conv", "Relu", "Add", "GlobalAveragePool", "Sigmoid", "Mul", "Flatten", "Gemm"}
    assert len({node.name for node in graph.node}) == len(graph.node)


@pytest.mark.parametrize(
    ("block", "operators"),
    [
        ("v", {"Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"}),
        ("vr", {"Conv", "Relu", "Add", "GlobalAveragePool", "Flatten", "Gemm"}),
    ],
)
def test_blocks_of_one_convolution_are_called_as_the_modules_too(random_model, block, operators):
    network = Network((2, 1), (16, 24), (16, 24), (1.0, 1.0), stem_stride=1, stem_width=16, block=block)
    model = random_model(network, 4, 0)
    data = build_onnx(network, arrays(model), default_preprocessing(32))
    onnx.checker.check_model(data, full_check=True)
    nodes = onnx.load_from_string(data).graph.node
    of_kind = {
        operator: [name for name, module in model.named_modules() if isinstance(module, kind)]
        for operator, kind in (("Conv", torch.nn.Conv2d), ("Relu", torch.nn.ReLU))
    }
    for operator, names in of_kind.items():
        assert sorted(node.name for node in nodes if node.op_type == operator) == sorted(names)
    assert {node.op_type for node in nodes} == operators


def test_the_file_holds_no_path_and_no_text_but_names_and_metadata(random_model, network):
    metadata = {"architecture": '{"name": "tiny"}'}
    model = onnx.load_from_string(
        build_onnx(network, arrays(random_model(network, 4, 0)), default_preprocessing(32), metadata=metadata)
    )
    assert {entry.key: entry.value for entry in model.metadata_props} == metadata
    for constant in model.graph.initializer:  # what is left is all the text in the file
        constant.raw_data = b""
    text = model.SerializeToString()
    assert b"/" not in text
    assert b"\\" not in text
    assert not model.doc_string
    assert not model.graph.doc_string
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
    assert not any(constant.external_data for constant in model.graph.initializer)


def test_the_same_network_is_the_same_bytes_in_every_process():
    program = (
        "import hashlib; from regnet_deploy.exporting.onnx_graph import build_onnx; "
        "from regnet_deploy.images.preprocessing import default_preprocessing; "
        "from regnet_deploy.models.anynet import AnyNet; from regnet_deploy.space.network import Network; "
        "n = Network((1, 2), (16, 24), (8, 8), (1.0, 1.0), 0.25, 1, 8); "
        "w = {k: v.numpy() for k, v in AnyNet(n, 4, seed=0).state_dict().items()}; "
        "m = {k: k for k in {'b', 'a', 'd', 'c', 'f', 'e'}}; "
        "print(hashlib.sha256(build_onnx(n, w, default_preprocessing(32), pixels=True, metadata=m)).hexdigest())"
    )
    digests = set()
    for hash_seed in ("1", "2"):
        environment = {"PATH": "", "PYTHONHASHSEED": hash_seed}
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        digests.add(done.stdout)
    (digest,) = digests
    assert re.fullmatch(r"[0-9a-f]{64}\n", digest)


def test_folding_is_the_batch_norm_behind_the_convolution_in_double_precision(random_model, network):
    weights = arrays(random_model(network, 4, 9))
    weight, bias = fold(weights, "stem.conv", "stem.bn")
    assert weight.dtype == bias.dtype == np.float64
    double = {name: weights[f"stem.bn.{name}"].astype(np.float64) for name in ("weight", "bias")}
    mean, variance = (weights[f"stem.bn.running_{name}"].astype(np.float64) for name in ("mean", "var"))
    scale = double["weight"] / np.sqrt(variance + 1e-5)
    np.testing.assert_array_equal(weight, weights["stem.conv.weight"] * scale.reshape(-1, 1, 1, 1))
    np.testing.assert_array_equal(bias, double["bias"] - mean * scale)


@pytest.mark.parametrize("precision", [PRECISIONS["fp32"], PRECISIONS["fp16"]], ids=lambda one: one.name)
def test_what_is_stored_of_it_is_rounded_once(random_model, network, precision):
    weights = arrays(random_model(network, 4, 9))
    weight, bias = fold(weights, "s1.b1.f.b", "s1.b1.f.b_bn")
    graph = onnx.load_from_string(build_onnx(network, weights, default_preprocessing(32), precision)).graph
    stored = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    kind = {"fp32": np.float32, "fp16": np.float16}[precision.float_type]
    np.testing.assert_array_equal(stored["s1.b1.f.b.weight"], weight.astype(kind))
    np.testing.assert_array_equal(stored["s1.b1.f.b.bias"], bias.astype(kind))


def test_tensors_between_are_tensors_of_the_fp32_graph_once_each(random_model, network):
    weights = arrays(random_model(network, 4, 0))
    names = activation_names(network, weights)
    graph = onnx.load_from_string(build_onnx(network, weights, default_preprocessing(32))).graph
    assert names[0] == "images"
    assert len(set(names)) == len(names)
    assert set(names[1:]) < {node.output[0] for node in graph.node}
    fed = {node.input[0] for node in graph.node if node.op_type in ("Conv", "Gemm")}
    # What only shapes stand between has one range: the pooled features are flattened, the stem's input is normalised.
    assert fed - set(names) <= {"s1.b1.f.b_af", "s2.b1.f.b_af", "s2.b2.f.b_af", "head.flatten"}


def test_every_convolution_of_the_model_has_a_type(random_model, network):
    model = random_model(network, 4, 0)
    convolutions = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Conv2d)}
    for precision in PRECISIONS.values():
        types = convolution_types(network, arrays(model), precision)
        assert set(types) == convolutions
        assert types["s1.b1.f.b"] == precision.convolution_type("3x3")
        assert types["s2.b1.proj"] == types["s2.b2.f.c"] == precision.convolution_type("1x1")
        assert types["stem.conv"] == precision.convolution_type("stem")
        assert types["s1.b1.f.se.f_ex.2"] == precision.convolution_type("gate")


def test_se_widths_follow_the_blocks_input_half_to_even(random_model):
    network = Network((1, 1), (16, 24), (8, 8), (1.0, 1.0), se_ratio=0.25, stem_stride=2, stem_width=10)
    graph = onnx.load_from_string(
        build_onnx(network, arrays(random_model(network, 4, 0)), default_preprocessing(32))
    ).graph
    squeezed = {tensor.name: tensor.dims[0] for tensor in graph.initializer if tensor.name.endswith("f_ex.0.weight")}
    assert squeezed == {"s1.b1.f.se.f_ex.0.weight": 2, "s2.b1.f.se.f_ex.0.weight": 4}  # 2.5 -> 2


def test_more_weights_than_one_file_holds_is_one_line(network):
    weights = dict.fromkeys(["head.fc.weight"], np.broadcast_to(np.float32(0), (2**30, 1)))
    with pytest.raises(UsageError, match=r"the weights have 4\.0 GiB, and one ONNX file"):
        build_onnx(network, weights, default_preprocessing(32))


def test_an_untrained_network_can_be_written(network):
    weights = arrays(AnyNet(network, 4, seed=0))
    onnx.checker.check_model(build_onnx(network, weights, default_preprocessing(32)), full_check=True)
