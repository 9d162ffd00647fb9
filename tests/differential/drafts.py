"""A request while it is being made, and as it is sent."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

IMAGE = (3, 24, 24)
NUMBERS = 3 * 24 * 24
CLASSES = 6
INFER = "/v2/models/regnet/infer"
LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class Case:
    """A request as it is sent.

    Attributes:
        tags: what of it is not as in the plainest request.
    """

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    tags: frozenset[str] = frozenset()
    chunked: bool = False

    def __repr__(self) -> str:
        shown = self.body if len(self.body) < 700 else self.body[:350] + b" ... " + self.body[-100:]
        return f"{self.method} {self.path} {dict(self.headers)} {sorted(self.tags)} {len(self.body)} bytes: {shown!r}"


@dataclass
class Draft:
    """A request while it is being made: its JSON as an object for as long as nobody has spoilt the text."""

    document: dict[str, Any]
    raw: bytes = b""
    text: bytes | None = None
    method: str = "POST"
    path: str = INFER
    headers: dict[str, str] = field(default_factory=dict)
    length: str | None = None
    pack: Callable[[bytes], bytes] = bytes
    chunked: bool = False
    tags: set[str] = field(default_factory=set)

    @property
    def tensor(self) -> dict[str, Any]:
        """The first input, or an object that is not sent where there is none."""
        inputs = self.document.get("inputs")
        return inputs[0] if isinstance(inputs, list) and inputs and isinstance(inputs[0], dict) else {}

    @property
    def binary(self) -> bool:
        """The tensor is bytes behind the JSON."""
        return bool(self.raw)

    def json(self) -> bytes:
        """The JSON as it stands."""
        return self.text if self.text is not None else json.dumps(self.document, allow_nan=True).encode()

    def done(self) -> Case:
        """Make the request of it."""
        text = self.json()
        headers = dict(self.headers)
        length = str(len(text)) if self.length is None and self.raw else self.length
        if length not in (None, "none"):
            headers[LENGTH] = length
        body = self.pack(text + self.raw)
        return Case(self.method, self.path, tuple(headers.items()), body, frozenset(self.tags), self.chunked)


def images(count: int, seed: int = 0) -> np.ndarray:
    """Images ``(count, 3, 24, 24)`` whose numbers are short in JSON."""
    return (np.random.default_rng(seed).integers(-300, 300, (count, *IMAGE)) / 100).astype(np.float32)


def plain(count: int = 1, seed: int = 0, binary: bool = True, **top: Any) -> Draft:
    """A request that both servers answer."""
    values = images(count, seed)
    tensor: dict[str, Any] = {"name": "images", "shape": list(values.shape), "datatype": "FP32"}
    if binary:
        tensor["parameters"] = {"binary_data_size": values.nbytes}
        return Draft({"inputs": [tensor], **top}, values.tobytes())
    tensor["data"] = [float(f"{one:.2f}") for one in values.ravel()]
    return Draft({"inputs": [tensor], **top})


def _zlib(data: bytes) -> bytes:
    return zlib.compress(data)


def _raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


PACKED: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "deflate": ("deflate", _zlib),
    "raw-deflate": ("deflate", _raw_deflate),
    "upper": ("GZIP", gzip.compress),
    "x-gzip": ("x-gzip", gzip.compress),
    "identity": ("identity", bytes),
    "unknown": ("br", bytes),
    "none": ("", bytes),
    "two": ("gzip, gzip", lambda data: gzip.compress(gzip.compress(data))),
    "not-packed": ("gzip", bytes),
    "wrong": ("deflate", gzip.compress),
    "cut": ("gzip", lambda data: gzip.compress(data)[:-9]),
    "trailing": ("gzip", lambda data: gzip.compress(data) + b"more"),
    "members": ("gzip", lambda data: gzip.compress(data[:99]) + gzip.compress(data[99:])),
    "checksum": ("gzip", lambda data: gzip.compress(data)[:-8] + b"12345678"),
}
