"""Bytes of a message, counted before they become objects."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from regnet_deploy.protobuf import messages
from regnet_deploy.protobuf.wire_format import Shape, WireError, overhead, split

#: Field 5 is looked into, of which 5 is looked into again, of which 1 to 7 are data; 7 is data.
SHAPE = Shape({5: Shape({5: Shape(data=frozenset(range(1, 8)))})}, frozenset({7}))
MOST = 10_000


def request(**values):
    return messages.message("inference.ModelInferRequest", values)


def size_of(made):
    return overhead(made.SerializeToString(), SHAPE, MOST)


def test_tensors_do_not_count():
    typed = request(inputs=[{"name": "images", "contents": {"fp32_contents": [1.0] * 100_000}}])
    raw = request(inputs=[{"name": "images"}])
    small = size_of(raw)
    raw.raw_input_contents.append(bytes(1_000_000))
    assert small < size_of(raw) < size_of(typed) < 100


@pytest.mark.parametrize(
    "values",
    [
        {"model_name": "x" * MOST},
        {"inputs": [{}] * MOST},
        {"outputs": [{"name": "y"}] * MOST},
        {"parameters": {str(i): {"int64_param": i} for i in range(MOST)}},
        {"inputs": [{"shape": [1] * MOST}]},
        {"inputs": [{"contents": {"bytes_contents": [""] * MOST}}]},
    ],
    ids=lambda values: next(iter(values)),
)
def test_what_becomes_many_objects_counts(values):
    assert size_of(request(**values)) > MOST


def test_many_empty_pieces_of_data_count():
    made = request()
    made.raw_input_contents.extend([b""] * MOST)
    assert size_of(made) > MOST


def test_looking_stops_where_it_is_too_much():
    assert overhead(b"\x2a\x00" * 1_000_000 + b"\xff", SHAPE, 100) < 200


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a",
        b"\x0a\x05abc",
        b"\x08",
        b"\x08" + b"\xff" * 11,
        b"\x0d\x00",
        b"\x09" + bytes(7),
        b"\x0b",
        b"\x2a\x02\x2a\x05",
    ],
)
def test_what_is_no_message_is_refused(data):
    with pytest.raises(WireError):
        overhead(data, SHAPE, MOST)


@given(st.binary(max_size=200))
def test_what_protobuf_reads_is_no_error_here(data):
    try:
        messages.message_class("inference.ModelInferRequest").FromString(data)
    except (DecodeError, UnicodeDecodeError):
        return
    try:
        count = overhead(data, SHAPE, MOST)
    except WireError as error:
        count = 0 if "an unknown wire type" in str(error) else -1  # groups, which nobody writes any more
    assert 0 <= count <= 10 * len(data)


def test_raw_tensors_are_taken_out_without_a_copy():
    made = request(model_name="regnet", id="seven", inputs=[{"name": "images", "shape": [1]}])
    head = made.SerializeToString()
    made.raw_input_contents.extend([b"one", b"", b"three"])
    data = made.SerializeToString() + b"\x1a\x05later"  # fields come in any order, and the last one counts
    rest, tensors = split(data, 7)
    assert rest == head + b"\x1a\x05later"
    assert [bytes(tensor) for tensor in tensors] == [b"one", b"", b"three"]
    assert all(tensor.obj is data for tensor in tensors)


@given(st.binary(max_size=200))
def test_what_is_taken_out_is_what_protobuf_reads(data):
    try:
        whole = messages.message_class("inference.ModelInferRequest").FromString(data)
        rest, tensors = split(data, 7)
    except (DecodeError, UnicodeDecodeError, WireError):
        return
    assert list(map(bytes, tensors)) == list(whole.raw_input_contents)
    del whole.raw_input_contents[:]
    assert messages.message_class("inference.ModelInferRequest").FromString(rest) == whole
