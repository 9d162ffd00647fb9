import contextlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from regnet_deploy.bundle import open_bundle
from regnet_deploy.errors import BundleError
from regnet_deploy.runtimes.onnx_file import BFLOAT16, FLOAT16, INT8, read_onnx_signature, refuse_external_data
from regnet_deploy.runtimes.runtime import open_onnx

VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)


def external(location: str = "weights.bin") -> TensorProto:
    tensor = numpy_helper.from_array(VALUES, "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def model_of(graph: onnx.GraphProto, **more: object) -> onnx.ModelProto:
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10, **more)


def graph_with(nodes: list[onnx.NodeProto], initializers: list[TensorProto] = []) -> onnx.GraphProto:  # noqa: B006
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])
    return helper.make_graph(nodes, "g", [x], [y], initializers)


def identity() -> onnx.NodeProto:
    return helper.make_node("Identity", ["x"], ["y"])


def constant() -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["c"], value=external())


def in_an_initializer() -> onnx.ModelProto:
    return model_of(graph_with([identity()], [external()]))


def in_a_constant() -> onnx.ModelProto:
    return model_of(graph_with([constant(), identity()]))


def in_a_subgraph() -> onnx.ModelProto:
    inner = helper.make_graph([identity()], "inner", [], [], [external()])
    return model_of(graph_with([helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)]))


def in_a_list_of_graphs() -> onnx.ModelProto:
    inner = helper.make_graph([identity()], "inner", [], [], [external()])
    node = identity()
    node.attribute.append(helper.make_attribute("branches", [inner]))
    return model_of(graph_with([node]))


def in_a_list_of_tensors() -> onnx.ModelProto:
    node = identity()
    node.attribute.append(helper.make_attribute("values", [external()]))
    return model_of(graph_with([node]))


def in_a_sparse_initializer() -> onnx.ModelProto:
    graph = graph_with([identity()])
    graph.sparse_initializer.add(values=external(), dims=[2, 3])
    return model_of(graph)


def in_the_indices_of_a_sparse_attribute() -> onnx.ModelProto:
    node = identity()
    attribute = node.attribute.add(name="s", type=onnx.AttributeProto.SPARSE_TENSOR)
    attribute.sparse_tensor.indices.CopyFrom(external())
    return model_of(graph_with([node]))


def in_a_function() -> onnx.ModelProto:
    opset = [helper.make_opsetid("", 18)]
    return model_of(
        graph_with([identity()]), functions=[helper.make_function("local", "f", ["x"], ["y"], [constant()], opset)]
    )


def in_the_default_of_a_function() -> onnx.ModelProto:
    opset = [helper.make_opsetid("", 18)]
    function = helper.make_function("local", "f", ["x"], ["y"], [identity()], opset)
    function.attribute_proto.append(helper.make_attribute("value", external()))
    return model_of(graph_with([identity()]), functions=[function])


def in_training_information() -> onnx.ModelProto:
    model = model_of(graph_with([identity()]))
    model.training_info.add(algorithm=graph_with([constant()]))
    return model


@pytest.mark.parametrize(
    "make",
    [
        in_an_initializer,
        in_a_constant,
        in_a_subgraph,
        in_a_list_of_graphs,
        in_a_list_of_tensors,
        in_a_sparse_initializer,
        in_the_indices_of_a_sparse_attribute,
        in_a_function,
        in_the_default_of_a_function,
        in_training_information,
    ],
)
def test_external_data_is_refused(make):
    with pytest.raises(BundleError, match="external data"):
        refuse_external_data(make().SerializeToString())


def test_external_data_without_a_location_is_refused_too():
    tensor = external()
    tensor.ClearField("external_data")
    with pytest.raises(BundleError, match="external data"):
        refuse_external_data(model_of(graph_with([identity()], [tensor])).SerializeToString())


def test_onnx_runtime_never_gets_to_read_the_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "weights.bin").write_bytes(VALUES.tobytes())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match="external data"):
        open_onnx(in_an_initializer().SerializeToString())


def test_a_file_with_all_its_tensors_inside_passes():
    inside = numpy_helper.from_array(VALUES, "w")
    node = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(VALUES))
    refuse_external_data(model_of(graph_with([node, identity()], [inside])).SerializeToString())


def test_every_message_type_that_holds_a_tensor_is_walked():
    """Found in onnx's own schema, so that a field that a new version adds is noticed."""
    from regnet_deploy.runtimes.onnx_file import _FIELDS

    kinds = {
        "ModelProto": "model",
        "TrainingInfoProto": "training",
        "GraphProto": "graph",
        "FunctionProto": "function",
        "NodeProto": "node",
        "AttributeProto": "attribute",
        "SparseTensorProto": "sparse",
        "TensorProto": "tensor",
    }
    holds = {"TensorProto"}
    messages = onnx.onnx_ml_pb2.DESCRIPTOR.message_types_by_name
    while True:
        more = {
            name
            for name, message in messages.items()
            if any(field.message_type is not None and field.message_type.name in holds for field in message.fields)
        } | holds
        if more == holds:
            break
        holds = more
    assert holds == set(kinds)
    for name in holds:
        fields = {
            field.number: kinds[field.message_type.name]
            for field in messages[name].fields
            if field.message_type is not None and field.message_type.name in holds
        }
        assert fields == _FIELDS[kinds[name]], name


@given(st.binary(max_size=200))
def test_bytes_that_are_not_onnx_are_passed_or_refused_but_never_crash(data: bytes):
    with contextlib.suppress(BundleError):
        refuse_external_data(data)


@given(st.data())
def test_a_damaged_file_with_external_data_is_refused_or_no_longer_has_any(data: st.DataObject):
    raw = bytearray(in_a_subgraph().SerializeToString())
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        refuse_external_data(bytes(raw))
    except BundleError:
        return
    try:
        model = onnx.load_model_from_string(bytes(raw))
    except Exception:  # whatever protobuf says: ONNX Runtime parses with it too
        return
    assert "EXTERNAL" not in str(model)
    assert "external_data" not in str(model)


def with_the_graphs_tag(tag: bytes) -> bytes:
    """A model with external data whose field ``graph``, the last one, has this tag."""
    model = in_an_initializer()
    model.graph.doc_string = "x" * 128
    graph = model.graph.SerializeToString()
    model.ClearField("graph")
    length = bytes([len(graph) & 0x7F | 0x80, len(graph) >> 7])
    assert 128 <= len(graph) < 2**14
    return model.SerializeToString() + tag + length + graph


def test_a_tag_with_more_than_32_bits_hides_nothing():
    """Protobuf drops the upper bits of a tag and reads the graph; ``graph`` is field 7, its tag 0x3a."""
    data = with_the_graphs_tag(b"\xba\x80\x80\x80\x10")  # 0x3a | 1 << 32
    with pytest.raises(BundleError, match="not an ONNX file"):
        refuse_external_data(data)
    with pytest.raises(BundleError, match="external data"):
        refuse_external_data(with_the_graphs_tag(b"\x3a"))


@pytest.mark.parametrize(
    "head",
    [
        b"\xba\x80\x80\x80\x00",  # the tag 0x3a, padded to five bytes
        b"\xba\x80\x80\x80\x80\x00",  # and to six
        b"\xba\x00",
        b"\x02",  # field 0
        b"\x08\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",  # ir_version in eleven bytes
    ],
)
def test_numbers_that_no_writer_writes_are_refused(head: bytes):
    graph = model_of(graph_with([identity()])).graph.SerializeToString()
    with pytest.raises(BundleError, match="not an ONNX file"):
        refuse_external_data(head + bytes([len(graph) & 0x7F | 0x80, len(graph) >> 7]) + graph)


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
