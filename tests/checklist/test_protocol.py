"""Checklist 18-23: what is wrong with a request is said to its client, and is nobody else's concern."""

import contextlib
import json
import re
import struct
from typing import Any

import numpy as np
import pytest

INFER = "/v2/models/regnet/infer"


GRPC_INFER = "/inference.GRPCInferenceService/ModelInfer"


def encoded(document: Any) -> bytes:
    return json.dumps(document).encode("utf-8", "surrogatepass")


@pytest.mark.parametrize(
    "body",
    [
        b'{"inputs":[],"inputs":[]}',
        b'{"inputs":[{"name":"images","name":"other"}]}',
        b'{"id":"a","id":"b","inputs":[]}',
        b'{"parameters":{"a":NaN},"inputs":[]}',
        b'{"parameters":{"a":Infinity},"inputs":[]}',
        b'{"parameters":{"a":-Infinity}}',
        b'{"id":"\\ud800","inputs":[]}',
        b'{"id":"\xed\xa0\x80","inputs":[]}',
        b'{"id":"\xff"}',
        b"\xef\xbb\xbf{}",
        b"{}\x00",
        b"{} {}",
        b"",
        b"null",
        b"[]",
        b'"inputs"',
        "{}".encode("utf-16"),
        b"{'inputs':[]}",
        b'{"inputs":[],}',
        b'{"__proto__":{},"__class__":{}}',
    ],
)
def test_18a_json_that_is_none_or_not_of_one_meaning(server: Any, body: bytes):
    reply = server.infer(body)
    assert reply.status == 400
    assert reply.error.isprintable()


@pytest.mark.parametrize(
    "number", ["NaN", "1e400", "-1e400", "1e39", "Infinity", '"1"', "null", "true", "[1]", "9" * 400]
)
def test_18b_numbers_that_are_none(server: Any, tools: Any, number: str):
    body = tools.infer_body().decode()
    first = re.search(r'"data": \[([^,]+),', body)
    assert first is not None
    reply = server.infer(body.replace(first[1], number, 1).encode())
    assert reply.status == 400
    assert reply.error


def test_18c_half_a_surrogate_pair_comes_back_as_it_was_sent(server: Any, tools: Any):
    body = json.dumps({**tools.infer_document(), "id": "\ud83d"}).encode()
    reply = server.infer(body)
    assert (reply.status, reply.json["id"]) == (200, "\ud83d")


@pytest.mark.parametrize(
    "shape",
    [
        [1, 2**63 - 1],
        [2**63, 3, 24, 24],
        [2**32, 2**32, 24, 24],
        [1, 3, 2**31, 2**33],
        [-1, 3, 24, 24],
        [-1, -3, 24, 24],
        [1.0, 3, 24, 24],
        [True, 3, 24, 24],
        ["1", 3, 24, 24],
        [10**300, 3, 24, 24],
        [2**64 + 1, 3, 24, 24],
        [[1, 3, 24, 24]],
        {"0": 1},
        None,
    ],
    ids=str,
)
def test_19_shapes_whose_product_is_no_number_of_elements(server: Any, channel: Any, tools: Any, shape: Any):
    assert server.infer(tools.infer_body(shape=shape)).status == 400
    body, headers = tools.binary(tools.tensor(), shape=shape)
    assert server.ask("POST", INFER, body, headers).status == (200 if shape is None else 400)
    if isinstance(shape, list) and all(type(side) is int and abs(side) < 2**63 for side in shape):
        from tritonclient.grpc import service_pb2 as pb

        tensor = pb.ModelInferRequest.InferInputTensor(name="images", datatype="FP32", shape=shape)
        request = pb.ModelInferRequest(model_name="regnet", inputs=[tensor], raw_input_contents=[bytes(6912)])
        assert tools.grpc_call(channel, GRPC_INFER, request.SerializeToString()) is None


@pytest.mark.parametrize(
    "size", [6911, 6913, 0, 1, -1, -6912, 2**63, 2**64 + 6912, 6912.0, "6912", True, [6912], 10**400], ids=str
)
def test_20a_sizes_of_binary_tensors_that_are_not_theirs(server: Any, tools: Any, size: Any):
    body, headers = tools.binary(tools.tensor(), size=size)
    reply = server.ask("POST", INFER, body, headers)
    assert reply.status == 400
    assert len(reply.error) < 200


@pytest.mark.parametrize(
    "length", ["-1", "", " ", "1e2", "0x10", "999999", "9" * 30, "12 ", "1_0", "+10", "\xb2", "\xb9\xb2", "1,1", "NaN"]
)
def test_20b_lengths_of_the_json_that_are_not_its_own(server: Any, tools: Any, length: str):
    body, _ = tools.binary(tools.tensor())
    reply = server.ask("POST", INFER, body, {"Inference-Header-Content-Length": length})
    assert reply.status == 400
    assert len(reply.error) < 200


def test_20c_bytes_that_are_short_or_long(server: Any, tools: Any):
    images = tools.tensor()
    body, headers = tools.binary(images)
    assert server.ask("POST", INFER, body, headers).status == 200
    for wrong in (body[:-1], body + b"\0", body[:-6912], body + body):
        assert server.ask("POST", INFER, wrong, headers).status == 400
    not_finite = struct.pack("<f", np.nan) + bytes(6908)
    assert server.ask("POST", INFER, body[:-6912] + not_finite, headers).status == 400
    for raw in (b"", bytes(6911), bytes(6913)):  # without any JSON
        assert server.ask("POST", INFER, raw, {"Inference-Header-Content-Length": "0"}).status == 400


HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    "fields",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: 5\r\nContent-Length: 5\r\n",
        b"Content-Length: 5, 5\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: 0x5\r\n",
        b"Content-Length: 5 5\r\n",
        b"Content-Length : 5\r\n",
        b"Content-Length:\r\n 5\r\n",
        b"Content-Length: 99999999999999999999\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding: identity\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        b"Transfer-Encoding:\x0bchunked\r\n",
        b"Transfer-Encoding: \x00chunked\r\n",
        b"X: y\rTransfer-Encoding: chunked\r\n",
        b"X: y\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        b"Transfer\xffEncoding: chunked\r\nContent-Length : 5\r\n",
        b" Transfer-Encoding: chunked\r\n",
    ],
)
def test_21a_two_ways_to_tell_where_a_request_ends_are_refused(server: Any, fields: bytes):
    """Whatever a proxy in front may have made of it: the bytes behind are not taken for a request."""
    answers = everything(server, b"POST /classify HTTP/1.1\r\nHost: x\r\n" + fields + b"\r\n0\r\n\r\n" + HIDDEN)
    assert b"hidden" not in answers
    assert answers.startswith(b"HTTP/1.1 400 ")
    assert answers.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    "chunks",
    [
        b"5\nhello\r\n0\r\n\r\n",
        b"-1\r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"5 \r\nhello\r\n0\r\n\r\n",
        b"5\r\nhelloXX0\r\n\r\n",
        b"5\r\nhello0\r\n\r\n",
        b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        b"\r\nhello\r\n0\r\n\r\n",
        b"5;\x00\r\nhello\r\n0\r\n\r\n",
    ],
)
def test_21b_chunks_that_are_none_are_refused(server: Any, chunks: bytes):
    head = b"POST /classify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    answers = everything(server, head + chunks + HIDDEN)
    assert b"hidden" not in answers
    assert answers.startswith(b"HTTP/1.1 400 ")


def test_21c_requests_behind_each_other_are_answered_in_their_order(server: Any, tools: Any):
    body = tools.infer_body()
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    last = b"GET /v2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answers = everything(server, head + body + HIDDEN + head + body + last)
    assert re.findall(rb"HTTP/1\.1 (\d+)", answers) == [b"200", b"404", b"200", b"200"]


def everything(server: Any, data: bytes) -> bytes:
    """Send bytes and return all that comes until the server closes the connection."""
    received = b""
    with server.connect() as connection:
        connection.settimeout(2)
        with contextlib.suppress(OSError):
            connection.sendall(data)
            while more := connection.recv(65536):
                received += more
    return received


@pytest.mark.parametrize(
    "name",
    [
        "regnet%00",
        "%00",
        "..%2F..%2Fetc%2Fpasswd",
        "%2e%2e",
        "..%5c..",
        "regnet%2F..",
        "%252e%252e%252f",
        "a" * 5000,
        "%C0%AE%C0%AE",
        "%ff%fe",
        "%",
        "%zz",
        "REGNET",
        "regnet%20",
        "regnet%0d%0aX:%20y",
        "%F0%9F%90%88",
    ],
)
def test_22a_names_that_no_model_has_are_404(server: Any, name: str):
    for reply in (
        server.get(f"/v2/models/{name}"),
        server.post(f"/v2/models/{name}/infer", b"{}"),
        server.post(f"/classify?model={name}", b"{}"),
    ):
        assert reply.status == 404
        assert len(reply.error) < 300
        assert reply.error.isprintable() or "\x00" in reply.error or "%0d" in name or "%C0" in name
    assert server.get(f"/v2/models/{name}/ready").status in (400, 404)


@pytest.mark.parametrize(
    "version", ["0", "2", "-1", "01", "1.0", "%31%20", "%D9%A1", "9" * 30, "latest", "%00", "1%2F.."]
)
def test_22b_and_versions(server: Any, version: str):
    for reply in (
        server.get(f"/v2/models/regnet/versions/{version}"),
        server.post(f"/v2/models/regnet/versions/{version}/infer", b"{}"),
        server.post(f"/classify?version={version}", b"{}"),
    ):
        assert reply.status == 404
        assert len(reply.error) < 300


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", INFER),
        ("PUT", INFER),
        ("DELETE", "/v2/models/regnet"),
        ("GET", "/classify"),
        ("POST", "/v2/models/regnet"),
        ("POST", "/v2/health/ready"),
        ("PATCH", "/"),
        ("GET", "/v2/repository/index"),
        ("TRACE", "/v2"),
        ("POST", "/metrics"),
    ],
)
def test_23_wrong_methods_are_405(server: Any, method: str, path: str):
    reply = server.ask(method, path)
    assert reply.status == 405
    assert "Method Not Allowed" in reply.error
    assert method not in reply.headers["allow"]
