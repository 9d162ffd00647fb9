"""The body of a request, read and unpacked within limits."""

from __future__ import annotations

import zlib

import anyio
from starlette.requests import Request

from regnet_deploy.serving.admission import Place
from regnet_deploy.serving.protocol import RequestError

#: Content-Encoding -> zlib's wbits. HTTP's deflate is the zlib format.
_WBITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}


class Unread(RequestError):
    """A request that is refused while its body is still arriving."""


async def read_body(request: Request, place: Place, max_bytes: int, timeout_s: float) -> bytes:
    """Return the body as it was sent, counted while it arrives.

    Raises:
        Unread: more than ``max_bytes`` (413), more than there is room for beside the bodies of other requests (503), or
            not complete within ``timeout_s`` (408).
    """
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise Unread(_too_large(max_bytes), 413)
    chunks = []
    try:
        with anyio.fail_after(timeout_s):
            async for chunk in request.stream():
                chunks.append(chunk)
                if place.bytes + len(chunk) > max_bytes:
                    raise Unread(_too_large(max_bytes), 413)
                if not place.take(len(chunk)):
                    raise Unread("the bodies of the requests in flight take all the room there is, try again", 503)
    except Unread:
        chunks.clear()  # which the error's traceback would keep for as long as the client is answered
        raise
    except TimeoutError:
        chunks.clear()
        raise Unread(f"the request's body did not arrive within {timeout_s:g} s", 408) from None
    return b"".join(chunks)


def unpack(body: bytes, encoding: str | None, max_bytes: int) -> bytes:
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
