"""The body of a request, read and unpacked within limits."""

from __future__ import annotations

import zlib
from functools import partial

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from regnet_deploy.serving.admission import AdmissionSlot
from regnet_deploy.serving.body_receiver import WHOLE, Whole
from regnet_deploy.serving.errors import RequestError
from regnet_deploy.serving.limits import Limits
from regnet_deploy.serving.timeouts import Timer

#: Content-Encoding -> zlib's wbits. HTTP's deflate is the zlib format.
_WBITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}

#: Of a Content-Length that are looked at: more than any limit has.
_DIGITS = 20

#: Bytes of a body, or of a part of one, wherever they lie.
Body = bytes | bytearray | memoryview


class UnreadBody(RequestError):
    """A request that is refused while its body is still arriving."""


async def read_body(
    scope: Scope, declared: str | None, receive: Receive, place: AdmissionSlot, limits: Limits, lead: int = 0
) -> Body:
    """Return the body as it was sent, counted while it arrives.

    Args:
        scope: of ASGI, with :data:`~regnet_deploy.serving.body_receiver.WHOLE` where a connection offers that.
        declared: header ``Content-Length``, None where there is none.
        receive: of ASGI.
        place: of the request.
        limits: of the server.
        lead: bytes behind its start that are to be aligned, if that costs nothing.

    Raises:
        Unread: more than ``limits.max_body_bytes`` (413), more than there is room for beside the bodies of other
            requests (503), or not complete within ``limits.read_timeout_s`` (408).
        ClientDisconnect: the client went away.
    """
    # A number has few digits but may have many zeros, more than int() takes.
    is_number = declared is not None and declared.isascii() and declared.isdigit()
    if declared is not None and is_number and int(declared.lstrip("0")[:_DIGITS] or 0) > limits.max_body_bytes:
        raise UnreadBody(_too_large(limits.max_body_bytes), 413)
    whole: Whole | None = scope.get("extensions", {}).get(WHOLE)
    body = None if whole is None else whole(lead, partial(_count, place, limits))
    if isinstance(body, bytearray):
        return body
    try:
        with Timer(limits.read_timeout_s):
            return await (_joined(receive, place, limits) if body is None else body)
    except TimeoutError:
        raise UnreadBody(f"the request's body did not arrive within {limits.read_timeout_s:g} s", 408) from None
    finally:
        body = None  # of the error that it raises, and leads to


async def _joined(receive: Receive, place: AdmissionSlot, limits: Limits) -> bytes:
    chunks: list[bytes] = []
    try:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            if chunk := message.get("body", b""):
                chunks.append(chunk)
                _count(place, limits, len(chunk))
            if not message.get("more_body", False):
                return chunks[0] if len(chunks) == 1 else b"".join(chunks)
    finally:
        chunks.clear()  # which an error's traceback would keep for as long as the client is answered


def _count(place: AdmissionSlot, limits: Limits, count: int) -> None:
    if place.bytes + count > limits.max_body_bytes:
        raise UnreadBody(_too_large(limits.max_body_bytes), 413)
    if not place.take(count):
        raise UnreadBody("the bodies of the requests in flight take all the room there is, try again", 503)


def unpack(body: Body, encoding: str | None, max_bytes: int) -> Body:
    """Undo the Content-Encoding of a body, never making more than ``max_bytes``.

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
