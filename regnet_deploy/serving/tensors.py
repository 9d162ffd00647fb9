"""Converts JSON numbers or little-endian bytes of a request to an array.

The caller has checked the shape and limits the amount of JSON numbers.
"""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

_WIRE: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "uint8": np.dtype("u1")}


class TensorError(ValueError):
    """Data that does not fit the declared tensor."""


def from_bytes(data: memoryview, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """Return the tensor of ``shape`` and ``dtype`` whose row-major little-endian bytes are ``data``.

    Nothing is copied, so the array is aligned only if the bytes are. Values that are not finite are accepted, as Triton
    does (its load generator sends random bits); they affect the answer to their own image only.

    Raises:
        TensorError: the number of bytes is wrong.
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
        raise TensorError("the data has numbers outside the range of its type") from None
    if dtype == "float32" and not np.abs(values).max() <= np.finfo(np.float32).max:
        raise TensorError("the data has numbers outside the range of FP32")
    return values.astype(_WIRE[dtype], copy=False).reshape(shape)


def _flatten(data: Any, shape: tuple[int, ...]) -> list[Any]:
    if not isinstance(data, list):
        raise TensorError("the data must be a list of numbers")
    flat: list[Any] = data
    if flat and isinstance(flat[0], list):
        parts = [flat]
        for side in shape:
            if not all(isinstance(part, list) and len(part) == side for part in parts):
                raise TensorError(f"the data's nesting does not fit shape {list(shape)}")
            parts = flat = list(chain.from_iterable(parts))
    if len(flat) != math.prod(shape):
        raise TensorError(f"shape {list(shape)} takes {math.prod(shape)} numbers, got {len(flat)}")
    return flat
