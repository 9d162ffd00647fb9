import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch.nn import functional

from regnet_deploy.exporting import emulation
from regnet_deploy.exporting.emulation import (
    emulate,
    emulate_bf16,
    emulate_fp16_quantization,
    runs_as_typed,
    truncates_fp16_to_int8,
)
from regnet_deploy.exporting.onnx_graph import build_onnx, fold
from regnet_deploy.exporting.precision import PRECISIONS
from regnet_deploy.images.preprocessing import default_preprocessing, normalize
from regnet_deploy.runtimes.runtime import open_onnx
from regnet_deploy.space.network import Network

SIDE = 32
PLAIN = Network((1, 1), (16, 24), (16, 24), (1.0, 1.0), 0.0, 2, 8, block="v")


def arrays(model):
    return {name: value.numpy() for name, value in model.state_dict().items()}


def images_of(count):
    pixels = np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
    return pixels, normalize(pixels, default_preprocessing(SIDE))


def file_of(network, weights, precision="bf16", **options):
    return build_onnx(network, weights, default_preprocessing(SIDE), PRECISIONS[precision], **options)


def rounded(values):
    return values.astype(ml_dtypes.bfloat16).astype(np.float32)


def test_no_operator_computes_in_bf16_and_every_weight_is_one_of_its_numbers(random_model, network):
    data = emulate_bf16(file_of(network, arrays(random_model(network, 5, 0))))
    onnx.checker.check_model(data, full_check=True)
    graph = onnx.load_from_string(data).graph
    assert {one.data_type for one in graph.initializer} == {onnx.TensorProto.FLOAT}
    for one in graph.initializer:
        value = onnx.numpy_helper.to_array(one)
        np.testing.assert_array_equal(value, rounded(value))
    computing = [node for node in graph.node if node.op_type != "Cast"]
    rounds = [
        node for node in graph.node if node.op_type == "Cast" and node.attribute[0].i == onnx.TensorProto.BFLOAT16
    ]
    assert len(rounds) == len(computing) + 1  # each operator's result, and the images


def test_nothing_but_numbers_of_bf16_goes_from_operator_to_operator(random_model, network):
    """The casts are run, none is optimised away: read from ONNX Runtime, with the options that proofs are made with."""
    data = emulate_bf16(file_of(network, arrays(random_model(network, 5, 0))))
    model = onnx.load_from_string(data)
    names = [node.output[0] for node in model.graph.node if node.output[0] != "logits"]
    floats = [name for name in names if not name.endswith(".rounded")]
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, None) for name in floats)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    _, images = images_of(3)
    logits, *values = session.run(["logits", *floats], {"images": images})
    seen = dict(zip(floats, values, strict=True))
    exact = [name for name in floats if name.endswith(".exact")]
    for name, value in seen.items():
        assert (name in exact) or (value == rounded(value)).all(), name
    for name in exact:
        np.testing.assert_array_equal(rounded(seen[name]), seen[name.removesuffix(".exact")])
    assert any((seen[name] != rounded(seen[name])).any() for name in exact)
    np.testing.assert_array_equal(open_onnx(data, device="cpu", exact=True, threads=1).run(images), logits)
    np.testing.assert_array_equal(logits, rounded(logits))


def test_it_gives_what_torch_gives_that_rounds_by_itself(random_model):
    weights = arrays(random_model(PLAIN, 5, 3))
    _, images = images_of(6)

    def bf16(x):
        return x.to(torch.bfloat16).to(torch.float32)

    def layer(x, convolution, norm, stride):
        weight, bias = (bf16(torch.from_numpy(value)) for value in fold(weights, convolution, norm))
        return functional.relu(bf16(functional.conv2d(x, weight, bias, stride, padding=1)))

    x = layer(bf16(torch.from_numpy(images)), "stem.conv", "stem.bn", 2)
    x = layer(layer(x, "s1.b1.a", "s1.b1.a_bn", 2), "s2.b1.a", "s2.b1.a_bn", 2)
    x = bf16(x.mean(dim=(2, 3)))
    weight, bias = (bf16(torch.from_numpy(weights[f"head.fc.{name}"])) for name in ("weight", "bias"))
    wanted = bf16(functional.linear(x, weight, bias)).numpy()

    got = open_onnx(emulate_bf16(file_of(PLAIN, weights)), device="cpu", exact=True, threads=1).run(images)
    plain = open_onnx(file_of(PLAIN, weights, "fp32"), device="cpu", threads=1).run(images)
    # Sums in another order fall on the other side of a rounding here and there; without any rounding all would be off.
    assert (got == wanted).mean() > 0.5
    assert np.abs(got - wanted).mean() < 0.2 * np.abs(plain - wanted).mean()
    assert (plain != wanted).all()


def test_files_that_take_pixels_are_rounded_after_they_are_normalised(random_model, network):
    weights = arrays(random_model(network, 5, 0))
    pixels, images = images_of(4)
    floats, whole = (
        open_onnx(emulate_bf16(file_of(network, weights, pixels=pixels)), device="cpu", exact=True, threads=1)
        for pixels in (False, True)
    )
    assert whole.input == "uint8"
    np.testing.assert_allclose(whole.run(pixels), floats.run(images), rtol=0.02, atol=0.02)


def test_the_same_file_is_the_same_bytes_and_is_left_as_it_is(random_model, network):
    data = file_of(network, arrays(random_model(network, 5, 0)))
    before = bytes(data)
    assert emulate_bf16(data) == emulate_bf16(data)
    assert data == before


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_file_without_bf16_computes_as_before(random_model, network, precision):
    data = file_of(network, arrays(random_model(network, 5, 0)), precision)
    _, images = images_of(2)
    before, after = (
        open_onnx(one, device="cpu", exact=True, threads=1).run(images) for one in (data, emulate_bf16(data))
    )
    np.testing.assert_array_equal(before, after)


@pytest.fixture(params=["int8", "int8-1x1"])
def quantised(request, random_model, network, measured_ranges):
    """A quantised file, its precision, images and the model's logits."""
    model = random_model(network, 5, 2)
    weights = arrays(model)
    _, images = images_of(6)
    ranges = measured_ranges(network, weights, default_preprocessing(SIDE), images)
    with torch.inference_mode():
        logits = model(torch.from_numpy(images)).numpy()
    return file_of(network, weights, request.param, ranges=ranges), PRECISIONS[request.param], images, logits


def test_every_fp16_tensor_is_quantised_in_fp32_by_its_own_scale_and_nothing_else_changes(quantised):
    data = quantised[0]
    changed = emulate_fp16_quantization(data)
    onnx.checker.check_model(changed, full_check=True)
    before, after = onnx.load_from_string(data).graph, onnx.load_from_string(changed).graph
    old, new = ({one.name: one for one in graph.initializer} for graph in (before, after))
    assert all(new[name] == one for name, one in old.items())
    made = {node.output[0]: node for node in after.node}
    quantising = [node for node in before.node if node.op_type == "QuantizeLinear"]
    assert quantising
    for node in quantising:
        now = made[node.output[0]]
        scale = onnx.numpy_helper.to_array(new[now.input[1]])
        assert scale.dtype == np.float32
        np.testing.assert_array_equal(scale, onnx.numpy_helper.to_array(old[node.input[1]]).astype(np.float32))
        assert now.input[2] == node.input[2]
        assert (made[now.input[0]].op_type, list(made[now.input[0]].input)) == ("Cast", [node.input[0]])
    same = [node for node in before.node if node.op_type != "QuantizeLinear"]
    assert all(made[node.output[0]] == node for node in same)
    assert len(after.node) == len(before.node) + len(quantising)
    assert emulate_fp16_quantization(data) == changed


def test_it_rounds_on_every_release(quantised):
    data, _, images, wanted = quantised
    model = onnx.load_from_string(emulate_fp16_quantization(data))
    constants = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    quantising = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    names = [name for node in quantising for name in (node.input[0], node.output[0])]
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, None) for name in names[::2])
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, 3, None) for name in names[1::2])
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    logits, *values = session.run(["logits", *names], {"images": images})
    for node, before, after in zip(quantising, values[::2], values[1::2], strict=True):
        exact = np.clip(np.rint(before / constants[node.input[1]]), -128, 127)
        assert (after == exact).mean() > 0.999  # a product with the reciprocal falls on the other side here and there
        assert (after != np.trunc(before / constants[node.input[1]])).mean() > 0.1
    assert np.abs(logits - wanted).max() < 0.1


@pytest.mark.parametrize(("version", "written_anew"), [("1.29.1", True), ("1.30.0", False)])
def test_a_file_is_written_anew_where_the_release_wants_it(monkeypatch, quantised, version, written_anew):
    monkeypatch.setattr(emulation, "installed_onnxruntime", lambda: ("onnxruntime", version))
    data, precision, _, _ = quantised
    assert emulate(data, precision) == (emulate_fp16_quantization(data) if written_anew else data)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_only_bf16_is_always_written_anew(random_model, network, precision):
    data = file_of(network, arrays(random_model(network, 5, 0)), precision)
    assert emulate(data, PRECISIONS[precision]) == (emulate_bf16(data) if precision == "bf16" else data)


@pytest.mark.parametrize(
    ("version", "expected"),
    [("1.23.2", True), ("1.29.1", True), ("1.30.0", False), ("1.32.0.dev20260901", False), ("2.0", False)],
)
def test_releases_before_1_30_truncate(version, expected):
    assert truncates_fp16_to_int8(version) is expected


def test_the_installed_release_truncates_where_it_is_said_to():
    """One operator: where this fails, the release from which FP16 is rounded is another than is said."""
    ends = [
        helper.make_tensor_value_info(name, kind, ["n"])
        for name, kind in (("x", TensorProto.FLOAT16), ("y", TensorProto.INT8))
    ]
    constants = [
        helper.make_tensor("scale", TensorProto.FLOAT16, [], [0.5]),
        helper.make_tensor("zero", TensorProto.INT8, [], [0]),
    ]
    node = helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["y"])
    graph = helper.make_graph([node], "one", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values = np.asarray([0.2, 0.3, -0.45, 1.2, 3.3, -3.3, 9.3], np.float16)
    (found,) = session.run(None, {"x": values})
    how = np.trunc if truncates_fp16_to_int8(onnxruntime.__version__) else np.rint
    np.testing.assert_array_equal(found, how(values.astype(np.float32) / 0.5))


@pytest.mark.parametrize("precision", list(PRECISIONS))
@pytest.mark.parametrize(("version", "typed"), [("1.23.2", False), ("1.30.0", True)])
def test_what_is_quantised_from_fp16_depends_on_the_release(monkeypatch, precision, version, typed):
    monkeypatch.setattr(emulation, "installed_onnxruntime", lambda: ("onnxruntime", version))
    expected = {"bf16": False, "int8": typed, "int8-1x1": typed}
    assert runs_as_typed(PRECISIONS[precision]) is expected.get(precision, True)
