"""Reads the tensors of a weight file, whatever container another library wrote, and runs no code of the file.

Containers: safetensors; the zip files of ``torch.save`` and its older pickle streams, read by ``torch.load`` with
``weights_only``; either of them inside a plain zip archive; pickles of NumPy arrays, as PaddlePaddle writes them.
Tensors may be nested in dictionaries, as in a checkpoint.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regnet_deploy.errors import DataError, require
from regnet_deploy.importing.numpy_pickle import NotArraysError, read_numpy_pickle

#: Prefixes that wrappers of modules add to every name: DataParallel, torch.compile, Lightning, ModelEMA.
_WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "encoder.backbone.")
#: What wrappers count beside the weights: AveragedModel of torch.optim.swa_utils, as in checkpoints of torchvision.
_COUNTERS = ("n_averaged",)
#: Places of the weights in a checkpoint, the first one that exists: those of an exponential moving average before
#: others, because they are what is evaluated; pycls's are chosen by their errors.
_PLACES = (
    "state_dict_ema",
    "model_ema",
    "ema",
    "classy_state_dict",
    "base_model",
    "model_state",
    "state_dict",
    "model_state_dict",
    "model",
    "params_ema",
    "params",
    "weights",
)
#: Most dictionaries around a tensor, and most entries of them all. A pickle can refer to one dictionary many times, or
#: to itself, so a small file can have any number of both.
_DEEPEST, _MOST_ENTRIES = 16, 200_000
#: What a pickle stream of torch.save begins with, as a number of ten bytes.
_TORCH_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
#: Largest size of what an archive or its tensors take in memory, as a multiple of the file and beyond 16 MiB. Weights
#: hardly compress, but a small archive of zeros, or a tensor that repeats one value, can fill the memory.
_LARGEST_GROWTH, _ALWAYS_ALLOWED = 4, 16 << 20
#: How other files begin, and what they are.
_OTHER_KINDS = (
    (
        b"\x89HDF\r\n",
        "a HDF5 file (Keras or TensorFlow), which is not read: take weights of this network from pycls, timm, "
        "torchvision or transformers, as `regnet-deploy weights` lists them",
    ),
    (b"\x93NUMPY", "one NumPy array, not the weights of a network: save a dictionary of them with torch.save"),
    (b"version https://git-lfs", "a Git LFS pointer, not the weights: run `git lfs pull` where it comes from"),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"ustar", "a tar archive: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive: unpack it first"),
)


@dataclass(frozen=True)
class WeightFile:
    """The tensors of a file.

    Attributes:
        tensors: name -> float32 tensor, or integers as they are; names without the prefixes of wrappers.
        container: ``safetensors``, ``torch zip``, ``torch pickle`` or ``numpy pickle``.
        place: keys of the dictionaries in which the tensors were, outermost first.
        metadata: texts and numbers beside the tensors, such as ``cfg`` of pycls or ``arch`` of timm.
        remarks: what was chosen or converted, one sentence each.
    """

    tensors: Mapping[str, Tensor]
    container: str
    place: tuple[str, ...] = ()
    metadata: Mapping[str, str | int | float] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


def read_weight_file(path: Path) -> WeightFile:
    """Read the tensors of a file.

    Raises:
        DataError: the file cannot be read, is truncated or of another kind, holds objects that are not tensors, no
            tensors, or tensors with values that are not finite.
    """
    if os.path.isdir(path):  # False also where Path would raise: a name too long, a folder that may not be read
        raise DataError(f"{path} is a folder: give the weight file, such as {path}/model.safetensors")
    if os.path.exists(path) and not os.path.isfile(path):
        raise DataError(f"{path} is a device or a pipe: give a file")
    try:
        with open(path, "rb") as file:
            start = file.read(512)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    _refuse_other_kinds(path, start)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 27:
        content, container = _read_safetensors(path), "safetensors"
    else:
        content, container = _read_torch(path, start)
    return _weights_of(content, container, path)


def _refuse_other_kinds(path: Path, start: bytes) -> None:
    if not start:
        raise DataError(f"{path} is empty: download it again")
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise DataError(f"{path} is a web page, not weights: the download was refused or redirected; download it again")
    for magic, kind in _OTHER_KINDS:
        if start.startswith(magic) or (magic == b"ustar" and start[257:262] == magic):
            raise DataError(f"{path} is {kind}")
    if text.startswith((b"{", b"[")) and start[8:9] != b"{":
        raise DataError(f"{path} is JSON, not weights: give the file with the tensors")
    if re.match(rb"\x08[\x01-\x0c]\x12", start):
        raise DataError(f"{path} is an ONNX file: give the weights from which it was exported")


def _read_safetensors(path: Path) -> dict[str, Any]:
    safe_open = require("safetensors", "train").safe_open
    error_type = require("safetensors", "train").SafetensorError
    try:
        with safe_open(path, framework="pt") as file:
            metadata = {f"metadata.{name}": text for name, text in (file.metadata() or {}).items()}
            return {**{name: file.get_tensor(name) for name in file.keys()}, **metadata}  # noqa: SIM118, it is no dict
    except (error_type, OSError, ValueError) as error:
        raise DataError(f"{path} is damaged or cut off: {_one_line(error)}; download it again") from None


def _read_torch(path: Path, start: bytes) -> tuple[dict[str, Any], str]:
    """Return what ``torch.save`` wrote, and the name of the container."""
    if start.startswith(b"PK"):
        with _opened_zip(path) as archive:
            names = archive.namelist()
            _check_size(path, sum(entry.file_size for entry in archive.infolist()))
            if not any(name.endswith("/data.pkl") or name == "data.pkl" for name in names):
                inner = [name for name in names if name.lower().endswith((".pth", ".pt", ".pyth", ".bin", ".torch"))]
                if len(inner) != 1:
                    listed = ", ".join(names[:3])
                    raise DataError(f"{path} is a zip archive without weights of PyTorch ({listed:.200}): unpack it")
                data = _read_entry(archive, inner[0], path)
                return _load(io.BytesIO(data), path), "torch zip" if data.startswith(b"PK") else "torch pickle"
        return _load(path, path), "torch zip"
    if start[:1] != b"\x80":
        raise DataError(
            f"{path} is neither safetensors nor a file of torch.save or Paddle: it starts with {start[:8]!r}"
        )
    if _TORCH_MAGIC in start[:64]:
        return _load(path, path), "torch pickle"
    return _read_arrays(path), "numpy pickle"


def _read_arrays(path: Path) -> dict[str, Any]:
    """Return what a pickle holds that torch.save did not write."""
    try:
        content = read_numpy_pickle(path.read_bytes())
    except NotArraysError as error:
        raise DataError(_objects_message(path, f" ({_one_line(error):.100})")) from None
    except ValueError as error:
        raise DataError(
            f"{path} is a pickle that is damaged or cut off: {_one_line(error)}; download it again"
        ) from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    return _dictionary(content, path)


def _opened_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path} is damaged or cut off: {_one_line(error)}; download it again") from None


def _read_entry(archive: zipfile.ZipFile, name: str, path: Path) -> bytes:
    try:
        return archive.read(name)
    except (RuntimeError, NotImplementedError) as error:  # encrypted, or compressed in a way that Python does not know
        raise DataError(f"{path} cannot be unpacked here: {_one_line(error)}; unpack it first") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise DataError(f"{path} is damaged or cut off: {_one_line(error)}; download it again") from None


def _check_size(path: Path, needed: int) -> None:
    """Refuse contents that take far more memory than the file has bytes."""
    size = os.path.getsize(path)
    if needed > _LARGEST_GROWTH * size + _ALWAYS_ALLOWED:
        raise DataError(f"{path} has {size:,} bytes and takes {needed:,} bytes of memory: these are no trained weights")


def _load(source: Path | io.BytesIO, path: Path) -> dict[str, Any]:
    """Unpickle tensors, containers, texts and numbers; no other class and no function."""
    try:
        with torch.serialization.safe_globals(_inert_classes()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a pickle protocol other than that of torch.save, for example
            content = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler meets whatever bytes are in the file, with any exception
        raise DataError(_load_message(path, error)) from None
    return _dictionary(content, path)


def _dictionary(content: Any, path: Path) -> dict[str, Any]:
    if isinstance(content, Tensor):
        raise DataError(f"{path} is one tensor, not the weights of a network")
    if not isinstance(content, Mapping):
        raise DataError(
            f"{path} holds a {type(content).__name__}, not a dictionary of tensors: save model.state_dict()"
        )
    return dict(content)


def _inert_classes() -> list[Any]:
    """Return classes that checkpoints hold beside tensors, and that only keep values."""
    import numpy as np
    from numpy.dtypes import BoolDType, Float32DType, Float64DType, Int64DType, StrDType

    scalar = np.float64(0).__reduce__()[0]  # numpy's function that makes a scalar of its bytes
    return [argparse.Namespace, scalar, np.dtype, BoolDType, Float32DType, Float64DType, Int64DType, StrDType]


def _load_message(path: Path, error: Exception) -> str:
    text = " ".join(str(error).split())
    found = re.search(r"GLOBAL ([\w.]+)", text) or re.search(r"(?:global:|Unsupported class) ([\w.]+)", text)
    if found or "weights_only" in text or "Unsupported" in text:
        return _objects_message(path, f" ({found[1]})" if found else "")
    if isinstance(error, MemoryError):
        return (
            f"{path} needs more memory to read than this machine has: {os.path.getsize(path):,} bytes are in the file"
        )
    return f"{path} is damaged or cut off: {_one_line(error)}; download it again"


def _objects_message(path: Path, name: str) -> str:
    return (
        f"{path} holds objects that are not tensors{name}, which could run code, so it was not loaded: where you "
        "trust it, save its weights alone with torch.save(model.state_dict(), FILE)"
    )


def _weights_of(content: Mapping[str, Any], container: str, path: Path) -> WeightFile:
    """Return the weights in the dictionaries of a checkpoint."""
    remarks: list[str] = []
    place: list[str] = []
    metadata = {name: value for name, value in content.items() if isinstance(value, str | int | float)}
    current: Mapping[str, Any] = content
    while (key := _next_place(current, place, remarks)) is not None:
        place.append(key)
        current = current[key]
        if len(place) > _DEEPEST:
            raise DataError(f"{path} is no checkpoint: more than {_DEEPEST} dictionaries are inside each other")
    tensors: dict[str, Tensor] = {}
    for number, (name, value) in enumerate(_flat(current, path)):
        if number == _MOST_ENTRIES:
            raise DataError(f"{path} is no checkpoint of a network: it has more than {_MOST_ENTRIES:,} entries")
        if isinstance(value, Tensor) and name not in _COUNTERS:
            tensors[name] = value
    if not tensors:
        listed = ", ".join(map(str, list(content)[:5])) or "none"
        raise DataError(f"{path} holds no tensors by name; its keys are {listed[:200]}")
    names = _without_wrappers(list(tensors))
    tensors = {name: tensors[old] for name, old in zip(names, tensors, strict=True)}
    _check_dense(tensors, path)
    return WeightFile(_as_float32(tensors, path, remarks), container, tuple(place), metadata, tuple(remarks))


def _next_place(current: Mapping[str, Any], place: list[str], remarks: list[str]) -> str | None:
    """Return the key under which the weights are, None where they are here."""
    held = [key for key in _PLACES if isinstance(current.get(key), Mapping) and current[key]]
    if "model_state" in held and isinstance(current.get("ema_state"), Mapping) and current["ema_state"]:
        plain, average = current.get("test_err"), current.get("ema_err")
        key, reason = "model_state", "because their errors are not stored"
        errors = [error for error in (plain, average) if isinstance(error, int | float) and 0 <= error <= 100]
        if len(errors) == 2:
            key = "ema_state" if errors[1] < errors[0] else "model_state"
            reason = f"whose stored error is {min(errors):g} %"
        remarks.append(f"of the plain and the averaged weights, {key} is taken, {reason}")
        return key
    if not held:
        return None
    if held[0] in ("state_dict_ema", "model_ema", "ema", "params_ema"):
        remarks.append(f"the averaged weights in {held[0]} are taken")
    return held[0]


def _flat(content: Mapping[str, Any], path: Path, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    if depth > _DEEPEST:
        raise DataError(f"{path} is no checkpoint: more than {_DEEPEST} dictionaries are inside each other")
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, path, f"{prefix}{name}.", depth + 1)
        else:
            yield f"{prefix}{name}", value


def _without_wrappers(names: list[str]) -> list[str]:
    """Remove prefixes that all names have."""
    while True:
        prefix = next((each for each in _WRAPPERS if names and all(name.startswith(each) for name in names)), None)
        if prefix is None:
            return names
        names = [name.removeprefix(prefix) for name in names]


def _check_dense(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that are not plain arrays of real numbers, and those that are far larger than the file."""
    odd = [
        name
        for name, tensor in tensors.items()
        if tensor.layout is not torch.strided
        or tensor.device.type != "cpu"
        or tensor.is_quantized
        or tensor.is_complex()
    ]
    if odd:
        are = "is" if len(odd) == 1 else "are"
        raise DataError(
            f"{path}: {len(odd)} of {len(tensors)} tensors {are} sparse, quantized, complex or without values: "
            f"{', '.join(odd[:5])}"
        )
    _check_size(path, sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()))


def _as_float32(tensors: Mapping[str, Tensor], path: Path, remarks: list[str]) -> dict[str, Tensor]:
    converted, kinds, bad = {}, set(), []
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            if tensor.dtype != torch.float32:
                kinds.add(str(tensor.dtype).removeprefix("torch."))
            tensor = tensor.to(torch.float32)
            if not bool(torch.isfinite(tensor).all()):
                bad.append(name)
        converted[name] = tensor
    if bad:
        raise DataError(
            f"{path}: {len(bad)} of {len(tensors)} tensors hold values that are not finite (NaN or infinite): "
            f"{', '.join(bad[:5])}"
        )
    if kinds:
        remarks.append(f"weights of type {' and '.join(sorted(kinds))} are converted to float32")
    return converted


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
