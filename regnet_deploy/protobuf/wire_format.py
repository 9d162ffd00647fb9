"""Looks at the bytes of a message before the library makes objects of them, and takes tensors out without a copy.

Two bytes on the wire can become a hundred in memory, so what a stranger sends is counted first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

#: Wire types: a number of up to ten bytes, eight bytes, a length and that many bytes, four bytes.
_VARINT, _EIGHT, _LENGTH, _FOUR = 0, 1, 2, 5


class WireError(ValueError):
    """Bytes that are no message."""


@dataclass(frozen=True)
class Shape:
    """Which fields of a message are looked into, and which hold data that costs no more memory than its bytes.

    Attributes:
        messages: field number -> shape of the message in it.
        data: field numbers of bytes, or of packed numbers.
    """

    messages: Mapping[int, Shape] = field(default_factory=dict)
    data: frozenset[int] = frozenset()


def overhead(data: bytes | memoryview, shape: Shape, most: int) -> int:
    """Return how many bytes of a message are not data.

    Each field that is looked at counts with 8 more, so that many small ones of data are not free.

    Args:
        data: the message.
        shape: of it.
        most: looking stops where there is more; what is returned then is above ``most``.

    Raises:
        WireError: the bytes are no message.
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
        WireError: the bytes are no message.
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
    """Yield the fields of a message: number, where it begins, where its bytes begin, where it ends.

    A field without a length has no bytes of its own: they begin where it ends.
    """
    end, at = len(view), 0
    while at < end:
        start = at
        key, at = _varint(view, at)
        kind = key & 7
        value = 0
        if kind == _LENGTH:
            size, value = _varint(view, at)
            at = value + size
        elif kind == _VARINT:
            value = at = _varint(view, at)[1]
        elif kind in (_EIGHT, _FOUR):
            value = at = at + (8 if kind == _EIGHT else 4)
        else:
            raise WireError("a field is of no known kind")
        if at > end:
            raise WireError("a field is longer than the message")
        yield key >> 3, start, value, at


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(view):
            raise WireError("the message ends in a number")
        byte = view[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise WireError("a number is longer than ten bytes")
