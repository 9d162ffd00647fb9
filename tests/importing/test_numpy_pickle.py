"""Pickles of NumPy arrays are read as data: nothing in them is called, and what is no array is named."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regnet_deploy.importing.numpy_pickle import NotArraysError, read_numpy_pickle

ARRAYS = {
    "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "columns": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
    "big endian": np.arange(4, dtype=">f4"),
    "half": np.arange(3, dtype=np.float16),
    "whole": np.array(7, dtype=np.int64),
    "empty": np.zeros((0, 3), dtype=np.float32),
    "number": np.float64(2.5),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_become_tensors_whatever_their_order_and_type(protocol: int) -> None:
    content = {**ARRAYS, "epoch": 3, "names": {"weight": "linear_0.w_0"}}
    for kind in (dict, OrderedDict):
        read = read_numpy_pickle(pickle.dumps(kind(content), protocol))
        assert (read["epoch"], read["names"]) == (3, {"weight": "linear_0.w_0"})
        for name, array in ARRAYS.items():
            wanted = torch.tensor(np.asarray(array).astype(array.dtype.newbyteorder("=")))
            assert torch.equal(read[name], wanted), name
            assert read[name].dtype == wanted.dtype


class Named:
    """How paddle.save writes a tensor inside of other objects: as its name and an array."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (("linear_0.w_0", self.array),)


def test_a_tensor_with_its_name_is_a_tensor_and_one_in_two_places_is_read_once() -> None:
    read = read_numpy_pickle(pickle.dumps({"weight": Named(ARRAYS["weight"])}))
    assert torch.equal(read["weight"], torch.from_numpy(ARRAYS["weight"]))
    array = ARRAYS["weight"]
    read = read_numpy_pickle(pickle.dumps({str(i): array for i in range(1000)}))
    assert len({tensor.data_ptr() for tensor in read.values()}) == 1


class Calls:
    """An object that calls something when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize(
    ("function", "said"),
    [(os.system, "posix.system"), (eval, r"(?:builtins|__builtin__)\.eval"), (getattr, "getattr"), (open, "open")],
)
def test_whatever_calls_a_function_is_refused_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: Any, said: str, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    hostile = Calls(function, "ran", "w")
    for content in (hostile, {"a": hostile}, {"a": [hostile]}, {"a": {"b": {"c": {"d": (hostile,)}}}}):
        with pytest.raises(NotArraysError, match=said):
            read_numpy_pickle(pickle.dumps(content, protocol))
    assert not list(tmp_path.iterdir())


def test_objects_of_other_libraries_are_named() -> None:
    class_of = Calls.__new__(Calls)
    class_of.call = (Path, ("a",))
    with pytest.raises(NotArraysError, match="Path"):
        read_numpy_pickle(pickle.dumps({"weight": class_of}))
    with pytest.raises(NotArraysError, match="an array of type 'O8'"):
        read_numpy_pickle(pickle.dumps({"weight": np.array([None])}))
    with pytest.raises(NotArraysError, match=r"os\.system|posix\.system"):
        read_numpy_pickle(b"\x80\x02cos\nsystem\n.")
    deep: Any = ()
    for _ in range(60):  # whose hash would be computed two to the power of 60 times
        deep = (deep, deep)
    with pytest.raises(NotArraysError, match="tuple"):
        read_numpy_pickle(b"\x80\x02}" + pickle.dumps(deep, 2)[2:-1] + b"K\x01s.")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x80\x02", "pickle exhausted before seeing STOP"),
        (b"\x80\x02.", "do not end in one object"),
        (b"\x80\x02h\x05.", r"do not fit together \(KeyError\)"),
        (b"\x80\x020.", r"do not fit together \(IndexError\)"),
        (b"\x80\x02K\x01K\x02K\x03s.", r"do not fit together \(TypeError\)"),
        (b"\x80\x02K\x01K\x02b.", r"do not fit together \(AttributeError\)"),
        (b"\x80\x02(cos\nsystem\no.", "the instruction OBJ"),
        (b"\x80\x02\x82\x01.", "the instruction EXT1"),
        (b"\x80\x02P7\n.", "the instruction PERSID"),
        (b"\x80\x02" + b"N0" * 1_000_001 + b"N.", "more than 2,000,000 instructions"),
    ],
)
def test_instructions_that_make_no_arrays_are_refused(data: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_numpy_pickle(data)


def test_an_array_that_says_it_is_larger_than_its_values_is_refused() -> None:
    data = pickle.dumps({"w": np.zeros(3, np.float32)}, 2)
    assert data.count(b"K\x03\x85") == 1  # its shape, (3,)
    with pytest.raises(ValueError, match=r"12 bytes that says it has the shape \(200,\) of float32"):
        read_numpy_pickle(data.replace(b"K\x03\x85", b"K\xc8\x85"))


SIDES = b"K\x00K\x03\x86"  # the instructions of the shape (0, 3)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (b"K\x00\x8a\x09" + (1 << 70).to_bytes(9, "little") + b"\x86", "whose shape is no shape"),
        (b"K\x00J\xff\xff\xff\xff\x86", "whose shape is no shape"),
        (b"(" + b"K\x00" * 70 + b"t", "whose shape is no shape"),
        (b"K\x00]\x86", "whose shape is no shape"),
        (b"K\x00\x8a\x08" + (1 << 62).to_bytes(8, "little") + b"\x86", r"says it has the shape \(0, 4611686018427"),
    ],
    ids=["beyond 64 bits", "negative", "70 sides", "a list", "very long"],
)
def test_a_shape_that_no_array_has_is_refused(shape: bytes, said: str) -> None:
    data = pickle.dumps({"w": ARRAYS["empty"]}, 2)
    assert data.count(SIDES) == 1
    with pytest.raises(ValueError, match=said):
        read_numpy_pickle(data.replace(SIDES, shape))


MEBIBYTE = b"B" + (1 << 20).to_bytes(4, "little") + bytes(1 << 20)
NESTED = b"]" * 100_000 + b"a" * 99_999
ARRAY_OF = b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01J\x00\x00\x04\x00\x85cnumpy\ndtype\n%b\x85R\x89h\x00tb"
FLOAT = b"X\x02\x00\x00\x00f4"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            MEBIBYTE + b"q\x000}(" + b"".join(b"K" + bytes([i]) + ARRAY_OF % FLOAT for i in range(100)) + b"u.",
            "far more memory",
        ),
        (MEBIBYTE + b"q\x000](" + b"cbuiltins\ntuple\nh\x00\x85R" * 9 + b"e.", "far more memory"),
        (MEBIBYTE + b"q\x000}K\x01" + ARRAY_OF % NESTED + b"s.", "an array without a type"),
        (NESTED + NESTED + b"\x93.", r"do not fit together \(TypeError\)"),
        (b"}\x8b" + (20_000).to_bytes(4, "little") + b"\x7f" * 20_000 + b"K\x01s.", "a key that is a number beyond"),
    ],
    ids=["arrays of the same bytes", "tuples of the same bytes", "type", "name", "key"],
)
def test_a_small_file_fills_neither_memory_nor_time(data: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_numpy_pickle(b"\x80\x04" + data)


def test_a_dictionary_in_many_places_is_one_and_may_be_in_itself() -> None:
    inner = {1: 2}
    for _ in range(3):
        inner = dict.fromkeys(range(1000), inner)  # a billion entries, if each were read
    read = read_numpy_pickle(pickle.dumps(inner, 2))
    assert read[0] is read[999]
    circle: dict[str, Any] = {}
    circle["again"] = circle
    read = read_numpy_pickle(pickle.dumps(circle, 2))
    assert read["again"] is read


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_file_is_one_kind_of_error(drawn: st.DataObject) -> None:
    whole = bytearray(pickle.dumps(ARRAYS, drawn.draw(st.sampled_from([2, 4, 5]))))
    for _ in range(drawn.draw(st.integers(1, 4))):
        whole[drawn.draw(st.integers(0, len(whole) - 1))] = drawn.draw(st.integers(0, 255))
    data = bytes(whole[: drawn.draw(st.integers(0, len(whole)))])
    with contextlib.suppress(ValueError):
        read_numpy_pickle(data)
