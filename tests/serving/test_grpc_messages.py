"""A request over gRPC says what the same request over HTTP says."""

import json

import numpy as np
import pytest

from regnet_deploy.protobuf import messages
from regnet_deploy.serving.errors import RequestError
from regnet_deploy.serving.grpc_messages import read_message, read_request, write_response
from regnet_deploy.serving.model_interface import ModelInterface
from regnet_deploy.serving.protocol import parse_infer, read_document, respond

FLOATS = ModelInterface("regnet", "1", "images", "float32", (3, 2, 2), "logits", ("ant", "bee", "cat"), 4)
BYTES = ModelInterface("regnet", "1", "images", "uint8", (2, 2, 3), "logits", ("ant", "bee", "cat"), 4)
IMAGES = np.random.default_rng(1).normal(size=(2, 3, 2, 2)).astype(np.float32)
PIXELS = np.random.default_rng(1).integers(0, 256, (2, 2, 2, 3)).astype(np.uint8)


def request(interface, values, *, typed=False, **rest):
    shape = list(values.shape)
    tensor = {"name": "images", "datatype": interface.datatype, "shape": shape, **rest.pop("tensor", {})}
    if typed:
        tensor["contents"] = {typed: values.ravel().tolist()}
    made = messages.message("inference.ModelInferRequest", {"model_name": "regnet", "inputs": [tensor], **rest})
    if not typed:
        made.raw_input_contents.append(values.tobytes())
    return made


def read(made, interface):
    document, rest = read_request(*read_message(made.SerializeToString()), interface)
    return read_document(document, rest, interface)


def test_a_request_means_what_it_means_over_http():
    parameters = {"priority": 1, "timeout": 1000, "mine": "yes", "half": 0.5, "flag": True}
    document = {
        "id": "seven",
        "parameters": {**parameters, "binary_data_output": True},
        "inputs": [{"name": "images", "datatype": "FP32", "shape": [2, 3, 2, 2], "data": IMAGES.ravel().tolist()}],
        "outputs": [{"name": "logits", "parameters": {"classification": 2}}],
    }
    wire = {
        "priority": {"uint64_param": 1},
        "timeout": {"int64_param": 1000},
        "mine": {"string_param": "yes"},
        "half": {"double_param": 0.5},
        "flag": {"bool_param": True},
    }
    outputs = [{"name": "logits", "parameters": {"classification": {"int64_param": 2}}}]
    http = parse_infer(json.dumps(document).encode(), None, FLOATS)
    grpc = read(request(FLOATS, IMAGES, id="seven", parameters=wire, outputs=outputs), FLOATS)
    np.testing.assert_array_equal(grpc.images, http.images)
    for field in ("id", "binary", "top", "priority", "timeout_s"):
        assert getattr(grpc, field) == getattr(http, field)


@pytest.mark.parametrize(
    ("interface", "values", "field"),
    [(FLOATS, IMAGES, "fp32_contents"), (BYTES, PIXELS, "uint_contents")],
    ids=["FP32", "UINT8"],
)
def test_typed_contents_are_the_raw_ones(interface, values, field):
    for typed in (False, field):
        asked = read(request(interface, values, typed=typed), interface)
        assert asked.images.dtype == values.dtype
        np.testing.assert_array_equal(asked.images, values)


def test_what_a_client_says_of_binary_data_changes_nothing():
    no = {"bool_param": False}
    made = request(
        FLOATS,
        IMAGES,
        tensor={"parameters": {"binary_data_size": {"int64_param": 7}}},
        parameters={"binary_data_output": no},
        outputs=[{"name": "logits", "parameters": {"binary_data": no}}],
    )
    asked = read(made, FLOATS)
    assert asked.binary
    np.testing.assert_array_equal(asked.images, IMAGES)


def test_several_raw_tensors_lie_behind_each_other_in_their_order():
    made = request(FLOATS, IMAGES)
    made.inputs.add(name="other", datatype="FP32", shape=[1])
    made.raw_input_contents.append(b"four")
    document, rest = read_request(*read_message(made.SerializeToString()), FLOATS)
    assert [tensor["parameters"]["binary_data_size"] for tensor in document["inputs"]] == [96, 4]
    assert bytes(rest) == IMAGES.tobytes() + b"four"


def test_more_tensors_than_any_model_has_are_refused():
    made = request(FLOATS, IMAGES)
    for _ in range(70):
        made.outputs.add(name="logits")
    with pytest.raises(RequestError, match="70 tensors"):
        read_request(*read_message(made.SerializeToString()), FLOATS)


@pytest.mark.parametrize("top", [0, 2])
def test_an_answer_says_what_the_one_over_http_says(top):
    outputs = [{"name": "logits", "parameters": {"classification": {"int64_param": top}}}]
    asked = read(request(FLOATS, IMAGES, id="seven", outputs=outputs), FLOATS)
    response = respond(asked, np.float32([[1, 2, 3], [3, 2, 1]]), FLOATS)
    written = messages.message_class("inference.ModelInferResponse").FromString(
        write_response(response.document, [response.raw])
    )
    assert (written.model_name, written.model_version, written.id) == ("regnet", "1", "seven")
    (output,) = written.outputs
    described = response.document["outputs"][0]
    assert (output.name, output.datatype, list(output.shape)) == tuple(described.values())
    assert list(written.raw_output_contents) == [response.raw]


def test_parameters_of_an_answer_keep_their_types():
    output = {"name": "logits", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4, "n": 1}}
    document = {"model_name": "regnet", "parameters": {"yes": True, "half": 0.5, "who": "me"}, "outputs": [output]}
    written = messages.message_class("inference.ModelInferResponse").FromString(write_response(document, [b"1234"]))
    assert messages.to_dict(written)["parameters"] == {
        "yes": {"bool_param": True},
        "half": {"double_param": 0.5},
        "who": {"string_param": "me"},
    }
    assert messages.to_dict(written)["outputs"][0]["parameters"] == {"n": {"int64_param": "1"}}
