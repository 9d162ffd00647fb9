"""Clients of every kind, each a thread with its own connection: right, mistaken, slow, gone, too many at once."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

LENGTH = "Inference-Header-Content-Length"

#: Models of the repository: one with versions that come and go (1 stays), one folder that changes in place.
MOVING, IN_PLACE = "moving", "inplace"

#: Why a right request may be refused: the queue, the places and the connections are bounded, deadlines are kept.
_REFUSALS = {
    503: re.compile(
        r"images are waiting already|requests are in flight already|connections are open already|all the room"
    ),
    504: re.compile(r"deadline passed"),
}


@dataclass(frozen=True)
class Field:
    """What every client needs: where the server is, what to ask, where to write down, when to stop.

    Attributes:
        read_timeout_s: of the server.
    """

    port: int
    grpc_port: int
    world: Any
    books: Any
    stop: threading.Event
    read_timeout_s: float

    def pause(self, seconds: float, draw: random.Random) -> None:
        """Wait as clients that come by chance do."""
        self.stop.wait(draw.expovariate(1 / seconds))


class Connection:
    """A connection that is kept, opened again where the server has closed it between two requests."""

    def __init__(self, field: Field) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", field.port, timeout=40)

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, Any, bytes]:
        fresh = self._http.sock is None
        try:
            self._http.request(method, path, body or None, headers or {})
            response = self._http.getresponse()
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            self._http.close()
            if fresh:
                raise
            return self.ask(method, path, body, headers)
        content = response.read()
        return response.status, response.headers, content

    def close(self) -> None:
        self._http.close()


def _outcome(field: Field, kind: str, status: int, content: bytes, wrong: Callable[[], str]) -> str:
    """Judge the answer to a right request; failures are written down."""
    if status == 200:
        problem = wrong()
        if problem:
            field.books.fail(f"{kind}: wrong answer: {problem}")
            return "WRONG"
        return "200"
    refusal = _REFUSALS.get(status)
    if refusal is not None and refusal.search(content.decode("utf-8", "replace")):
        return str(status)
    if status == 500 and kind in ("image", "form"):
        field.books.lost()
        return "500"
    field.books.fail(f"{kind}: {status} {content[:200]!r}")
    return f"UNEXPECTED {status}"


def _logits_wrong(field: Field, tensor: Any, model: str, version: str, logits: np.ndarray) -> str:
    seeds = [int(version) % len(tensor.logits)] if model == MOVING else range(len(tensor.logits))
    if any(np.allclose(logits, tensor.logits[seed].ravel(), rtol=1e-3, atol=1e-3) for seed in seeds):
        return ""
    return f"{model} {version}: {logits[:6]}"


def tensors(field: Field, seed: int) -> None:
    """Right tensors over HTTP: binary, JSON, packed; the newest version, and the one that stays."""
    draw, connection = random.Random(seed), Connection(field)
    while not field.stop.is_set():
        tensor, form = draw.choice(field.world.tensors), draw.choice(["binary", "binary", "binary", "json", "gzip"])
        model = draw.choice([MOVING, MOVING, IN_PLACE])
        path = f"/v2/models/{model}" + ("/versions/1" if model == MOVING and draw.random() < 0.3 else "") + "/infer"
        headers = {}
        if form == "binary":
            body, length = tensor.binary
            headers[LENGTH] = str(length)
        elif form == "json":
            body = tensor.json
        else:
            body, headers["Content-Encoding"] = tensor.packed, "gzip"
        _ask(field, connection, form, "POST", path, body, headers, lambda h, c, t=tensor: _tensor_wrong(field, t, h, c))
        field.pause(0.03, draw)
    connection.close()


def _tensor_wrong(field: Field, tensor: Any, headers: Any, content: bytes) -> str:
    length = headers.get(LENGTH)
    document = json.loads(content if length is None else content[: int(length)])
    output = document["outputs"][0]
    logits = np.array(output["data"]) if length is None else np.frombuffer(content[int(length) :], "<f4")
    if output["shape"] != [len(tensor.images), 6]:
        return f"shape {output['shape']}"
    return _logits_wrong(field, tensor, document["model_name"], document["model_version"], logits)


def _ask(
    field: Field,
    connection: Connection,
    kind: str,
    method: str,
    path: str,
    body: bytes,
    headers: dict[str, str],
    wrong: Callable[[Any, bytes], str],
) -> None:
    start = time.perf_counter()
    try:
        status, answered, content = connection.ask(method, path, body, headers)
    except (OSError, http.client.HTTPException) as error:
        field.books.fail(f"{kind}: no answer: {type(error).__name__} {error}")
        connection.close()
        return
    took = time.perf_counter() - start
    field.books.note(kind, _outcome(field, kind, status, content, lambda: wrong(answered, content)), took)


def images(field: Field, seed: int) -> None:
    """Right images, and forms of several with one in them that is none."""
    draw, connection = random.Random(seed), Connection(field)
    while not field.stop.is_set():
        model = draw.choice([MOVING, IN_PLACE])
        if draw.random() < 0.8:
            picture = draw.choice(field.world.pictures)
            _ask(
                field, connection, "image", "POST", f"/classify?k=1&model={model}", picture.data, {},
                lambda h, c, p=picture: _image_wrong(p, json.loads(c), json.loads(c)),
            )  # fmt: skip
        else:
            chosen = [draw.choice(field.world.pictures) for _ in range(3)]
            body = (
                b"".join(_part(f"{i}", one.data) for i, one in enumerate(chosen))
                + _part("bad", b"no image")
                + b"--xyz--\r\n"
            )
            _ask(
                field, connection, "form", "POST", f"/classify?k=1&model={model}", body,
                {"Content-Type": "multipart/form-data; boundary=xyz"},
                lambda h, c, p=chosen: _form_wrong(p, json.loads(c)),
            )  # fmt: skip
        field.pause(0.08, draw)
    connection.close()


def _part(name: str, data: bytes) -> bytes:
    head = f'--xyz\r\nContent-Disposition: form-data; name="i"; filename="{name}"\r\n\r\n'
    return head.encode() + data + b"\r\n"


def _image_wrong(picture: Any, answer: Any, result: Any) -> str:
    seeds = [int(answer["version"]) % len(picture.right)] if answer["model"] == MOVING else range(len(picture.right))
    found = result["predictions"][0]
    for label, probability in (picture.right[seed] for seed in seeds):
        if found["label"] == label and abs(found["probability"] - probability) < 1e-2:
            return ""
    return f"{answer['model']} {answer['version']}: {found}"


def _form_wrong(pictures: list[Any], answer: Any) -> str:
    results = answer["results"]
    if len(results) != len(pictures) + 1 or "error" not in results[-1]:
        return f"{results}"[:200]
    return next(filter(None, (_image_wrong(*pair) for pair in zip(pictures, [answer] * 9, results, strict=False))), "")


def grpc_calls(field: Field, seed: int) -> None:
    """Right calls of gRPC, a fifth of them cancelled."""
    import grpc
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    draw, channel = random.Random(seed), grpc.insecure_channel(f"127.0.0.1:{field.grpc_port}")
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    while not field.stop.is_set():
        tensor, model = draw.choice(field.world.tensors), draw.choice([MOVING, IN_PLACE])
        request = service_pb2.ModelInferRequest(model_name=model, raw_input_contents=[tensor.images.tobytes()])
        request.inputs.add(name="images", datatype="FP32", shape=tensor.images.shape)
        start = time.perf_counter()
        call = stub.ModelInfer.future(request, timeout=40)
        if draw.random() < 0.2:
            time.sleep(draw.random() * 0.003)
            call.cancel()
            field.books.note("gRPC cancelled", "cancelled" if call.cancelled() else "too late")
        else:
            try:
                answer = call.result()
                logits = np.frombuffer(answer.raw_output_contents[0], "<f4")
                problem = _logits_wrong(field, tensor, answer.model_name, answer.model_version, logits)
                if problem:
                    field.books.fail(f"gRPC: wrong answer: {problem}")
                field.books.note("gRPC", "WRONG" if problem else "OK", time.perf_counter() - start)
            except grpc.RpcError as error:
                code = error.code().name
                text = error.details() or ""
                if not any(pattern.search(text) for pattern in _REFUSALS.values()):
                    field.books.fail(f"gRPC: {code} {text}")
                field.books.note("gRPC", code, time.perf_counter() - start)
        field.pause(0.06, draw)
    channel.close()


def mistakes(field: Field, seed: int) -> None:
    """Requests that are wrong in a way that has its status."""
    draw, connection = random.Random(seed), Connection(field)
    infer = f"/v2/models/{MOVING}/infer"
    good, length = field.world.tensors[0].binary
    wrong: list[tuple[str, str, bytes, dict[str, str], int]] = [
        ("POST", infer, b"{", {}, 400),
        ("POST", infer, b"[" * 5000, {}, 400),
        ("POST", infer, good[:-4], {LENGTH: str(length)}, 400),
        ("POST", infer, good, {LENGTH: str(10**6)}, 400),
        ("POST", infer, good, {"Content-Encoding": "gzip", LENGTH: str(length)}, 400),
        ("POST", infer, good, {"Content-Encoding": "br"}, 415),
        ("POST", "/v2/models/other/infer", good, {LENGTH: str(length)}, 404),
        ("POST", f"/v2/models/{MOVING}/versions/999999/infer", good, {LENGTH: str(length)}, 404),
        ("POST", "/classify?model=inplace", b"no image", {}, 400),
        ("POST", "/classify?model=inplace", field.world.pictures[0].data[:300], {}, 400),
        ("POST", "/classify?k=0", field.world.pictures[0].data, {}, 400),
        ("POST", "/classify?model=other", field.world.pictures[0].data, {}, 404),
        ("POST", "/classify?model=inplace", b"x" * 1_500_000, {}, 413),
        ("PUT", infer, good, {}, 405),
        ("GET", "/nothing", b"", {}, 404),
        ("POST", f"/v2/repository/models/{MOVING}/unload", b"", {}, 503),
    ]
    while not field.stop.is_set():
        method, path, body, headers, expected = draw.choice(wrong)
        try:
            status, _, content = connection.ask(method, path, body, headers)
        except (OSError, http.client.HTTPException) as error:
            field.books.fail(f"mistake {method} {path}: no answer: {type(error).__name__} {error}")
            connection.close()
            continue
        refusal = _REFUSALS.get(status)
        if status != expected and not (refusal and refusal.search(content.decode("utf-8", "replace"))):
            field.books.fail(f"mistake {method} {path} {headers}: {status} in place of {expected}: {content[:200]!r}")
        elif b'"error"' not in content:
            field.books.fail(f"mistake {method} {path}: no error in {content[:200]!r}")
        field.books.note("mistake", str(status))
        field.pause(0.1, draw)
    connection.close()


def slow(field: Field, seed: int) -> None:
    """A byte a second, of a head or of a body: the server has to end it, and not later than it says."""
    draw = random.Random(seed)
    head = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n"
    while not field.stop.is_set():
        kind = draw.choice(["slow head", "slow body"])
        start, answer = time.monotonic(), b""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", field.port), timeout=1) as stream:
            stream.sendall(head if kind == "slow head" else head + b"\r\n")
            while time.monotonic() - start < field.read_timeout_s + 15 and not field.stop.is_set():
                stream.sendall(b"x" if kind == "slow body" else b"a")
                with contextlib.suppress(TimeoutError):
                    answer = stream.recv(1000)
                    break  # an answer, or the end
        took = time.monotonic() - start
        if field.stop.is_set():
            return
        if took > field.read_timeout_s + 10:
            field.books.fail(f"{kind}: not ended after {took:.0f} s")
        field.books.note(kind, answer.split(b" ")[1].decode() if answer.startswith(b"HTTP") else "closed")


def vanishing(field: Field, seed: int) -> None:
    """Clients that go in the middle of a request, of a decoding, of an answer; some with a reset."""
    draw = random.Random(seed)
    body, length = field.world.tensors[-1].binary
    image = field.world.pictures[-1].data
    while not field.stop.is_set():
        kind = draw.choice(["head", "body", "answer", "image"])
        path, data = (f"/v2/models/{MOVING}/infer", body) if kind != "image" else (f"/classify?model={MOVING}", image)
        sent = f"POST {path} HTTP/1.1\r\nHost: x\r\n{LENGTH}: {length}\r\nContent-Length: {len(data)}\r\n\r\n".encode()
        sent = sent[:40] if kind == "head" else sent + (data[: len(data) // 2] if kind == "body" else data)
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", field.port), timeout=5) as stream:
            if draw.random() < 0.5:
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            stream.sendall(sent)
            time.sleep(draw.random() * 0.02)
        field.books.note(f"gone in {kind}", "gone")
        field.pause(0.2, draw)


def bursts(field: Field, seed: int) -> None:
    """Many requests in the same moment, more images than may wait."""
    draw = random.Random(seed)
    tensor = field.world.tensors[-1]
    body, length = tensor.binary
    while not field.stop.is_set():
        head = f"POST /v2/models/{MOVING}/infer HTTP/1.1\r\nHost: x\r\n{LENGTH}: {length}\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        with contextlib.ExitStack() as stack:
            streams = [
                stack.enter_context(socket.create_connection(("127.0.0.1", field.port), timeout=40)) for _ in range(24)
            ]
            for stream in streams:
                stream.sendall(head.encode() + body)
            for stream in streams:
                try:
                    response = http.client.HTTPResponse(stream)
                    response.begin()
                    content = response.read()
                except (OSError, http.client.HTTPException) as error:
                    field.books.fail(f"burst: no answer: {type(error).__name__} {error}")
                    continue
                wrong = lambda r=response, c=content: _tensor_wrong(field, tensor, r.headers, c)  # noqa: E731
                field.books.note("burst", _outcome(field, "burst", response.status, content, wrong))
        field.pause(4, draw)


def probes(field: Field, seed: int) -> None:
    """Is it live, is it ready: always."""
    connection = Connection(field)
    while not field.stop.is_set():
        for path in ("/v2/health/live", "/v2/health/ready", f"/v2/models/{MOVING}/ready", f"/v2/models/{IN_PLACE}"):
            start = time.perf_counter()
            try:
                status, _, content = connection.ask("GET", path)
            except (OSError, http.client.HTTPException) as error:
                field.books.fail(f"probe {path}: {type(error).__name__} {error}")
                connection.close()
                continue
            field.books.note("probe", str(status), time.perf_counter() - start)
            if status != 200:
                field.books.fail(f"probe {path}: {status} {content[:200]!r}")
        field.stop.wait(1)
    connection.close()


#: Each kind of client, and how many of it there are.
CLIENTS: tuple[tuple[Callable[[Field, int], None], int], ...] = (
    (tensors, 3), (images, 2), (grpc_calls, 2), (mistakes, 1), (slow, 4), (vanishing, 1), (bursts, 1), (probes, 1),
)  # fmt: skip
