"""A request sent as it is, and what two servers say to it made comparable."""

from __future__ import annotations

import gzip
import http.client
import json
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

LENGTH = "inference-header-content-length"


@dataclass(frozen=True, eq=False)
class Answer:
    """What came back; ``body`` is unpacked, ``status`` 0 where the connection was closed instead."""

    status: int
    headers: dict[str, str]
    body: bytes

    def __repr__(self) -> str:
        return f"{self.status} {self.headers.get('content-type')} {self.body[:300]!r}"

    def error(self) -> str | None:
        """The text that clients of the protocol show; None where there is none for them."""
        try:
            found = json.loads(self.body)["error"]
        except (ValueError, KeyError, TypeError):
            return None
        return found if isinstance(found, str) else None


class Client:
    """One connection to a server, opened again where it was closed."""

    def __init__(self, address: str) -> None:
        host, port = address.rsplit(":", 1)
        self._connection = http.client.HTTPConnection(host, int(port), timeout=30)

    def ask(self, case: Any) -> Answer:
        """Send a request, a second time where the connection was closed before an answer."""
        for again in (False, True):
            try:
                return self._ask(case)
            except (http.client.HTTPException, ConnectionError, BrokenPipeError):
                self._connection.close()
                if again:
                    return Answer(0, {}, b"")
        raise AssertionError

    def close(self) -> None:
        self._connection.close()

    def _ask(self, case: Any) -> Answer:
        connection = self._connection
        connection.putrequest(case.method, case.path, skip_accept_encoding=True)
        for name, value in case.headers:
            connection.putheader(name, value)
        if case.chunked:
            connection.putheader("Transfer-Encoding", "chunked")
        elif case.body or case.method in ("POST", "PUT", "PATCH"):
            connection.putheader("Content-Length", str(len(case.body)))
        connection.endheaders()
        if case.chunked:
            step = max(1, len(case.body) // 3)
            parts = [case.body[i : i + step] for i in range(0, len(case.body), step)]
            connection.send(b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n")
        elif case.body:
            connection.send(case.body)
        response = connection.getresponse()
        body = response.read()
        headers = {name.lower(): value for name, value in response.getheaders()}
        if response.will_close:
            connection.close()
        packed = headers.get("content-encoding")
        if packed == "gzip":
            body = gzip.decompress(body)
        elif packed == "deflate":
            body = zlib.decompress(body)
        return Answer(response.status, headers, body)


def tensors(answer: Answer) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return an infer response without its outputs, and these by name: datatype, shape, values, whether binary."""
    length = answer.headers.get(LENGTH)
    head = answer.body if length is None else answer.body[: int(length)]
    rest = b"" if length is None else answer.body[int(length) :]
    document = json.loads(head)
    found: dict[str, Any] = {}
    for output in document.pop("outputs"):
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            values = output["data"]
        else:
            part, rest = rest[:size], rest[size:]
            assert len(part) == size
            values = _texts(part) if output["datatype"] == "BYTES" else np.frombuffer(part, "<f4").tolist()
        found[output["name"]] = (output["datatype"], output["shape"], values, size is not None)
    assert not rest
    return document, found


def _texts(data: bytes) -> list[str]:
    texts = []
    while data:
        (size,) = struct.unpack_from("<I", data)
        texts.append(data[4 : 4 + size].decode())
        data = data[4 + size :]
    return texts


def same_tensors(ours: Answer, theirs: Answer) -> str | None:
    """Return in what two infer responses differ, None where in nothing that a client reads."""
    our_rest, our_outputs = tensors(ours)
    their_rest, their_outputs = tensors(theirs)
    if our_rest.get("id", "") != their_rest.get("id", ""):
        return f"id: {our_rest.get('id')!r} and {their_rest.get('id')!r}"
    for key in ("model_name", "model_version"):
        if our_rest.get(key) != their_rest.get(key):
            return f"{key}: {our_rest.get(key)!r} and {their_rest.get(key)!r}"
    if list(our_outputs) != list(their_outputs):
        return f"outputs: {list(our_outputs)} and {list(their_outputs)}"
    for name, (kind, shape, values, binary) in our_outputs.items():
        other = their_outputs[name]
        if (kind, shape, binary) != (other[0], other[1], other[3]):
            return f"{name}: {kind} {shape} binary={binary} and {other[0]} {other[1]} binary={other[3]}"
        if not (_same_texts(values, other[2]) if kind == "BYTES" else _close(values, other[2])):
            return f"{name}: {values[:6]} and {other[2][:6]}"
    return None


def _close(ours: Any, theirs: Any) -> bool:
    one, other = np.asarray(ours, np.float64).ravel(), np.asarray(theirs, np.float64).ravel()
    return one.shape == other.shape and bool(np.allclose(one, other, rtol=1e-3, atol=1e-3, equal_nan=True))


def _same_texts(ours: list[str], theirs: list[str]) -> bool:
    """Compare ``value:index:label``: the values as numbers, the rest as it is."""
    if len(ours) != len(theirs):
        return False
    pairs = [(one.split(":", 1), other.split(":", 1)) for one, other in zip(ours, theirs, strict=True)]
    return all(one[1] == other[1] and _close(float(one[0]), float(other[0])) for one, other in pairs)


def difference(case: Any, ours: Answer, theirs: Answer) -> str | None:
    """Return in what two answers differ that a client reads; None where in nothing.

    Texts of errors are for people: an error is as good as another if clients of the protocol can show it.
    """
    if ours.status != theirs.status:
        return f"status {ours.status} and {theirs.status}"
    if case.method == "HEAD":
        return None
    if ours.status != 200:
        return "an error without its text" if ours.error() is None else None
    path = case.path.split("?")[0]
    if path.endswith("/infer"):
        return same_tensors(ours, theirs)
    if path.startswith("/v2/models/"):
        return _same_description(path, ours, theirs)
    return None if ours.body == theirs.body else "body"


def _same_description(path: str, ours: Answer, theirs: Answer) -> str | None:
    """Compare what is said of a model, but for which program runs it, how it is set up and what it has done."""
    if path.endswith("/ready"):
        return None if ours.body == theirs.body else "body"
    one, other = json.loads(ours.body), json.loads(theirs.body)
    if path.endswith("/stats"):
        one, other = _kinds(one), _kinds(other)
        return None if one == other else f"statistics {one} and {other}"
    keys = ["name", "max_batch_size", "input", "output"] if path.endswith("/config") else None
    for key in keys or ["name", "versions", "inputs", "outputs"]:
        if not _within(one[key], other[key]):
            return f"{key}: {one[key]} and {other[key]}"
    return None


def _kinds(value: Any) -> Any:
    """Replace numbers by their type, batches by nothing: they are counted apart by each server."""
    if isinstance(value, dict):
        return {key: _kinds(one) for key, one in sorted(value.items()) if key not in _COUNTED_APART}
    if isinstance(value, list):
        return [_kinds(one) for one in value]
    return type(value).__name__ if isinstance(value, (int, float)) else value


#: Statistics by size of batch or of what only some models have.
_COUNTED_APART = ("batch_stats", "response_stats", "memory_usage", "last_inference")


def _within(ours: Any, theirs: Any) -> bool:
    """Tell whether all that we say is said by Triton too; it lists every field of a message, with its default."""
    if isinstance(ours, dict):
        return isinstance(theirs, dict) and all(key in theirs and _within(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list):
        return isinstance(theirs, list) and len(ours) == len(theirs) and all(map(_within, ours, theirs))
    return bool(ours == theirs)
