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
        ValueError: it is cut off or damaged, or needs instructions that files of arrays do not have.
    """
    return _plain(_follow(data), {}, 0)


def _follow(data: bytes) -> Any:
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
                module, attribute = stack[-2:]
                stack[-2:] = [_Name(f"{module}.{attribute}")]
            elif name in ("REDUCE", "NEWOBJ"):
                function, arguments = stack[-2:]
                stack[-2:] = [_called(function, arguments)]
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
        target[key] = item


def _called(function: Any, arguments: Any) -> Any:
    if not isinstance(function, _Name) or not isinstance(arguments, tuple):
        raise TypeError
    name = function.text.replace("numpy._core.", "numpy.core.")  # its name from NumPy 2 on
    if name == "collections.OrderedDict" and not arguments:
        return {}  # its items are set afterwards
    if name in ("builtins.tuple", "__builtin__.tuple") and len(arguments) == 1:
        return tuple(arguments[0])
    if name == "_codecs.encode" and len(arguments) == 2 and isinstance(arguments[0], str):
        return arguments[0].encode("latin-1")  # bytes, in pickles for Python 2
    if name in ("__builtin__.bytes", "builtins.bytes") and not arguments:
        return b""
    if name not in _FUNCTIONS:
        raise NotArraysError(function.text)
    return _Call(name, arguments)


def _plain(found: Any, made: dict[int, Tensor], depth: int) -> Any:
    """Return what was found with tensors in place of arrays; one array in several places is one tensor."""
    if isinstance(found, _Call):
        if id(found) not in made:
            made[id(found)] = _tensor(found)
        return made[id(found)]
    if isinstance(found, _Name):
        raise NotArraysError(found.text)
    if isinstance(found, Mapping) and depth < 3:
        return {key: _plain(value, made, depth + 1) for key, value in found.items()}
    if isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], str) and isinstance(found[1], _Call):
        return _plain(found[1], made, depth)  # a tensor of Paddle with its name
    return found


def _tensor(call: _Call) -> Tensor:
    """Return the array or the number that NumPy would make."""
    name, state = call.function, call.state
    if name == "numpy.core.multiarray.scalar" and len(call.arguments) == 2:
        return _array(call.arguments[1], _type(call.arguments[0]), (), fortran=False)
    if name == "numpy.core.numeric._frombuffer" and len(call.arguments) == 4:
        data, kind, shape, order = call.arguments
        return _array(data, _type(kind), shape, fortran=order == "F")
    if name != "numpy.core.multiarray._reconstruct" or not isinstance(state, tuple) or len(state) != 5:
        raise NotArraysError(name)
    _, shape, kind, fortran, data = state
    return _array(data, _type(kind), shape, fortran=bool(fortran))


def _type(found: Any) -> np.dtype[Any]:
    if not isinstance(found, _Call) or found.function != "numpy.dtype" or not found.arguments:
        raise ValueError("an array without a type")
    text, state = found.arguments[0], found.state
    if text not in _TYPES:
        raise NotArraysError(f"an array of type {text!r}")
    order = state[1] if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">") else "="
    return np.dtype(f"{order}{text}")


def _array(data: Any, kind: np.dtype[Any], shape: Any, *, fortran: bool) -> Tensor:
    if not isinstance(data, bytes | bytearray) or not isinstance(shape, tuple):
        raise ValueError("an array without its values")
    if not all(isinstance(side, int) and side >= 0 for side in shape) or math.prod(shape) * kind.itemsize != len(data):
        raise ValueError(f"an array of {len(data):,} bytes that says it has the shape {shape!s:.60} of {kind.name}")
    values = np.frombuffer(data, kind).reshape(shape, order="F" if fortran else "C")
    return torch.from_numpy(values.astype(kind.newbyteorder("="), order="C"))  # a copy, which may be written


def _class_of(key: Any) -> str:
    if isinstance(key, _Call):
        return key.function
    return key.text if isinstance(key, _Name) else type(key).__name__
