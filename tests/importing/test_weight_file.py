"""Containers of weights are read without running anything in them, or refused in one line."""

from __future__ import annotations

import argparse
import gzip
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from regnet_deploy.errors import DataError
from regnet_deploy.importing.weight_file import read_weight_file

Save = Callable[..., Path]
TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.num_batches_tracked": torch.tensor(7)}


def refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_weight_file(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def same(read: Any) -> bool:
    return read.keys() == TENSORS.keys() and all(torch.equal(read[name], tensor) for name, tensor in TENSORS.items())


def test_every_container_gives_the_same_tensors(saved: Save, tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a.safetensors")
    with zipfile.ZipFile(tmp_path / "inside.zip", "w") as archive:
        archive.write(saved(TENSORS, "inner.pth", legacy=True), "inner.pth")
    (tmp_path / "paddle.pdparams").write_bytes(pickle.dumps({name: t.numpy() for name, t in TENSORS.items()}, 2))
    found = {
        "numpy pickle": read_weight_file(tmp_path / "paddle.pdparams"),
        "safetensors": read_weight_file(tmp_path / "a.safetensors"),
        "torch zip": read_weight_file(saved(TENSORS)),
        "torch pickle": read_weight_file(saved(OrderedDict(TENSORS), "old.pth", legacy=True)),
    }
    assert all(file.container == container and same(file.tensors) for container, file in found.items())
    assert same(read_weight_file(tmp_path / "inside.zip").tensors)


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ({"state_dict": TENSORS, "epoch": 3}, ("state_dict",)),
        ({"model": TENSORS, "optimizer": {"state": {}}}, ("model",)),
        ({"state_dict": {f"module.{name}": tensor for name, tensor in TENSORS.items()}}, ("state_dict",)),
        ({"model": {f"_orig_mod.module.{name}": t for name, t in TENSORS.items()}}, ("model",)),
        (
            {"model_ema": {"n_averaged": torch.tensor(3), **{f"module.{name}": t for name, t in TENSORS.items()}}},
            ("model_ema",),
        ),
        ({"classy_state_dict": {"base_model": {"model": TENSORS}}}, ("classy_state_dict", "base_model", "model")),
        ({"state_dict": TENSORS, "args": argparse.Namespace(lr=0.1), "best": np.float64(3)}, ("state_dict",)),
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_are_found_in_checkpoints(saved: Save, content: object, place: tuple[str, ...], legacy: bool) -> None:
    read = read_weight_file(saved(content, legacy=legacy))
    assert read.place == place
    assert same(read.tensors)


@pytest.mark.parametrize(
    ("errors", "place"),
    [
        ({"test_err": 25.0, "ema_err": 24.0}, "ema_state"),
        ({"test_err": 24.0, "ema_err": 25.0}, "model_state"),
        ({"test_err": 10**400, "ema_err": 25.0}, "model_state"),
        ({}, "model_state"),
    ],
)
def test_of_pycls_the_weights_of_the_lower_stored_error_are_taken(
    saved: Save, errors: dict[str, float], place: str
) -> None:
    other = {name: tensor + 1 for name, tensor in TENSORS.items()}
    states = {"model_state": other, "ema_state": other, place: TENSORS}
    read = read_weight_file(saved({"epoch": 99, **errors, **states, "cfg": "MODEL: {}"}))
    assert read.place == (place,)
    assert same(read.tensors)
    assert read.metadata["cfg"] == "MODEL: {}"
    assert place in read.remarks[0]


def test_an_average_is_taken_before_the_plain_weights_and_said(saved: Save) -> None:
    read = read_weight_file(saved({"state_dict": {"b": torch.zeros(1)}, "state_dict_ema": TENSORS}))
    assert same(read.tensors)
    assert read.remarks == ("the averaged weights in state_dict_ema are taken",)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_converted_and_said(saved: Save, kind: torch.dtype) -> None:
    read = read_weight_file(saved({name: t.to(kind) if t.is_floating_point() else t for name, t in TENSORS.items()}))
    assert same(read.tensors)
    assert read.remarks == (f"weights of type {str(kind)[6:]} are converted to float32",)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_with_their_tensors(saved: Save, value: float) -> None:
    said = refused(saved({**TENSORS, "b.weight": torch.tensor([1.0, value])}))
    assert "1 of 3 tensors hold values that are not finite (NaN or infinite): b.weight" in said


class Hostile:
    """What runs a program when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_hostile_file_runs_nothing(saved: Save, tmp_path: Path, legacy: bool, protocol: int) -> None:
    target = tmp_path / "ran"
    path = tmp_path / "hostile.pth"
    torch.save(
        {"state_dict": TENSORS, "x": Hostile(target)},
        path,
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=not legacy,
    )
    name = " (posix.system)" if protocol == 2 else ""  # of other protocols, PyTorch follows no instructions
    assert f"holds objects that are not tensors{name}, which could run code" in refused(path)
    for content in (Hostile(target), {"a.weight": np.zeros(3), "b": Hostile(target)}, {"a": [Hostile(target)]}):
        path.write_bytes(pickle.dumps(content, protocol))
        assert "holds objects that are not tensors (posix.system)" in refused(path)
    assert not target.exists()


def html() -> bytes:
    return b"<!DOCTYPE html><html>403</html>"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (html(), "is a web page, not weights"),
        (b"\x89HDF\r\n\x1a\n", "a HDF5 file (Keras or TensorFlow), which is not read: take weights of this network"),
        (b"\x93NUMPY\x01\x00", "one NumPy array"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (gzip.compress(b"x", mtime=0), "a gzip archive"),
        (b'{"a": 1}', "is JSON"),
        (b"\x08\x0a\x12\x07pytorch", "is an ONNX file"),
        (b"GIF89a", "is neither safetensors nor a file of torch.save"),
        (b"PK\x03\x04 cut", "is damaged or cut off"),
        (b"\x80\x02}q\x00.", "holds no tensors by name; its keys are none"),
        (b"\x80\x02}q\x00(X\x01", "is a pickle that is damaged or cut off"),
        (pickle.dumps(np.zeros(3, np.float32)), "is one tensor, not the weights of a network"),
        (pickle.dumps([np.zeros(3, np.float32)]), "holds a list, not a dictionary of tensors"),
        ((5000).to_bytes(8, "little") + b'{"a": {"dtype": "F32"', "is damaged or cut off"),
    ],
)
def test_files_of_other_kinds_are_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    assert said in refused(path)


def test_a_folder_a_missing_file_and_an_archive_of_other_files_are_one_line(tmp_path: Path) -> None:
    assert "is a folder: give the weight file" in refused(tmp_path)
    assert "cannot read" in refused(tmp_path / "none.pth")
    assert "File name too long" in refused(tmp_path / ("n" * 300))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme.txt", "x")
    assert "a zip archive without weights of PyTorch (readme.txt)" in refused(tmp_path / "a.zip")


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.999])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "pickle"])
def test_a_file_that_was_cut_off_is_one_line(saved: Save, tmp_path: Path, kind: str, share: float) -> None:
    tensors = {f"layer{i}.weight": torch.randn(64, 64) for i in range(4)}
    if kind == "safetensors":
        path = tmp_path / "a.safetensors"
        save_file(tensors, path)
    else:
        path = saved(tensors, legacy=kind == "pickle")
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    refused(path)


def test_one_tensor_alone_is_no_network(saved: Save) -> None:
    assert "is one tensor, not the weights of a network" in refused(saved(torch.zeros(3)))
    assert "holds a list, not a dictionary of tensors" in refused(saved([torch.zeros(3)]))
    path = saved({"epoch": 3})
    assert "holds no tensors by name; its keys are epoch" in refused(path)


def nested(depth: int, width: int) -> dict[str, Any]:
    """Return dictionaries in each other; with a width of two, as many entries as two to the power of the depth."""
    content: dict[str, Any] = {"t": torch.zeros(1)}
    for _ in range(depth):
        content = {str(i): content for i in range(width)}
    return content


def in_itself(key: str) -> dict[str, Any]:
    content: dict[str, Any] = {}
    content[key] = content
    return content


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (in_itself("model"), "more than 16 dictionaries"),
        (in_itself("x"), "more than 16 dictionaries"),
        (nested(40, 2), "more than 16 dictionaries"),
        (nested(6, 8), "more than 200,000 entries"),
        ({"a.weight": torch.zeros(1).as_strided((1 << 30, 1 << 10), (0, 0))}, "bytes of memory"),
        (
            {"a.weight": torch.eye(3).to_sparse()},
            "1 of 1 tensors is sparse, quantized, complex or without values: a.weight",
        ),
        (
            {"a.weight": torch.zeros(3, device="meta")},
            "1 of 1 tensors is sparse, quantized, complex or without values: a.weight",
        ),
        ({"a.weight": torch.zeros(3, dtype=torch.complex64)}, "complex or without values: a.weight"),
    ],
)
def test_contents_that_would_never_end_or_fill_the_memory_are_refused(
    saved: Save, content: dict[str, Any], said: str
) -> None:
    assert said in refused(saved(content))


@pytest.mark.parametrize("inner", ["weights.pth", "archive/data.pkl"])
def test_an_archive_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path: Path, inner: str) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(inner, bytes(20 << 20))
    assert "takes 20,971,520 bytes of memory: these are no trained weights" in refused(path)


def test_damaged_and_encrypted_archives_and_pipes_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w.pth", "hello world")
    data = path.read_bytes()
    path.write_bytes(data.replace(b"hello", b"hallo"))
    assert "is damaged or cut off: Bad CRC-32" in refused(path)
    locked = bytearray(data)
    locked[6] |= 1
    locked[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(locked)
    assert "cannot be unpacked here" in refused(path)
    os.mkfifo(tmp_path / "pipe")
    assert "is a device or a pipe" in refused(tmp_path / "pipe")
