"""Reads which shared libraries a library needs, and finds those that cannot be loaded."""

from __future__ import annotations

import ctypes
import mmap
import struct
from collections.abc import Iterable
from pathlib import Path

_LOAD, _DYNAMIC = 1, 2  # types of program headers
_END, _NEEDED, _STRINGS = 0, 1, 5  # tags of dynamic entries


def missing_libraries(names: Iterable[str]) -> list[str]:
    """Load libraries, and return the names of those that cannot be loaded."""
    return [name for name in names if load_shared_library(name) is None]


def load_shared_library(name: str | Path) -> ctypes.CDLL | None:
    """Load a library with global symbols; None if it cannot be loaded."""
    try:
        return ctypes.CDLL(str(name), mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return None


def needed_libraries(path: Path) -> list[str]:
    """Return the names of the libraries that the library at ``path`` needs (``DT_NEEDED``).

    Empty for a file that is not a 64-bit little-endian ELF file.
    """
    with path.open("rb") as file:  # mapped, because a provider has hundreds of megabytes and only a few pages are read
        if file.read(6) != b"\x7fELF\x02\x01":
            return []
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _needed(data)


def _needed(data: mmap.mmap) -> list[str]:
    (headers,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    loaded: list[tuple[int, int, int]] = []
    dynamic: tuple[int, int] | None = None
    for at in range(headers, headers + size * count, size):
        kind, _, offset, address, _, length = struct.unpack_from("<IIQQQQ", data, at)
        if kind == _LOAD:
            loaded.append((address, offset, length))
        elif kind == _DYNAMIC:
            dynamic = (offset, length)
    if dynamic is None:
        return []
    start, length = dynamic
    names: list[int] = []
    strings = 0
    for tag, value in struct.iter_unpack("<QQ", data[start : start + length - length % 16]):
        if tag == _END:
            break
        if tag == _NEEDED:
            names.append(value)
        elif tag == _STRINGS:  # an address in memory, not an offset in the file
            strings = next(
                value - address + offset for address, offset, extent in loaded if 0 <= value - address < extent
            )
    return [data[strings + name : strings + name + 256].split(b"\0")[0].decode() for name in names]
