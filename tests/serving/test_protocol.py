import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from regnet_deploy.serving.protocol import (
    HeaderCache,
    InferRequest,
    ModelInterface,
    RequestError,
    infer_response,
    parse_infer,
)

FLOATS = ModelInterface("m", "1", "images", "float32", (3, 2, 2), "logits", ("a", "b:c", "é", "d"), 4)
BYTES = ModelInterface("m", "1", "images", "uint8", (2, 2, 3), "logits", ("a", "b:c", "é", "d"), 4)
LOGITS = np.array([[0.5, 2.0, -1.25, 1.0], [4.0, 3.0, 2.0, 1.0]], np.float32)


def tensor(**fields: Any) -> dict[str, Any]:
    return {"name": "images", "shape": [1, 3, 2, 2], "datatype": "FP32", "data": [0.5] * 12, **fields}


def body(*inputs: dict[str, Any], **fields: Any) -> bytes:
    return json.dumps({"inputs": list(inputs), **fields}).encode()


def refused(data: bytes, header: str | None = None, interface: ModelInterface = FLOATS) -> str:
    with pytest.raises(RequestError) as error:
        parse_infer(data, header, interface)
    assert error.value.status == 400
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400
    return str(error.value)


def binary(document: dict[str, Any], raw: bytes) -> tuple[bytes, str]:
    head = json.dumps(document).encode()
    return head + raw, str(len(head))


@settings(deadline=None)
@given(st.integers(1, 4), st.sampled_from([FLOATS, BYTES]), st.sampled_from(["flat", "nested", "binary"]), st.data())
def test_what_a_client_sends_is_what_arrives(count: int, interface: ModelInterface, form: str, data: st.DataObject):
    seed = data.draw(st.integers(0, 2**32 - 1))
    draw = np.random.default_rng(seed)
    shape = (count, *interface.image)
    if interface.dtype == "uint8":
        images = draw.integers(0, 256, shape).astype(np.uint8)
    else:
        images = draw.normal(size=shape).astype(np.float32)
    described = {"name": "images", "shape": list(shape), "datatype": interface.datatype}
    if form == "binary":
        described["parameters"] = {"binary_data_size": images.nbytes}
        request = parse_infer(*binary({"inputs": [described]}, images.tobytes()), interface)
    else:
        described["data"] = images.tolist() if form == "nested" else images.ravel().tolist()
        request = parse_infer(body(described), None, interface)
    assert request.images.dtype == images.dtype
    np.testing.assert_array_equal(request.images, images)
    assert (request.id, request.binary, request.top) == (None, False, 0)


def test_a_body_of_nothing_but_the_tensor_is_one_image_answered_in_binary():
    images = np.arange(12, dtype="<f4").reshape(1, 3, 2, 2)
    request = parse_infer(images.tobytes(), "0", FLOATS)
    np.testing.assert_array_equal(request.images, images)
    assert request.binary
    assert "48 bytes" in refused(images.tobytes() * 2, "0")


def test_what_is_null_is_not_there():
    request = parse_infer(body(tensor(parameters=None), id=None, parameters=None, outputs=None), None, FLOATS)
    assert (request.id, request.binary, request.top) == (None, False, 0)


def test_a_byte_order_mark_is_passed_over():
    assert parse_infer(b"\xef\xbb\xbf" + body(tensor()), None, FLOATS).images.shape == (1, 3, 2, 2)


@pytest.mark.parametrize(
    ("request_parameters", "output_parameters", "wanted"),
    [
        ({}, {}, (False, 0)),
        ({"binary_data_output": True}, {}, (True, 0)),
        ({"binary_data_output": True}, {"binary_data": False}, (False, 0)),
        ({}, {"binary_data": True}, (True, 0)),
        ({}, {"classification": 2}, (False, 2)),
        ({}, {"classification": 99, "binary_data": True}, (True, 4)),
        ({"priority": 1, "own": "x"}, {"other": 1.5}, (False, 0)),
    ],
)
def test_the_output_comes_as_it_is_asked_for(request_parameters, output_parameters, wanted):
    data = body(tensor(), outputs=[{"name": "logits", "parameters": output_parameters}], parameters=request_parameters)
    request = parse_infer(data, None, FLOATS)
    assert (request.binary, request.top) == wanted


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe\xfd", "not JSON"),
        (b"[" * 60_000, "nested lists and objects"),
        (b'{"inputs":' + b"[" * 60_000, "nested lists and objects"),
        (b'{"a":' + b"1" * 5000 + b"}", "not JSON"),
        (b"[]", "JSON object"),
        (b"null", "JSON object"),
        (b'{"inputs": NaN}', "NaN"),
        (body(), "inputs"),
        (b"{}", "inputs"),
        (body(tensor(), tensor()), "inputs"),
        (b'{"inputs": [3]}', "inputs"),
        (body(tensor(name="x")), "unknown input 'x'"),
        (body(tensor(name=["x"])), "a list of 1"),
        (body(tensor(datatype="FP16")), "FP32"),
        (body(tensor(datatype=None)), "FP32"),
        (body(tensor(shape=[1, 3, 2, 3])), "shape must be [n, 3, 2, 2], not [1, 3, 2, 3]"),
        (body(tensor(shape=[3, 2, 2])), "shape"),
        (body(tensor(shape=[])), "shape"),
        (body(tensor(shape="1322")), "shape"),
        (body(tensor(shape=[True, 3, 2, 2])), "shape"),
        (body(tensor(shape=[1.0, 3, 2, 2])), "shape"),
        (body(tensor(shape=[0, 3, 2, 2])), "1 to 4 images"),
        (body(tensor(shape=[-1, 3, 2, 2])), "1 to 4 images"),
        (body(tensor(shape=[5, 3, 2, 2], data=[0] * 60)), "1 to 4 images"),
        (body(tensor(shape=[2**63 - 1, 3, 2, 2])), "1 to 4 images"),
        (body(tensor(shape=[1, 3, 2**63, 2**63])), "shape"),
        (body(tensor(data=[0.5] * 11)), "takes 12 numbers, got 11"),
        (body(tensor(data=[])), "got 0"),
        (body(tensor(data=None)), "list"),
        (body(tensor(data={"0": 1})), "list"),
        (body(tensor(data=[*[0.5] * 11, "1"])), "numbers"),
        (body(tensor(data=[*[0.5] * 11, None])), "numbers"),
        (body(tensor(data=[*[0.5] * 11, True])), "numbers"),
        (body(tensor(data=[*[0.5] * 11, [1]])), "numbers"),
        (body(tensor(data=[*[0.5] * 11, 10**400])), "range"),
        (body(tensor(data=[*[0.5] * 11, 1e39])), "range"),
        (body(tensor()).replace(b"0.5]", b"1e400]"), "range"),
        (body(tensor(data=[[[[1, 2], [3, 4]], [[1, 2], [3, 4]], [[1, 2], [3]]]])), "nesting"),
        (body(tensor(data=[[[1, 2, 3, 4]] * 3])), "nesting"),
        (body(tensor(parameters=[])), "parameters"),
        (body(tensor(parameters={"binary_data_size": 48})), "both"),
        (body({k: v for k, v in tensor().items() if k != "data"}), "neither"),
        (body(tensor(), id=7), "id"),
        (body(tensor(), outputs=7), "outputs"),
        (body(tensor(), outputs=["logits"]), "outputs"),
        (body(tensor(), outputs=[{"name": "nix"}]), "unknown output 'nix'"),
        (body(tensor(), outputs=[{"name": "logits"}] * 2), "2 outputs"),
        (body(tensor(), outputs=[{"name": "logits", "parameters": {"classification": -1}}]), "classification"),
        (body(tensor(), outputs=[{"name": "logits", "parameters": {"classification": True}}]), "classification"),
        (body(tensor(), outputs=[{"name": "logits", "parameters": {"binary_data": 1}}]), "binary_data"),
        (body(tensor(), parameters={"binary_data_output": "yes"}), "binary_data_output"),
        (body(tensor(), parameters="x"), "parameters"),
        (body(tensor(), parameters={"triton_final_response": True}), "is not offered"),
        (body(tensor(parameters={"shared_memory_region": "here"})), "is not offered"),
        (body(tensor(), outputs=[{"name": "logits", "parameters": {"shared_memory_region": "here"}}]), "not offered"),
        (body(tensor(), outputs={}), "outputs"),
    ],
)
def test_a_malformed_document_is_the_clients_mistake(data: bytes, says: str):
    assert says in refused(data)


@pytest.mark.parametrize("value", [-1, 256, 0.5, 1e3, True, "7"])
def test_pixels_are_whole_numbers_of_a_byte(value: Any):
    data = tensor(datatype="UINT8", shape=[1, 2, 2, 3], data=[0] * 11 + [value])
    assert "0 to 255" in refused(body(data), interface=BYTES)


@pytest.mark.parametrize("header", ["-1", "1e3", "", "abc", "99999", "1" * 30, "٣"])
def test_a_header_length_that_is_none_is_refused(header: str):
    assert "Inference-Header-Content-Length" in refused(body(tensor()), header)


@pytest.mark.parametrize(
    ("size", "sent"), [(47, 48), (49, 48), (48, 47), (48, 52), (0, 48), (-48, 48), ("48", 48), (48.0, 48), (44, 44)]
)
def test_binary_data_of_another_size_is_refused(size: Any, sent: int):
    described = {k: v for k, v in tensor(parameters={"binary_data_size": size}).items() if k != "data"}
    refused(*binary({"inputs": [described]}, bytes(sent)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_taken_as_bytes_and_refused_as_json(value: float):
    described = {k: v for k, v in tensor(parameters={"binary_data_size": 48}).items() if k != "data"}
    raw = np.array([*[0.0] * 11, value], "<f4").tobytes()
    request = parse_infer(*binary({"inputs": [described]}, raw), FLOATS)
    np.testing.assert_array_equal(request.images.ravel()[-1], np.float32(value))
    assert "is not JSON" in refused(body(tensor(data=[*[0.0] * 11, value])))


@pytest.mark.parametrize(
    ("parameters", "wanted"),
    [
        ({}, (0, None)),
        ({"priority": 3, "timeout": 1_500_000}, (3, 1.5)),
        ({"priority": 4, "timeout": 0}, (0, None)),  # beyond Triton's levels: its default
        ({"priority": 2**64}, (0, None)),
        ({"timeout": 2**63 - 1}, (0, (2**63 - 1) / 1e6)),
    ],
)
def test_priority_and_timeout_are_those_of_the_request(parameters: dict[str, Any], wanted: tuple[int, float | None]):
    request = parse_infer(body(tensor(), parameters=parameters), None, FLOATS)
    assert (request.priority, request.timeout_s) == wanted


@pytest.mark.parametrize("name", ["priority", "timeout"])
@pytest.mark.parametrize("value", [-1, 1.5, "1", True, None, [1]])
def test_a_priority_or_timeout_that_is_no_number_is_refused(name: str, value: Any):
    assert f"{name} must be a whole number" in refused(body(tensor(), parameters={name: value}))


@pytest.mark.parametrize(
    "data",
    [
        b'{"inputs": [], "inputs": []}',
        b'{"inputs": [{"name": "images", "name": "other"}]}',
        b'{"parameters": {"priority": 1, "priority": 2}}',
    ],
)
def test_a_name_that_is_there_twice_is_refused(data: bytes):
    assert "the same name twice" in refused(data)


def test_bytes_behind_json_data_are_refused():
    assert "3 bytes follow" in refused(*binary({"inputs": [tensor()]}, b"abc"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@settings(deadline=None)
@given(
    st.sampled_from(["id", "inputs", "outputs", "parameters"]) | st.sampled_from(["name", "shape", "datatype", "data"]),
    json_values,
)
@example("parameters", {"binary_data_size": float("nan")})
def test_any_value_in_any_place_is_taken_or_refused(place: str, value: Any):
    document = {"inputs": [tensor()], "outputs": [{"name": "logits"}], "parameters": {}, "id": "x"}
    if place in document:
        document[place] = value
    else:
        document["inputs"][0][place] = value
    try:
        request = parse_infer(json.dumps(document).encode(), None, FLOATS)
    except RequestError as error:
        assert error.status == 400  # noqa: PT017 - both outcomes are right, a third is not
        return
    assert request.images.shape[1:] == FLOATS.image


@settings(deadline=None)
@given(st.binary(max_size=80), st.none() | st.integers(-3, 90).map(str) | st.text(max_size=4))
def test_any_bytes_are_taken_or_refused(data: bytes, header: str | None):
    try:
        request = parse_infer(data, header, FLOATS)
    except RequestError as error:
        assert error.status == 400  # noqa: PT017
        return
    assert request.images.shape == (1, 3, 2, 2)


def request_of(**fields: Any) -> InferRequest:
    return InferRequest(**{"images": LOGITS, "id": None, "binary": False, "top": 0, **fields})


def test_what_tritons_load_generator_sends_to_everybody_is_passed_over():
    assert parse_infer(body(tensor(), parameters={"triton_enable_empty_final_response": False}), None, FLOATS).top == 0


def header_length(headers: list[tuple[bytes, bytes]]) -> int:
    return int(dict(headers)[b"inference-header-content-length"])


def test_what_is_the_same_again_is_read_and_written_once_and_answers_the_same():
    heads = HeaderCache()
    images = [
        np.random.default_rng(seed).normal(size=(count, 3, 2, 2)).astype("<f4")
        for seed, count in ((0, 1), (1, 2), (2, 1))
    ]
    for turn in range(3):
        for pixels in images:
            asked = tensor(shape=list(pixels.shape), parameters={"binary_data_size": pixels.nbytes})
            del asked["data"]
            fields: dict[str, Any] = {"inputs": [asked], "parameters": {"binary_data_output": True, "timeout": 5}}
            if turn == 2:
                fields["id"] = "mine"
            head = json.dumps(fields).encode()
            kept = parse_infer(head + pixels.tobytes(), str(len(head)), FLOATS, heads)
            fresh = parse_infer(head + pixels.tobytes(), str(len(head)), FLOATS)
            np.testing.assert_array_equal(kept.images, pixels)
            assert kept[1:] == fresh[1:] == ("mine" if turn == 2 else None, True, 0, 0, 5e-6)
            logits = LOGITS[: len(pixels)] + turn
            assert infer_response(kept, logits, FLOATS, heads) == infer_response(fresh, logits, FLOATS)
            with pytest.raises(RequestError, match=r"takes|follow"):
                parse_infer(head + pixels.tobytes()[4:], str(len(head)), FLOATS, heads)
    assert len(heads.asked) == 2  # of one shape each; none with an id
    for number in range(500):  # what a client makes up does not pile up
        made_up = head.replace(b'"id": "mine"', b'"x": "%d"' % number)
        parse_infer(made_up + pixels.tobytes(), str(len(made_up)), FLOATS, heads)
    assert len(heads.asked) <= 64


def test_logits_as_json():
    content, headers = infer_response(request_of(id="\ud800 odd"), LOGITS, FLOATS)
    assert headers == [(b"content-type", b"application/json")]
    assert json.loads(content) == {
        "model_name": "m",
        "model_version": "1",
        "id": "\ud800 odd",
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [2, 4], "data": LOGITS.ravel().tolist()}],
    }


def test_logits_as_bytes():
    content, headers = infer_response(request_of(binary=True), LOGITS, FLOATS)
    assert headers[0] == (b"content-type", b"application/octet-stream")
    split = header_length(headers)
    document = json.loads(content[:split])
    assert "id" not in document
    assert document["outputs"] == [
        {"name": "logits", "datatype": "FP32", "shape": [2, 4], "parameters": {"binary_data_size": 32}}
    ]
    np.testing.assert_array_equal(np.frombuffer(content[split:], "<f4").reshape(2, 4), LOGITS)


def test_classes_as_strings():
    content, _ = infer_response(request_of(top=2), LOGITS, FLOATS)
    output = json.loads(content)["outputs"][0]
    assert (output["datatype"], output["shape"]) == ("BYTES", [2, 2])
    assert output["data"] == ["2.000000:1:b:c", "1.000000:3:d", "4.000000:0:a", "3.000000:1:b:c"]


def test_classes_as_bytes():
    content, headers = infer_response(request_of(top=3, binary=True), LOGITS[1:], FLOATS)
    raw = content[header_length(headers) :]
    texts = []
    while raw:
        (length,) = struct.unpack_from("<I", raw)
        texts.append(raw[4 : 4 + length].decode())
        raw = raw[4 + length :]
    assert texts == ["4.000000:0:a", "3.000000:1:b:c", "2.000000:2:é"]


def test_an_answer_that_is_not_finite_is_not_given():
    with pytest.raises(RequestError, match="not finite"):
        infer_response(request_of(), np.array([[np.inf, 0, 0, 0]], np.float32), FLOATS)


@pytest.mark.parametrize("interface", [FLOATS, BYTES])
def test_more_numbers_than_the_largest_batch_has_are_refused_before_they_become_objects(
    interface: ModelInterface, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(json, "loads", lambda *arguments, **options: pytest.fail("it was parsed"))
    for data in (b'{"inputs":[{"data":[' + b"0," * 5000 + b"0]}]}", b'{"inputs":"' + b"x" * 70_000 + b'"}'):
        with pytest.raises(RequestError, match="larger than 4 images need") as error:
            parse_infer(data, None, interface)
        assert error.value.status == 413


def test_the_largest_batch_fits_with_every_digit_and_white_space():
    large = ModelInterface("m", "1", "images", "float32", (3, 64, 64), "logits", ("a",), 8)
    values = np.full((8, 3, 64, 64), -1.2345678901234567e-30)
    tensor = {"name": "images", "shape": list(values.shape), "datatype": "FP32", "data": values.tolist()}
    assert parse_infer(json.dumps({"inputs": [tensor]}).encode(), None, large).images.shape == values.shape


@pytest.mark.parametrize("value", [0, 1, 2**64 - 1, "a", "", None])
def test_a_sequence_means_nothing_to_a_model_without_state(value: Any):
    parameters = {"sequence_id": value, "sequence_start": True, "sequence_end": None}
    assert parse_infer(body(tensor(), parameters=parameters), None, FLOATS).images.shape == (1, 3, 2, 2)


@pytest.mark.parametrize("value", [1.5, True, -1, 2**64, [1], {"a": 1}])
def test_the_kind_of_a_sequence_is_checked_all_the_same(value: Any):
    assert "sequence_id" in refused(body(tensor(), parameters={"sequence_id": value}))


@pytest.mark.parametrize("name", ["sequence_start", "sequence_end"])
@pytest.mark.parametrize("value", [1, 0, "true", [True]])
def test_start_and_end_of_a_sequence_are_flags(name: str, value: Any):
    assert name in refused(body(tensor(), parameters={name: value}))
