"""Parses ``multipart/form-data`` bodies, with which browsers and ``curl -F`` send several images."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from regnet_deploy.errors import require
from regnet_deploy.serving.errors import RequestError
from regnet_deploy.serving.request_body import Body

#: The parser logs a warning for each mistake of a client; the client is told of it, the log is not.
_SILENT = logging.Logger("forms", logging.CRITICAL)
#: Bytes of all headers of a part.
_MAX_HEADER_BYTES = 4096


class FormPart(NamedTuple):
    """A file of a form: its name and its bytes."""

    name: str
    data: bytes


def read_form(body: Body, content_type: str, max_parts: int) -> list[FormPart]:
    """Return the parts of a ``multipart/form-data`` body, in their order; each is treated as a file.

    Args:
        body: of the request.
        content_type: header of the request, with the boundary.
        max_parts: limit of the number of parts.

    Raises:
        RequestError: not a form, or one without parts (400), another kind of multipart (415), or too many parts (413).
    """
    multipart: Any = require("python_multipart.multipart", "serve")
    body = bytes(body)
    kind, options = multipart.parse_options_header(content_type)
    if kind != b"multipart/form-data":
        raise RequestError("send the bytes of an image, or several as multipart/form-data", 415)
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= 70:  # RFC 2046
        raise RequestError("the form's Content-Type has no boundary, or one longer than 70 characters")
    # Text that only looks like a boundary makes the parser slow. A form has one boundary more than parts.
    if body.count(b"\r\n--" + boundary) > max_parts + 1:
        raise _too_many(max_parts)
    reader = _Reader(max_parts, multipart.parse_options_header)
    parser = multipart.MultipartParser(boundary, reader.callbacks())
    parser.logger = _SILENT
    try:
        parser.write(body)
        parser.finalize()
    except multipart.MultipartParseError:
        raise RequestError("the body is not a form of parts with the boundary of its Content-Type") from None
    if not reader.finished:
        raise RequestError("the form is cut off or has no parts")
    return reader.parts


class _Reader:
    """Collects the parts from the parser's callbacks."""

    def __init__(self, max_parts: int, parse_options: Any) -> None:
        self.parts: list[FormPart] = []
        self.finished = False
        self._max_parts, self._parse_options = max_parts, parse_options
        self._data: list[bytes] = []
        self._header, self._value, self._name = b"", b"", ""
        self._header_bytes = 0

    def callbacks(self) -> dict[str, Any]:
        return {
            "on_part_begin": self._begin,
            "on_part_data": lambda data, start, end: self._data.append(data[start:end]),
            "on_part_end": self._end,
            "on_header_field": self._field,
            "on_header_value": self._content,
            "on_header_end": self._header_end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        if len(self.parts) >= self._max_parts:
            raise _too_many(self._max_parts)
        self._data, self._name, self._header_bytes = [], "", 0

    def _end(self) -> None:
        self.parts.append(FormPart(self._name or f"image {len(self.parts)}", b"".join(self._data)))

    def _field(self, data: bytes, start: int, end: int) -> None:
        self._header += self._counted(data[start:end])

    def _content(self, data: bytes, start: int, end: int) -> None:
        self._value += self._counted(data[start:end])

    def _counted(self, data: bytes) -> bytes:
        self._header_bytes += len(data)
        if self._header_bytes > _MAX_HEADER_BYTES:
            raise RequestError(f"a part of the form has more than {_MAX_HEADER_BYTES} bytes of headers")
        return data

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            options = self._parse_options(self._value)[1]
            name = options.get(b"filename") or options.get(b"name") or b""
            self._name = name.decode("utf-8", "replace")[:255]
        self._header = self._value = b""

    def _finish(self) -> None:
        self.finished = bool(self.parts)


def _too_many(max_parts: int) -> RequestError:
    return RequestError(f"a form may have {max_parts} images", 413)
