"""How the weights of a repository are used, from the files beside them: those of timm and of transformers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from regnet_deploy.bundle import Bundle
from regnet_deploy.errors import DataError
from regnet_deploy.space.network import INPUT_CHANNELS

#: Names that weights have in repositories; other files may lie beside a ``config.json`` that is not theirs.
_NAMES = ("model.safetensors", "pytorch_model.bin")
_INTERPOLATIONS = {"bilinear": "bilinear", "bicubic": "bicubic", 2: "bilinear", 3: "bicubic"}
_LARGEST = 4096


#: Name in the metadata of a safetensors file of what :func:`stated_use` returns.
STATED = "regnet-deploy"

_Side = Annotated[int, msgspec.Meta(ge=8, le=_LARGEST)]
_Values = Annotated[tuple[float, ...], msgspec.Meta(min_length=1, max_length=3)]


class _Stated(msgspec.Struct, frozen=True):
    stem_stride: Literal[1, 2]
    resolution: _Side
    resize: _Side
    interpolation: Literal["bilinear", "bicubic"]
    antialias: bool
    mean: _Values
    std: _Values
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class HubConfig:
    """What the files beside weights say; None and () where they do not.

    Attributes:
        resolution: pixels a side of the network's input.
        resize: short side of the image before the central crop, pixels.
        interpolation: ``bilinear`` or ``bicubic``.
        mean: of the channels in 0..1, ``(3,)`` or ``(1,)``.
        std: of the channels in 0..1, ``(3,)`` or ``(1,)``.
        labels: class names in the order of the outputs.
        license: of the weights.
        remarks: what they say and this program does not do, one sentence each.
        antialias: whether images are resized with antialiasing.
    """

    resolution: int | None = None
    resize: int | None = None
    interpolation: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    labels: tuple[str, ...] = ()
    license: str | None = None
    remarks: tuple[str, ...] = ()
    antialias: bool | None = None


def stated_use(bundle: Bundle) -> str:
    """Return the text of what weights do not tell of a network, for the metadata of an exported file."""
    preprocessing = bundle.preprocessing
    stated = {
        "stem_stride": bundle.architecture.network.stem_stride,
        "resolution": preprocessing.crop,
        "resize": preprocessing.resize,
        "interpolation": preprocessing.interpolation,
        "antialias": preprocessing.antialias,
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "labels": list(bundle.manifest.labels),
    }
    return json.dumps(stated)


def stated_in(metadata: Mapping[str, Any], path: Path) -> tuple[HubConfig, int | None]:
    """Return what the metadata of a file that this program exported say, and the stride of the stem.

    Raises:
        DataError: they hold a value that cannot be.
    """
    text = metadata.get(f"metadata.{STATED}")
    if not isinstance(text, str):
        return HubConfig(), None
    try:
        stated = msgspec.json.decode(text, type=_Stated)
    except msgspec.DecodeError as error:
        raise DataError(f"the metadata {STATED} of {path} cannot be used: {error}") from None
    values = msgspec.structs.asdict(stated)
    return HubConfig(**{name: value for name, value in values.items() if name != "stem_stride"}), stated.stem_stride


def read_hub_config(weights: Path) -> HubConfig | None:
    """Return what ``config.json`` and ``preprocessor_config.json`` beside weights say; None without such files.

    Raises:
        DataError: a file is not JSON, or holds a value that cannot be.
    """
    config = _read(weights.with_name("config.json")) if weights.name in _NAMES else None
    if config is None:
        return None
    if isinstance(config.get("pretrained_cfg"), Mapping):
        return _of_timm(config, config["pretrained_cfg"], weights.with_name("config.json"))
    if config.get("model_type") == "regnet":
        return _of_transformers(config, _read(weights.with_name("preprocessor_config.json")) or {}, weights.parent)
    return None


def _of_timm(config: Mapping[str, Any], trained: Mapping[str, Any], path: Path) -> HubConfig:
    share, remarks, resize = trained.get("crop_pct"), [], None
    resolution, test = (_side(trained.get(name), name, path) for name in ("input_size", "test_input_size"))
    if resolution and share is not None:
        resize = math.floor(resolution / _number(share, "crop_pct", path, 0.1, 1.0))
    if trained.get("crop_mode") not in (None, "center"):
        remarks.append(f"config.json says crop mode {trained['crop_mode']}: images are cropped at their center")
    if test not in (None, resolution):
        test_share = _number(trained.get("test_crop_pct") or 1.0, "test_crop_pct", path, 0.1, 1.0)
        remarks.append(
            f"config.json has a test at {test} pixels with a crop of {test_share:g}, too: --resolution {test} --resize "
            f"{math.floor(test / test_share)} is that test"
        )
    labels = config.get("label_names") or trained.get("label_names") or ()
    return HubConfig(
        resolution,
        resize,
        _interpolation(trained.get("interpolation"), remarks),
        _by_channel(trained.get("mean"), "mean", path),
        _by_channel(trained.get("std"), "std", path),
        _labels(list(labels) if isinstance(labels, list | tuple) else [], remarks),
        trained.get("license") if isinstance(trained.get("license"), str) else None,
        tuple(remarks),
    )


def _of_transformers(config: Mapping[str, Any], images: Mapping[str, Any], folder: Path) -> HubConfig:
    path, remarks = folder / "preprocessor_config.json", []
    size = images.get("size")
    if isinstance(size, Mapping):
        size = size.get("shortest_edge") or size.get("height")
    resolution = None if size is None else _whole(size, "size", path)
    resize = None
    if resolution:
        share = _number(images.get("crop_pct") or 224 / 256, "crop_pct", path, 0.1, 1.0)
        resize = resolution if resolution >= 384 else int(resolution / share)  # as ConvNextImageProcessor does
        if resolution >= 384:
            remarks.append(
                "transformers stretches images of 384 pixels and more; here they are cropped at their center"
            )
    names = config.get("id2label")
    labels = []
    if isinstance(names, Mapping):
        labels = [names[key] for key in sorted(names, key=lambda key: (len(key), key))]
        if all(isinstance(name, str) and name.startswith("LABEL_") for name in labels):
            labels = []  # transformers's own names of classes that were not named
    return HubConfig(
        resolution,
        resize,
        _interpolation(images.get("resample"), remarks),
        _by_channel(images.get("image_mean"), "image_mean", path),
        _by_channel(images.get("image_std"), "image_std", path),
        _labels(labels, remarks),
        None,
        tuple(remarks),
    )


def _labels(names: Sequence[Any], remarks: list[str]) -> tuple[str, ...]:
    if not all(isinstance(name, str) and name.strip() for name in names):
        remarks.append("the class names in config.json are not all texts: they are not taken")
        return ()
    repeated = first_repeated(names)
    if repeated is not None:
        remarks.append(f"config.json names the class {repeated!r} twice: its names are not taken")
        return ()
    return tuple(names)


def first_repeated(names: Sequence[str]) -> str | None:
    """Return the first name that occurs a second time, None where all differ."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _interpolation(value: Any, remarks: list[str]) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str | int) or value not in _INTERPOLATIONS:
        remarks.append(f"config.json says interpolation {value!r}, which is not bilinear or bicubic: it is not taken")
        return None
    return _INTERPOLATIONS[value]


def _by_channel(value: Any, name: str, path: Path) -> tuple[float, ...] | None:
    if value is None:
        return None
    if not isinstance(value, Sequence) or len(value) not in INPUT_CHANNELS:
        raise DataError(f"{path}: {name} is {value!r}, not three numbers for red, green and blue, or one for gray")
    return tuple(_number(each, name, path, 1e-6 if "std" in name else 0.0, 1.0) for each in value)


def _side(size: Any, name: str, path: Path) -> int | None:
    """Return the side of an input of timm, ``[3, side, side]`` or ``[1, side, side]``."""
    if size is None:
        return None
    if not isinstance(size, Sequence) or len(size) != 3 or size[0] not in INPUT_CHANNELS or size[1] != size[2]:
        raise DataError(f"{path}: {name} is {size!r}, not 1 or 3 channels and equal sides such as [3, 224, 224]")
    return _whole(size[1], name, path)


def _whole(value: Any, name: str, path: Path) -> int:
    number = _number(value, name, path, 16, _LARGEST)
    if number != int(number):
        raise DataError(f"{path}: {name} is {value!r}, not a whole number of pixels")
    return int(number)


def _number(value: Any, name: str, path: Path, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise DataError(f"{path}: {name} holds {value!r}, not a number from {low:g} to {high:g}")
    return float(value)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    return content if isinstance(content, dict) else None
