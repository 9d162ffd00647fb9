"""Tensors of a request: JSON numbers or little-endian bytes to an array.

The shape is checked by then, and bytes are counted before they become an array. Numbers of JSON are Python's objects
before they come here: how many those may be is for the protocol to limit.
"""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

_WIRE: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "uint8": np.dtype("u1")}


class TensorError(ValueError):
    """Data that does not make the tensor that it is said to be."""


def from_bytes(data: memoryview, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """Return the tensor of ``shape`` and ``dtype`` whose row-major little-endian bytes are ``data``.

    Copies nothing: it is not aligned where the bytes are not. Values that are not finite are let through, as Triton
    does, whose load generator sends random bits: they spoil the answer to their own image and no other.

    Raises:
        TensorError: another number of bytes.
    """
    wire = _WIRE[dtype]
    wanted = math.prod(shape) * wire.itemsize
    if len(data) != wanted:
        raise TensorError(f"shape {list(shape)} takes {wanted} bytes, got {len(data)}")
    return np.frombuffer(data, dtype=wire).reshape(shape)


def from_json(data: Any, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """Return the tensor of ``shape`` and ``dtype`` whose numbers are ``data``, flat or nested as the shape is.

    Raises:
        TensorError: not a list, another number or nesting, not numbers, out of the type's range, or not finite.
    """
    flat = _flatten(data, shape)
    kinds = set(map(type, flat))
    if dtype == "uint8":
        if kinds != {int} or min(flat) < 0 or max(flat) > 255:
            raise TensorError("the data must be whole numbers from 0 to 255")
    elif not kinds <= {int, float}:
        raise TensorError("the data must be numbers")
    try:
        values = np.array(flat, dtype=np.float64 if dtype == "float32" else np.uint8)
    except OverflowError:
        raise TensorError("the data holds numbers beyond the range of its type") from None
    if dtype == "float32" and not np.abs(values).max() <= np.finfo(np.float32).max:
        raise TensorError("the data holds numbers beyond the range of FP32")
    return values.astype(_WIRE[dtype], copy=False).reshape(shape)


def _flatten(data: Any, shape: tuple[int, ...]) -> list[Any]:
    if not isinstance(data, list):
        raise TensorError("the data must be a list of numbers")
    flat: list[Any] = data
    if flat and isinstance(flat[0], list):
        parts = [flat]
        for side in shape:
            if not all(isinstance(part, list) and len(part) == side for part in parts):
                raise TensorError(f"the data's nesting is not that of shape {list(shape)}")
            parts = flat = list(chain.from_iterable(parts))
    if len(flat) != math.prod(shape):
        raise TensorError(f"shape {list(shape)} takes {math.prod(shape)} numbers, got {len(flat)}")
    return flat
