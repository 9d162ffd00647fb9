"""Several images in one body: the parts of a form, as browsers and ``curl -F`` send it."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from regnet_deploy.errors import require
from regnet_deploy.serving.errors import RequestError
from regnet_deploy.serving.request_body import Body

#: The parser warns of each mistake of a client, to whom it is told: in no log of the server is there room for that.
_SILENT = logging.Logger("forms", logging.CRITICAL)
#: Of a part's headers, all together.
_MAX_HEADER_BYTES = 4096


class FormPart(NamedTuple):
    """A file of a form: the name that the client gave it, and its bytes."""

    name: str
    data: bytes


def read_form(body: Body, content_type: str, most: int) -> list[FormPart]:
    """Return the parts of a ``multipart/form-data`` body, in their order; each is taken for a file.

    Args:
        body: of the request.
        content_type: header of it, with the boundary.
        most: parts that are read.

    Raises:
        RequestError: not such a body, or one without parts (400), another kind of multipart (415), or more parts than
            ``most`` (413).
    """
    multipart: Any = require("python_multipart.multipart", "serve")
    body = bytes(body)
    kind, options = multipart.parse_options_header(content_type)
    if kind != b"multipart/form-data":
        raise RequestError("send the bytes of an image, or several as multipart/form-data", 415)
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= 70:  # RFC 2046
        raise RequestError("the form's Content-Type has no boundary, or one longer than 70 characters")
    # What only looks like a boundary takes the parser long; of boundaries there is one more than parts.
    if body.count(b"\r\n--" + boundary) > most + 1:
        raise _too_many(most)
    reader = _Reader(most, multipart.parse_options_header)
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
    """Collects parts as the parser finds them."""

    def __init__(self, most: int, parse_options: Any) -> None:
        self.parts: list[FormPart] = []
        self.finished = False
        self._most, self._parse_options = most, parse_options
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
        if len(self.parts) >= self._most:
            raise _too_many(self._most)
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


def _too_many(most: int) -> RequestError:
    return RequestError(f"a form may have {most} images", 413)
