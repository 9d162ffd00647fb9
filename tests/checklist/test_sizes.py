"""Checklist 7-10, 15, 16: how much a client may send."""

import contextlib
import json
import socket
import struct
import zlib
from pathlib import Path
from typing import Any

import grpc
import pytest

INFER = "/inference.GRPCInferenceService/ModelInfer"


MB = 10**6


def head(*fields: str, path: str = "/classify") -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", *fields, "", ""]).encode()


def send_until_closed(connection: socket.socket, data: bytes, times: int) -> int:
    """Send again and again, as long as the other side takes it; return the bytes that it took."""
    sent = 0
    with contextlib.suppress(OSError):
        for _ in range(times):
            connection.sendall(data)
            sent += len(data)
    return sent


def closed(connection: socket.socket) -> bool:
    """Wait for the end of a connection."""
    with contextlib.suppress(ConnectionError):
        while connection.recv(65536):
            pass
    return True


@pytest.mark.parametrize("declared", [2_000_001, 10**12, 2**63 - 1])
def test_07a_a_length_that_is_too_large_is_refused_before_the_body(server: Any, tools: Any, declared: int):
    with server.connect() as connection:
        connection.sendall(head(f"Content-Length: {declared}"))
        reply = tools.read_reply(connection)
        assert (reply.status, reply.headers["connection"]) == (413, "close")
        assert reply.error == "the body is larger than 2,000,000 bytes"
        connection.shutdown(socket.SHUT_WR)
        assert closed(connection)


@pytest.mark.parametrize(
    ("size", "again"),
    [(b"", b"186a0\r\n" + bytes(100_000) + b"\r\n"), (b"10000000\r\n", bytes(100_000))],
    ids=["many", "one"],
)
def test_07b_a_body_without_a_length_is_counted_while_it_arrives(server: Any, tools: Any, size: bytes, again: bytes):
    with server.connect() as connection:
        connection.sendall(head("Transfer-Encoding: chunked") + size)
        for _ in range(25):  # more than allowed, and no end
            connection.sendall(again)
        reply = tools.read_reply(connection)
        assert reply.status == 413
        assert reply.error == "the body is larger than 2,000,000 bytes"
        if not size:  # with its end sent it need not be waited for
            connection.sendall(b"0\r\n\r\n")
            assert closed(connection)
    server.answers()


def test_07c_chunks_of_one_byte_come_to_an_end(server: Any, tools: Any):
    with server.connect() as connection:
        connection.sendall(head("Transfer-Encoding: chunked"))
        send_until_closed(connection, b"1\r\nx\r\n" * 10_000, 40)
        with contextlib.suppress(ConnectionError):
            assert tools.read_reply(connection).status in (413, 431)
            assert closed(connection)
    server.answers()
    # As many as an honest client may send are taken.
    body = b"".join(b"1\r\n%c\r\n" % byte for byte in tools.image()[:600])
    assert server.raw(head("Transfer-Encoding: chunked") + body + b"0\r\n\r\n").status == 400  # half an image


def test_07d_a_body_that_is_shorter_or_longer_than_it_says_hurts_nobody(server: Any, tools: Any):
    with server.connect() as connection:
        connection.sendall(head("Content-Length: 1000000") + b"half")
    body = tools.infer_body()
    with server.connect() as connection:  # what is behind the body is a request of its own, and not a good one
        connection.sendall(head(f"Content-Length: {len(body)}", path="/v2/models/regnet/infer") + body)
        assert tools.read_reply(connection).status == 200
        connection.sendall(b"and more")
        assert tools.read_reply(connection).status == 400
        assert closed(connection)
    server.answers()


@pytest.mark.parametrize("form", ["length", "chunked"])
def test_07e_a_body_is_never_a_request_whatever_protocol_is_offered(server: Any, tools: Any, form: str):
    body, inner = tools.infer_body(), b"GET /v2/models/regnet/config HTTP/1.1\r\nHost: x\r\n\r\n"
    for content, status in ((body, 200), (inner, 400)):
        offer = ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA"]
        sized = "Transfer-Encoding: chunked" if form == "chunked" else f"Content-Length: {len(content)}"
        framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content) if form == "chunked" else content
        with server.connect() as connection:
            connection.sendall(head(*offer, sized, path="/v2/models/regnet/infer"))
            connection.sendall(framed)
            assert tools.read_reply(connection).status == status
            connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            assert tools.read_reply(connection).json == {"live": True}  # and no second answer before it
    assert "WebSocket" not in server.log
    assert "Unsupported upgrade" not in server.log


def test_07f_a_body_is_asked_for_where_the_client_waits_for_that_and_it_is_wanted(server: Any, tools: Any):
    body = tools.infer_body()
    with server.connect() as connection:
        fields = (f"Content-Length: {len(body)}", "Expect: 100-continue")
        connection.sendall(head(*fields, path="/v2/models/regnet/infer"))
        asked = b""
        while not asked.endswith(b"\r\n\r\n"):
            received = connection.recv(1)
            assert received
            asked += received
        assert asked == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert tools.read_reply(connection).status == 200
    too_large = head("Content-Length: 2000001", "Expect: 100-continue")
    assert server.raw(too_large).status == 413


def test_07g_messages_of_grpc_are_limited_too(server: Any):
    with grpc.insecure_channel(server.grpc) as channel, pytest.raises(grpc.RpcError) as error:
        channel.unary_unary(INFER)(bytes(3 * MB), timeout=30)
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    server.answers()


def test_07h_requests_that_are_sent_ahead_do_not_pile_up(server: Any):
    """The client never reads an answer: the server stops reading, or ends it, and its memory stays."""
    before = server.memory()
    with server.connect() as connection:
        connection.settimeout(1)
        for _ in range(300):
            try:
                connection.sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n" * 2000)
            except OSError:  # full, or closed
                break
    assert server.memory() - before < 40 * MB
    server.answers()


def test_07i_requests_that_are_sent_ahead_do_not_pile_up_while_answers_are_read(server: Any):
    """The server reads on after every answer: each time more requests come than are answered."""
    before = server.memory()
    with server.connect() as connection:
        connection.settimeout(10)
        for _ in range(400):
            try:
                connection.sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
                if not connection.recv(2**10):
                    break
            except OSError:  # closed
                break
        growth = server.memory() - before
    assert growth < 5 * MB
    server.answers()


@pytest.mark.parametrize("path", ["/classify", "/v2/models/regnet/infer"])
@pytest.mark.parametrize("form", ["gzip", "deflate"])
def test_08a_a_body_that_unpacks_to_a_gigabyte_does_not(server: Any, bomb: bytes, path: str, form: str):
    packed = bomb
    if form == "deflate":  # the same without gzip's head, within zlib's
        packed = b"\x78\x9c" + bomb[10:]
    reply = server.post(path, packed, Content_Encoding=form)
    assert reply.status == 413
    assert reply.error == "the body is larger than 2,000,000 bytes"
    assert server.memory("VmHWM") < 500 * MB


def test_08b_nor_does_one_within_another_or_behind_another(server: Any, tools: Any):
    body = tools.infer_body()
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    once = packer.compress(body) + packer.flush()
    assert server.infer(once, Content_Encoding="gzip").status == 200
    assert server.infer(once + once, Content_Encoding="gzip").status == 400
    assert server.infer(once[:-9], Content_Encoding="gzip").status == 400
    for name in ("gzip, gzip", "br", "zstd", "gzip;q=1", "x" * 1000):
        reply = server.infer(once, Content_Encoding=name)
        assert reply.status == 415
        assert len(reply.error) < 200


def test_08c_nor_does_a_message_of_grpc(server: Any):
    before = server.memory("VmHWM")
    with grpc.insecure_channel(server.grpc) as channel:  # 100 kB on the wire
        call = channel.unary_unary(INFER).future(bytes(100 * MB), timeout=60, compression=grpc.Compression.Gzip)
        assert call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert server.memory("VmHWM") - before < 60 * MB
    server.answers()


@pytest.mark.parametrize(
    "beginning",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 70_000,
        b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 70_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 12_000,
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A:\r\n" * 20_000 + b"\r\n",
        b"GET /" + b"a" * 70_000,
        b"GET /?" + b"a&" * 35_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"G" * 70_000,
        b"POST /classify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * 70_000,
        b"POST /classify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: " + b"x" * 70_000,
    ],
    ids=["half", "whole", "fields", "whole-fields", "path", "query", "method", "chunk", "trailer"],
)
def test_09a_a_head_of_70_kb_is_refused_though_it_comes_in_one_piece(server: Any, beginning: bytes):
    reply = server.raw(beginning)
    assert reply.status in ((400, 431) if beginning.startswith((b"GG", b"GET /?")) else (431,))
    assert reply.error
    assert reply.headers["connection"] == "close"


def test_09b_the_head_behind_an_answer_is_counted_as_well(server: Any, tools: Any):
    with server.connect() as connection:
        connection.sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert tools.read_reply(connection).status == 200
        connection.sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 70_000)
        assert tools.read_reply(connection).status == 431


def test_09c_a_head_of_ordinary_size_is_not_refused(server: Any):
    assert server.raw(b"GET /v2 HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 30_000 + b"\r\n\r\n").status == 200


def test_09d_metadata_of_grpc_is_limited(server: Any):
    with grpc.insecure_channel(server.grpc) as channel:
        ask = channel.unary_unary("/inference.GRPCInferenceService/ServerMetadata")
        call = ask.future(b"", metadata=[("x-long", "y" * 100_000)], timeout=30)
        assert call.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL)
    server.answers()


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 900_000,
        b'{"inputs":' * 90_000,
        b'{"inputs":[{"name":"images","data":' + b"[" * 200 + b"]" * 200 + b"}]}",
        b'{"parameters":' + b'{"a":' * 101 + b"1" + b"}" * 101 + b"}",
    ],
    ids=["lists", "objects", "data", "parameters"],
)
def test_10a_json_is_not_read_as_deep_as_it_goes(server: Any, body: bytes):
    reply = server.infer(body)
    assert reply.status in (400, 413)
    assert len(reply.error) < 200


@pytest.mark.parametrize(
    "body",
    [
        b'{"id":"' + b"x" * 1_900_000 + b'"}',
        b'{"inputs":[' + b"1," * 900_000 + b"1]}",
        b'{"inputs":[{"name":"images","data":[' + b"0," * 300_000 + b"0]}]}",
        b"1" * 1_900_000,
        b'{"a":' + b"9" * 50_000 + b"}",
        b" " * 1_900_000,
        b'{"inputs":[' + b"{}," * 300_000 + b"{}]}",
        b"{" + b",".join(b'"%d":0' % i for i in range(100_000)) + b"}",
    ],
    ids=["text", "numbers", "data", "number", "digits", "blanks", "objects", "names"],
)
def test_10b_nor_as_long_as_it_goes_on(server: Any, body: bytes):
    reply = server.infer(body)
    assert reply.status in (400, 413)
    assert len(reply.error) < 200


def png(width: int, height: int, rows: bytes) -> bytes:
    """Return a PNG of 8-bit grey whose head says so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    beginning = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", beginning) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_15a_images_of_too_many_pixels_are_refused_by_their_head(server: Any, tools: Any):
    workers = server.workers()
    jpeg = bytearray(tools.image("JPEG", (600, 600)))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"
    for image in (
        tools.image("JPEG", (600, 600)),
        tools.image("PNG", (501, 500)),
        tools.image("WEBP", (600, 600)),
        bytes(jpeg),
        png(60_000, 60_000, zlib.compress(bytes(1000))),
        png(2**31 - 1, 2**31 - 1, b""),
        png(500_000, 1, b""),
        png(0, 10, b""),
    ):
        reply = server.post("/classify", image)
        assert reply.status == 400
        assert reply.error.startswith("image")
    assert server.post("/classify", tools.image("PNG", (500, 500))).status == 200
    assert server.workers() == workers


def test_15b_data_of_more_pixels_than_the_head_says_are_not_unpacked(server: Any, bomb: bytes):
    workers = server.workers()
    for image in (png(100, 100, b"\x78\x9c" + bomb[10:]), png(100, 100, zlib.compress(bytes(10)))):
        assert server.post("/classify", image).status in (200, 400)
    assert server.workers() == workers
    for worker in workers:
        lines = Path(f"/proc/{worker}/status").read_text().splitlines()
        assert int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) < 200_000


@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": [{"name": "images"}] * 1000},
        {"inputs": []},
        {"outputs": [{"name": "logits"}] * 1000},
        {"outputs": [{"name": "logits"}] * 2},
        {"outputs": [{"name": "l" * 100_000}]},
    ],
    ids=["inputs", "none", "outputs", "twice", "output-name"],
)
def test_16a_so_many_tensors_as_the_model_has(server: Any, tools: Any, changes: dict[str, Any]):
    reply = server.infer(json.dumps({**tools.infer_document(), **changes}).encode())
    assert reply.status in (400, 413)
    assert len(reply.error) < 300


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [1] * 3000},
        {"shape": []},
        {"shape": [1, 3, 24, 24, 1]},
        {"shape": [9, 3, 24, 24]},
        {"shape": [0, 3, 24, 24]},
        {"name": "i" * 60_000},
        {"name": ""},
        {"datatype": "F" * 60_000},
        {"shape": "1," * 3000},
    ],
    ids=["dims", "no-dims", "one-more", "batch", "empty", "name", "no-name", "type", "text"],
)
def test_16b_of_its_shape_and_with_its_names(server: Any, tools: Any, changes: dict[str, Any]):
    reply = server.infer(tools.infer_body(**changes))
    assert reply.status in (400, 413)
    assert len(reply.error) < 300
