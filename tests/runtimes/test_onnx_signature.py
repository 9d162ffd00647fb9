import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from regnet_deploy.bundle import open_bundle
from regnet_deploy.errors import BundleError
from regnet_deploy.runtimes.onnx_file import BFLOAT16, FLOAT16, INT8, read_onnx_signature


def file(shapes: list[list], types: tuple[int, ...] = (TensorProto.FLOAT,)) -> bytes:
    inputs = [helper.make_tensor_value_info(f"in{i}", TensorProto.FLOAT, shape) for i, shape in enumerate(shapes)]
    weights = [helper.make_tensor(f"w{kind}", kind, [2], [1, 2]) for kind in types]
    output = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    nodes = [helper.make_node("Relu", ["in0"], ["out"])]
    return helper.make_model(helper.make_graph(nodes, "g", inputs, [output], weights)).SerializeToString()


@pytest.mark.parametrize(
    ("name", "image"), [("onnx-fp32", (3, 24, 24)), ("onnx-fp32-uint8", (24, 24, 3))], ids=lambda value: str(value)
)
def test_the_input_of_an_exported_file(exported_bundle, name, image):
    head = read_onnx_signature(open_bundle(exported_bundle).read(f"{name}.onnx"))
    assert (head.name, head.image, head.types) == ("images", image, frozenset({TensorProto.FLOAT}))


def test_types_are_those_of_the_weights():
    types = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.INT8)
    assert types == (FLOAT16, BFLOAT16, INT8)
    for kind in types:
        assert read_onnx_signature(file([["n", 3, 8, 9]], (kind,))).types == {kind}
    assert read_onnx_signature(file([["n", 3, 8, 9]], types)).types == set(types)


def test_raw_data_and_a_fixed_batch_are_read_alike():
    weights = [numpy_helper.from_array(np.zeros(4, np.float16), "w")]
    images = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 300, 200])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [images], [output], weights)
    head = read_onnx_signature(helper.make_model(graph).SerializeToString())
    assert (head.name, head.image, head.types) == ("x", (3, 300, 200), frozenset({FLOAT16}))


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ([], "0 inputs"),
        ([["n", 3, 8, 8]] * 2, "2 inputs"),
        ([["n", 3, "h", "w"]], "no fixed size"),
        ([[1]], "no fixed"),
    ],
)
def test_what_is_no_batch_of_images_of_one_size_is_refused(shapes, said):
    with pytest.raises(BundleError, match=said):
        read_onnx_signature(
            file(shapes) if shapes else helper.make_model(helper.make_graph([], "g", [], [])).SerializeToString()
        )
