"""Reads the wire format of Protocol Buffers: counts a message before it is parsed, and takes tensors out uncopied.

Two bytes on the wire can become a hundred in memory, so a message of a client is counted first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

#: Wire types: a varint of up to ten bytes, eight bytes, a length and that many bytes, four bytes.
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


class WireError(ValueError):
    """Bytes that are not a message."""


@dataclass(frozen=True)
class Shape:
    """The fields of a message that :func:`overhead` treats in a special way.

    Attributes:
        messages: field number -> shape of the message in it.
        data: numbers of fields with bytes or packed numbers, which take no more memory than on the wire.
    """

    messages: Mapping[int, Shape] = field(default_factory=dict)
    data: frozenset[int] = frozenset()


def overhead(data: bytes | memoryview, shape: Shape, most: int) -> int:
    """Return how many bytes of a message are not data.

    Each field counts 8 bytes more, so that many small data fields are not free.

    Args:
        data: the message.
        shape: of the message.
        most: limit; counting stops above it, and the returned number is larger than ``most``.

    Raises:
        WireError: the bytes are not a message.
    """
    view = memoryview(data)
    count = 0
    for number, start, value, end in _fields(view):
        count += 8 + value - start
        if value < end:
            if number in shape.messages:
                count += overhead(view[value:end], shape.messages[number], most - count)
            elif number not in shape.data:
                count += end - value
        if count > most:
            break
    return count


def split(data: bytes, number: int) -> tuple[bytes, list[memoryview]]:
    """Return a message without its fields ``number``, and the values of these, which are not copied.

    Raises:
        WireError: the bytes are not a message.
    """
    view = memoryview(data)
    rest, values, kept = [], [], 0
    for found, start, value, end in _fields(view):
        if found == number and view[start] & 7 == _LENGTH:
            rest.append(view[kept:start])
            values.append(view[value:end])
            kept = end
    return b"".join([*rest, view[kept:]]), values


def _fields(view: memoryview) -> Iterator[tuple[int, int, int, int]]:
    """Yield number, start, start of the content and end of each field; varints and fixed numbers have no content."""
    end, at = len(view), 0
    while at < end:
        start = at
        key, at = read_varint(view, at)
        kind = key & 7
        value = 0
        if kind == _LENGTH:
            size, value = read_varint(view, at)
            at = value + size
        elif kind == _VARINT:
            value = at = read_varint(view, at)[1]
        elif kind in (_FIXED64, _FIXED32):
            value = at = at + (8 if kind == _FIXED64 else 4)
        else:
            raise WireError("a field has an unknown wire type")
        if at > end:
            raise WireError("a field is longer than the message")
        yield key >> 3, start, value, at


def read_varint(view: memoryview, at: int, max_bytes: int = 10, *, canonical: bool = False) -> tuple[int, int]:
    """Return the number at ``at`` and where it ends.

    Args:
        view: the message.
        at: start of the number.
        max_bytes: limit of its bytes.
        canonical: refuse a number that is padded with zero bits.

    Raises:
        WireError: the message ends in the number, or the number is too long or padded.
    """
    value = 0
    for shift in range(0, 7 * max_bytes, 7):
        if at >= len(view):
            raise WireError("the message ends in a number")
        byte = view[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            if canonical and shift and not byte:
                raise WireError("a number is padded")
            return value, at
    raise WireError(f"a number is longer than {max_bytes} bytes")
