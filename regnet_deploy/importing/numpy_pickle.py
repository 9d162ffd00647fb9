"""Reads pickles of NumPy arrays, such as the ``.pdparams`` of PaddleClas, as data: nothing in them is called.

A pickle is a program for a stack machine. Here its instructions are followed with records in place of the objects that
they would make: a call is a record of the function's name and its arguments. Records that describe a NumPy array become
tensors; any other is refused by its name.
"""

from __future__ import annotations

import io
import math
import pickletools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Most instructions of a pickle; weights of the largest network have some tens of thousands.
_MOST_INSTRUCTIONS = 2_000_000
#: Largest size of the arrays, and of what instructions copy, as a multiple of the file and beyond 16 MiB. A small file
#: can copy the same bytes any number of times.
_LARGEST_GROWTH, _ALWAYS_ALLOWED = 4, 16 << 20
#: Largest side of an array, and largest whole number that is a key.
_LARGEST = (1 << 63) - 1
#: Most dimensions of an array; convolutions have four.
_MOST_SIDES = 8
#: Types of the elements of an array, as NumPy writes them in a pickle.
_TYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1")
#: Instructions that push a constant, and those that only concern the reading of the pickle.
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_WITH_VALUE = (
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "INT", "LONG", "FLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
)
#: What NumPy makes arrays, types and scalars with.
_FUNCTIONS = (
    "numpy.dtype",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy.core.numeric._frombuffer",
)
_NOTHING = ("PROTO", "FRAME", "STOP", "READONLY_BUFFER")


class NotArraysError(ValueError):
    """A pickle that holds something other than arrays, texts and numbers; the text is the name of what it is."""


@dataclass(frozen=True)
class _Name:
    """A class or function that a pickle names, such as ``numpy.dtype``."""

    text: str


@dataclass(eq=False)
class _Call:
    """What a function returns, not called; ``state`` is what the object is given afterwards."""

    function: str
    arguments: tuple[Any, ...]
    state: Any = None


def read_numpy_pickle(data: bytes) -> Any:
    """Return what a pickle holds: dictionaries, lists, texts and numbers, with tensors in place of arrays.

    Raises:
        NotArraysError: it holds objects of other classes.
        ValueError: it is cut off or damaged, takes far more memory than it has bytes, or needs instructions that files
            of arrays do not have.
    """
    allowance = _Allowance(_LARGEST_GROWTH * len(data) + _ALWAYS_ALLOWED)
    return _plain(_follow(data, allowance), {}, 0, allowance)


class _Allowance:
    """Counts the bytes that the content of a pickle may still take."""

    def __init__(self, size: int) -> None:
        self.left = size

    def take(self, size: int) -> None:
        """Take bytes, before they are allocated.

        Raises:
            ValueError: so many are not left.
        """
        self.left -= size
        if self.left < 0:
            raise ValueError("it takes far more memory than it has bytes")


def _follow(data: bytes, allowance: _Allowance) -> Any:
    """Return what the instructions leave on the stack."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        found = stack[start:]
        del stack[start:]
        return found

    try:
        value: Any
        for number, (instruction, value, _) in enumerate(pickletools.genops(io.BytesIO(data))):
            if number == _MOST_INSTRUCTIONS:
                raise ValueError(f"more than {_MOST_INSTRUCTIONS:,} instructions")
            name = instruction.name
            if name in _WITH_VALUE:
                stack.append(value)
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            elif name in ("BINPUT", "LONG_BINPUT"):
                memo[value] = stack[-1]
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[value])
            elif name == "MARK":
                marks.append(len(stack))
            elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
                stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[name]())
            elif name == "TUPLE":
                stack.append(tuple(since_mark()))
            elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
                count = int(name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            elif name in ("SETITEM", "SETITEMS"):
                pairs = since_mark() if name == "SETITEMS" else [stack.pop() for _ in range(2)][::-1]
                _set_items(stack[-1], pairs)
            elif name in ("APPEND", "APPENDS"):
                added = since_mark() if name == "APPENDS" else [stack.pop()]
                stack[-1].extend(added)
            elif name == "GLOBAL":
                stack.append(_Name(value.replace(" ", ".")))
            elif name == "STACK_GLOBAL":
                stack[-2:] = [_Name(".".join(stack[-2:]))]
            elif name in ("REDUCE", "NEWOBJ"):
                function, arguments = stack[-2:]
                stack[-2:] = [_called(function, arguments, allowance)]
            elif name == "BUILD":
                state = stack.pop()
                stack[-1].state = state
            elif name == "POP":
                stack.pop()
            elif name not in _NOTHING:
                raise ValueError(f"the instruction {name}, which files of arrays do not have")
    except (IndexError, KeyError, TypeError, AttributeError) as error:  # it uses what is not there, or is another thing
        raise ValueError(f"instructions that do not fit together ({type(error).__name__})") from None
    if len(stack) != 1:
        raise ValueError("instructions that do not end in one object")
    return stack[0]


def _set_items(target: Any, pairs: list[Any]) -> None:
    if not isinstance(target, dict):
        raise TypeError
    for key, item in zip(pairs[::2], pairs[1::2], strict=True):
        if not isinstance(key, str | int | float | bytes):  # the hash of nested tuples can take forever
            raise NotArraysError(_class_of(key))
        if isinstance(key, int) and abs(key) > _LARGEST:  # Python refuses to write numbers with thousands of digits
            raise ValueError("a key that is a number beyond 64 bits")
        target[key] = item


def _called(function: Any, arguments: Any, allowance: _Allowance) -> Any:
    if not isinstance(function, _Name) or not isinstance(arguments, tuple):
        raise TypeError
    name = function.text.replace("numpy._core.", "numpy.core.")  # its name from NumPy 2 on
    if name == "collections.OrderedDict" and not arguments:
        return {}  # its items are set afterwards
    if name in ("builtins.tuple", "__builtin__.tuple") and len(arguments) == 1:
        allowance.take(8 * len(arguments[0]))
        return tuple(arguments[0])
    if name == "_codecs.encode" and len(arguments) == 2 and isinstance(arguments[0], str):
        allowance.take(len(arguments[0]))
        return arguments[0].encode("latin-1")  # bytes, in pickles for Python 2
    if name in ("__builtin__.bytes", "builtins.bytes") and not arguments:
        return b""
    if name not in _FUNCTIONS:
        raise NotArraysError(function.text)
    return _Call(name, arguments)


def _plain(found: Any, made: dict[int, Any], depth: int, allowance: _Allowance) -> Any:
    """Return what was found with tensors in place of arrays.

    Args:
        found: what the instructions made; it lives on, so that its ids are not used again.
        made: id of an array or dictionary -> its result. One in several places is one: a small file can have very many
            places, and a dictionary in itself.
        depth: number of dictionaries around it.
        allowance: for the tensors.
    """
    if isinstance(found, _Name):
        raise NotArraysError(found.text)
    if id(found) in made:
        return made[id(found)]
    if isinstance(found, _Call):
        made[id(found)] = _tensor(found, allowance)
        return made[id(found)]
    if isinstance(found, Mapping) and depth < 3:
        result: dict[Any, Any] = {}
        made[id(found)] = result
        result.update((key, _plain(value, made, depth + 1, allowance)) for key, value in found.items())
        return result
    if isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], str) and isinstance(found[1], _Call):
        return _plain(found[1], made, depth, allowance)  # a tensor of Paddle with its name
    return found


def _tensor(call: _Call, allowance: _Allowance) -> Tensor:
    """Return the array or the number that NumPy would make."""
    name, state = call.function, call.state
    if name == "numpy.core.multiarray.scalar" and len(call.arguments) == 2:
        return _array(call.arguments[1], _type(call.arguments[0]), (), allowance, fortran=False)
    if name == "numpy.core.numeric._frombuffer" and len(call.arguments) == 4:
        data, kind, shape, order = call.arguments
        return _array(data, _type(kind), shape, allowance, fortran=order == "F")
    if name != "numpy.core.multiarray._reconstruct" or not isinstance(state, tuple) or len(state) != 5:
        raise NotArraysError(name)
    _, shape, kind, fortran, data = state
    return _array(data, _type(kind), shape, allowance, fortran=bool(fortran))


def _type(found: Any) -> np.dtype[Any]:
    if not isinstance(found, _Call) or found.function != "numpy.dtype" or not found.arguments:
        raise ValueError("an array without a type")
    text, state = found.arguments[0], found.state
    if not isinstance(text, str):  # the text of nested lists can take forever
        raise ValueError("an array without a type")
    if text not in _TYPES:
        raise NotArraysError(f"an array of type {text[:20]!r}")
    order = state[1] if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">") else "="
    return np.dtype(f"{order}{text}")


def _array(data: Any, kind: np.dtype[Any], shape: Any, allowance: _Allowance, *, fortran: bool) -> Tensor:
    if not isinstance(data, bytes | bytearray) or not isinstance(shape, tuple):
        raise ValueError("an array without its values")
    if len(shape) > _MOST_SIDES or not all(isinstance(side, int) and 0 <= side <= _LARGEST for side in shape):
        raise ValueError("an array whose shape is no shape")
    if math.prod(shape) * kind.itemsize != len(data):
        raise ValueError(f"an array of {len(data):,} bytes that says it has the shape {shape!s:.60} of {kind.name}")
    if not data and max(shape) > _MOST_INSTRUCTIONS:
        raise ValueError(f"an array without values that says it has the shape {shape!s:.60}")
    allowance.take(len(data))
    values = np.frombuffer(data, kind).reshape(shape, order="F" if fortran else "C")
    return torch.from_numpy(values.astype(kind.newbyteorder("="), order="C"))  # a copy, which may be written


def _class_of(key: Any) -> str:
    if isinstance(key, _Call):
        return key.function
    return key.text if isinstance(key, _Name) else type(key).__name__
