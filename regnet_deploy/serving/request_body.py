"""Reads and decompresses request bodies within limits."""

from __future__ import annotations

import zlib
from functools import partial

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from regnet_deploy.serving.admission import AdmissionSlot
from regnet_deploy.serving.body_receiver import BODY_EXTENSION, TakeBody
from regnet_deploy.serving.errors import RequestError
from regnet_deploy.serving.limits import Limits
from regnet_deploy.serving.timeouts import Timer

#: Content-Encoding -> zlib's wbits. HTTP's deflate is the zlib format.
_WBITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}

#: Digits of a Content-Length that are read: more than any limit has.
_DIGITS = 20

#: What a client is told whose body is too much beside those of other requests.
BODIES_FULL = "the bodies of the requests in flight use all the memory allowed for them, try again"

#: The bytes of a body or of a part of one.
Body = bytes | bytearray | memoryview


class UnreadBody(RequestError):
    """An error of a request whose body has not been read to its end."""


async def read_body(
    scope: Scope, declared: str | None, receive: Receive, slot: AdmissionSlot, limits: Limits, offset: int = 0
) -> Body:
    """Return the body as it was sent; its bytes are counted while they arrive.

    Args:
        scope: of ASGI, with :data:`~regnet_deploy.serving.body_receiver.BODY_EXTENSION` where the connection has it.
        declared: header ``Content-Length``, None where there is none.
        receive: of ASGI.
        slot: of the request.
        limits: of the server.
        offset: bytes behind the body's start that are aligned, where its memory is allocated for it.

    Raises:
        UnreadBody: more than ``limits.max_body_bytes`` (413), more than all bodies together may take (503), or not
            complete within ``limits.read_timeout_s`` (408).
        ClientDisconnect: the client is gone.
    """
    # A number has few digits but may have many zeros, more than int() takes.
    is_number = declared is not None and declared.isascii() and declared.isdigit()
    if declared is not None and is_number and int(declared.lstrip("0")[:_DIGITS] or 0) > limits.max_body_bytes:
        raise UnreadBody(_too_large(limits.max_body_bytes), 413)
    take_body: TakeBody | None = scope.get("extensions", {}).get(BODY_EXTENSION)
    body = None if take_body is None else take_body(offset, partial(_count, slot, limits))
    if isinstance(body, bytes | bytearray):
        return body
    try:
        with Timer(limits.read_timeout_s):
            return await (_receive_chunks(receive, slot, limits) if body is None else body)
    except TimeoutError:
        raise UnreadBody(f"the request's body did not arrive within {limits.read_timeout_s:g} s", 408) from None
    finally:
        body = None  # its error's traceback leads here: a reference cycle


async def _receive_chunks(receive: Receive, slot: AdmissionSlot, limits: Limits) -> bytes:
    chunks: list[bytes] = []
    try:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            if chunk := message.get("body", b""):
                chunks.append(chunk)
                _count(slot, limits, len(chunk))
            if not message.get("more_body", False):
                return chunks[0] if len(chunks) == 1 else b"".join(chunks)
    finally:
        chunks.clear()  # an error's traceback would keep them until the client is answered


def _count(slot: AdmissionSlot, limits: Limits, count: int) -> None:
    if slot.bytes + count > limits.max_body_bytes:
        raise UnreadBody(_too_large(limits.max_body_bytes), 413)
    if not slot.take(count):
        raise UnreadBody(BODIES_FULL, 503)


def unpack(body: Body, encoding: str | None, max_bytes: int) -> Body:
    """Undo the Content-Encoding of a body, up to ``max_bytes``.

    Raises:
        RequestError: an unknown encoding (415), more bytes than allowed (413), or broken data (400).
    """
    name = (encoding or "identity").strip().lower()
    if name == "identity":
        return body
    if name not in _WBITS:
        raise RequestError(f"Content-Encoding {name[:40]!r} is not known; send {', '.join(_WBITS)} or none", 415)
    stream = zlib.decompressobj(_WBITS[name])
    try:
        plain = stream.decompress(body, max_bytes + 1)
    except zlib.error:
        raise RequestError(f"the body is not {name} data") from None
    if len(plain) > max_bytes:
        raise RequestError(_too_large(max_bytes), 413)
    if not stream.eof or stream.unused_data:
        raise RequestError(f"the body's {name} data is cut off or followed by something else")
    return plain


def _too_large(max_bytes: int) -> str:
    return f"the body is larger than {max_bytes:,} bytes"
