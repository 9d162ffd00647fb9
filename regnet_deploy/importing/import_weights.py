"""Makes a bundle of the weights of another library: network, preprocessing, class names, and where they come from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from regnet_deploy.bundle import MANIFEST, Bundle, Manifest, create_bundle
from regnet_deploy.bundle.manifest import Architecture, Preprocessing, WeightsOrigin
from regnet_deploy.errors import DataError, UsageError
from regnet_deploy.images.imagenet import class_names
from regnet_deploy.images.preprocessing import default_preprocessing
from regnet_deploy.importing.file_digest import digest_of
from regnet_deploy.importing.foreign_weights import ForeignWeights, assumed_of_stem, read_foreign_weights
from regnet_deploy.importing.hub_config import HubConfig, first_repeated, read_hub_config, stated_in
from regnet_deploy.importing.layouts import OWN
from regnet_deploy.importing.public_weights import (
    PublicWeights,
    digest_in_name,
    find_weights,
    weights_at,
    weights_of,
    with_digest,
    with_name,
)
from regnet_deploy.importing.pycls_config import sizes_of_test, uses_ffcv
from regnet_deploy.models.weights import FILE, weights_to_bytes
from regnet_deploy.profiling.machine import environment
from regnet_deploy.space.complexity import network_complexity
from regnet_deploy.space.network import Network
from regnet_deploy.space.published import find_published, published_networks

#: Library -> (short side of the image in units of the crop, interpolation) of its default test, where the file is not
#: one of the public ones.
_DEFAULT_TEST = {
    "pycls": (256 / 224, "bilinear"),
    "mmpretrain": (256 / 224, "bilinear"),
    "paddleclas": (256 / 224, "bilinear"),
    "pytorchcv": (256 / 224, "bilinear"),
    OWN: (256 / 224, "bilinear"),
    "torchvision": (256 / 224, "bilinear"),
    "classy": (256 / 224, "bilinear"),
    "vissl": (256 / 224, "bilinear"),
    "transformers": (256 / 224, "bicubic"),
    "timm": (235 / 224, "bicubic"),  # a crop of 0.95, rounded down as timm does
}
_DEFAULT_RESOLUTION = 224
#: Says that a file holds no public weights, whatever its name is.
NO_PUBLIC = "none"
#: Libraries that resize with OpenCV, whose bilinear interpolation has no antialiasing; the others use Pillow.
_OPENCV = ("pycls", "mmpretrain", "paddleclas")


@dataclass(frozen=True)
class ImportOptions:
    """What a file does not say.

    Attributes:
        source: library; None recognizes it.
        published: name of the public weights that the file holds, or :data:`NO_PUBLIC`; None recognizes them.
        network: name of the published network that the file must have; None takes any.
        channels: ``rgb`` or ``bgr``; None is the order of the library.
        stem_stride: stride of the stem, 1 or 2; None is 2.
        resolution: pixels a side of the network's input; this and what follows is None where the published test or the
            default of the library is wanted.
        resize: short side of the image before the central crop, pixels.
        interpolation: ``bilinear`` or ``bicubic``.
        antialias: whether images are resized with antialiasing; see ``Preprocessing``.
        mean: subtracted from the channels in 0..1, ``(channels,)``.
        std: divided by after that, ``(channels,)``.
        labels: file of class names: one a line, or a JSON list.
    """

    source: str | None = None
    published: str | None = None
    network: str | None = None
    channels: str | None = None
    stem_stride: int | None = None
    resolution: int | None = None
    resize: int | None = None
    interpolation: str | None = None
    antialias: bool | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    labels: Path | None = None


def import_weights(
    file: Path,
    bundle: str | Path,
    options: ImportOptions | None = None,
    *,
    location: str | None = None,
    replace_existing: bool = False,
) -> Bundle:
    """Make a bundle of a weight file, and return it.

    Where the file has its name in a repository of the hub (``model.safetensors``, ``pytorch_model.bin``), preprocessing
    and class names are read from ``config.json`` beside it.

    Args:
        file: weights of pycls, timm, torchvision, Classy Vision, VISSL, transformers or mmpretrain.
        bundle: folder of the bundle.
        options: what the file does not say.
        location: where it was downloaded from.
        replace_existing: start anew where the folder is a bundle that holds weights.

    Raises:
        DataError: the file cannot be read, is damaged, or does not hold a RegNet.
        UsageError: an option is not valid, or does not fit the file.
        BundleError: the bundle cannot be written, or holds weights.
    """
    options = options or ImportOptions()
    if options.channels is None and file.match("weights-*.safetensors") and file.with_name(MANIFEST).exists():
        raise UsageError(
            f"{file} is a part of the bundle {file.parent}, and not of pycls, whose names it has: give the bundle to "
            "other commands, or add --channels rgb"
        )
    published = None if options.published in (None, NO_PUBLIC) else find_weights(options.published)
    foreign = read_foreign_weights(
        file,
        source=options.source or (published.source if published else None),
        channels=options.channels,
        stem_stride=options.stem_stride,
        named_by="--from" if options.source or not published else f"--weights {published.name}",
    )
    if options.network is not None:
        _check_network(foreign, options.network, file)
    digest = digest_of(file)
    promised = digest_in_name(file.name)
    if promised is not None and not any(each.startswith(promised) for each in (digest, digest_of(file, "sha1"))):
        raise DataError(
            f"{file} is damaged or was changed: its SHA-256 begins with {digest[:8]}, and its name says {promised}; "
            "download it again, or rename it if you changed it"
        )
    assumptions = list(foreign.assumptions)
    config = read_hub_config(file) or _stored_config(foreign, file)
    entry, assumed = None, False
    if options.published != NO_PUBLIC:
        entry, assumed = _published_entry(foreign, published, file, digest, location, assumptions)
    preprocessing = _preprocessing(foreign, entry, config, options, assumptions)
    if entry is None:
        assumptions += assumed_of_stem(foreign, options.channels, options.stem_stride)
    parts = Manifest(
        architecture=_architecture(foreign, preprocessing.crop),
        preprocessing=preprocessing,
        labels=_labels(foreign.classes, options.labels, config, assumptions),
        imported=WeightsOrigin(
            file=file.name,
            sha256=digest,
            source=foreign.source,
            container=foreign.file.container,
            published=entry.name if entry else None,
            license=entry.license if entry else config.license,
            location=location,
            assumed=assumed or None,
            top1_percent=entry.top1_percent if entry else None,
            top1_setting=entry.top1_setting if entry else None,
            assumptions=tuple(assumptions),
            remarks=(*foreign.file.remarks, *(() if entry else config.remarks)),
        ),
        environment=environment("import"),
    )
    return create_bundle(bundle, parts, {FILE: weights_to_bytes(foreign.state)}, replace=replace_existing)


def _stored_config(foreign: ForeignWeights, file: Path) -> HubConfig:
    """Return what the file itself says of its test, as those of pycls do, and those that this program exports."""
    sizes = sizes_of_test(foreign.file.metadata) if foreign.source == "pycls" else None
    if sizes is None:
        return stated_in(foreign.file.metadata, file)[0]
    return HubConfig(resize=sizes[0], resolution=sizes[1])


def _check_network(foreign: ForeignWeights, name: str, file: Path) -> None:
    wanted, found = find_published(name), foreign.network
    if not _same(wanted.network, found):
        wanted_text, found_text = (
            f"{net.family.upper()}, depths {' '.join(map(str, net.depths))}, widths {' '.join(map(str, net.widths))}, "
            f"group widths {' '.join(map(str, net.group_widths))}"
            for net in (wanted.network, found)
        )
        raise UsageError(
            f"{file} does not have the network of {name} ({wanted_text}), but {found_text}: `regnet-deploy import` "
            "takes it as it is"
        )


def _published_entry(
    foreign: ForeignWeights,
    named: PublicWeights | None,
    file: Path,
    digest: str,
    location: str | None,
    assumptions: list[str],
) -> tuple[PublicWeights | None, bool]:
    """Return the public weights that a file is, and whether its name alone says so; None where nothing says so."""
    if named is not None:
        if named not in weights_of(named.source, foreign.network, foreign.classes):
            raise UsageError(f"{file} does not have the network of {named.name}: omit --weights")
        if named.sha256_prefix and not digest.startswith(named.sha256_prefix):
            raise DataError(
                f"{file} is not {named.name}: its SHA-256 begins with {digest[:8]}, not with {named.sha256_prefix}; "
                "omit --weights if you trained it further"
            )
        return named, False
    there = weights_at(location) if location else None
    if there is not None:
        if there in weights_of(there.source, foreign.network, foreign.classes):
            return there, False
        assumptions.append(
            f"{location} is the place of {there.name}, and the file does not have its network: it is taken for another"
        )
    proved = with_digest(digest, os.path.getsize(file))
    if proved is not None:
        return proved, False
    alike = weights_of(foreign.source, foreign.network, foreign.classes)
    called = with_name(file.name, alike)
    if called is not None:
        proved_by_name = digest_in_name(file.name) is not None  # which was compared with the file
        if not proved_by_name:
            assumptions.append(
                f"by its name, the file is taken for {called.name}, whose digest is not published: --weights "
                f"{called.name} says that it is, --weights {NO_PUBLIC} that it is not"
            )
        return called, not proved_by_name
    if alike:
        names = ", ".join(f"{each.name} ({each.license})" if each.non_commercial else each.name for each in alike)
        assumptions.append(
            f"the file is not taken for public weights of this network ({names}): if it is, --weights NAME sets their "
            "preprocessing, license and accuracy"
        )
    return None, False


def _preprocessing(
    foreign: ForeignWeights,
    entry: PublicWeights | None,
    config: HubConfig,
    options: ImportOptions,
    assumptions: list[str],
) -> Preprocessing:
    """Return how images are prepared: as the options say, else the published test, else config.json, else a default."""
    share, usual = _DEFAULT_TEST[foreign.source]
    resolution = (entry or config).resolution or options.resolution or _DEFAULT_RESOLUTION
    if foreign.source == OWN:  # where small images are not cropped
        share = default_preprocessing(resolution).resize / resolution
    resize = (entry or config).resize or round(resolution * share)
    if options.resolution is not None and options.resolution != resolution:
        resize = round(resize * options.resolution / resolution)
        resolution = options.resolution
    channels = foreign.network.input_channels
    given = _normalization(options, config, channels, assumptions)
    said: dict[str, Any] = {
        "resolution": resolution if options.resolution or (entry or config).resolution else None,
        "resize": options.resize or (resize if (entry or config).resize else None),
        "interpolation": options.interpolation or (entry or config).interpolation,
        "mean": options.mean or (None if entry else given["mean"]),
        "std": options.std or (None if entry else given["std"]),
    }
    interpolation: Any = said["interpolation"] or usual
    antialias = config.antialias if options.antialias is None else options.antialias
    if antialias is None:  # ffcv averages pixels, too
        opencv = foreign.source in _OPENCV and not uses_ffcv(foreign.file.metadata)
        antialias = not opencv or interpolation != "bilinear"
    known = [value for name, value in said.items() if entry is None or name not in ("mean", "std")]
    if None in known:
        filtering = interpolation if antialias else f"{interpolation} without antialiasing"
        text = f"short side {said['resize'] or resize}, center {resolution}, {filtering}"
        normal = (
            ""
            if entry or (said["mean"] and said["std"])
            else f", mean and deviation of {'gray' if channels == 1 else 'ImageNet'}"
        )
        named = ", ".join(f"--{name}" for name in (*said, "antialias"))
        assumptions.append(
            f"preprocessing as in the default test of {foreign.source} ({text}{normal}): {named} set what differs"
        )
    if (said["resize"] or resize) < resolution:
        raise UsageError(f"--resize {options.resize} is smaller than the input of the network, {resolution} pixels")
    if not antialias and interpolation != "bilinear":
        raise UsageError(f"--no-antialias goes with --interpolation bilinear, and not with {interpolation}")
    normalization = {name: said[name] for name in ("mean", "std") if said[name]}
    return default_preprocessing(resolution, channels).replace(
        resize=said["resize"] or resize,
        interpolation=interpolation,
        scaled_decoding=antialias,  # pixels of a JPEG that is decoded at a smaller size are averages
        antialias=antialias,
        **normalization,
    )


def _normalization(
    options: ImportOptions, config: HubConfig, channels: int, assumptions: list[str]
) -> dict[str, tuple[float, ...] | None]:
    """Return mean and deviation of config.json: one value for each channel that the network takes, or None.

    Raises:
        UsageError: an option has values of another number of channels.
    """
    stated: dict[str, tuple[float, ...] | None] = {"mean": config.mean, "std": config.std}
    for name in stated:
        option, values = getattr(options, name), stated[name]
        if option is not None and len(option) != channels:
            wanted = "one number, because the network takes gray images" if channels == 1 else "three numbers"
            raise UsageError(f"--{name} must have {wanted}, got {', '.join(f'{value:g}' for value in option)}")
        if values is not None and len(values) == 1:
            stated[name] = values * channels  # as timm takes it
        elif values is not None and len(values) != channels:
            assumptions.append(
                f"config.json has {len(values)} values of {name} for {channels} channel{'s' * (channels > 1)}: "
                "not taken"
            )
            stated[name] = None
    return stated


def _architecture(foreign: ForeignWeights, resolution: int) -> Architecture:
    network = foreign.network
    published = next((one for one in published_networks() if _same(one.network, network)), None)
    ratios, groups = set(network.bottlenecks), set(network.group_widths)
    generated: dict[str, Any] = {
        "w_0": published.w_0 if published else None,
        "w_a": published.w_a if published else None,
        "w_m": published.w_m if published else None,
        "b": ratios.pop() if len(ratios) == 1 else None,
        "g": published.g if published else groups.pop() if len(groups) == 1 else None,
    }
    name = published.architecture_name if published else _name(network, resolution, foreign.classes)
    return Architecture.of(network, name=name, classes=foreign.classes, resolution=resolution, **generated)


def _same(one: Network, other: Network) -> bool:
    return replace(one, stem_stride=2) == replace(other, stem_stride=2)


def _name(network: Network, resolution: int, classes: int) -> str:
    macs = int(network_complexity(network, resolution, classes).total.macs)
    size = f"{macs / 1e9:.1f}GF" if macs >= 1e9 else f"{macs / 1e6:.0f}MF"
    return f"RegNet{network.family.upper()}-{size}"


def _labels(classes: int, file: Path | None, config: HubConfig, assumptions: list[str]) -> tuple[str, ...]:
    if file is not None:
        return _read_labels(file, classes)
    known = class_names(classes)
    if len(config.labels) == classes and config.labels != tuple(synset for synset, _ in known):
        return config.labels
    if config.labels and len(config.labels) != classes:
        names = "class name" if len(config.labels) == 1 else "class names"
        assumptions.append(
            f"config.json has {len(config.labels)} {names}, and the network {classes} outputs: they are not taken"
        )
    if known:
        assumptions.append(
            f"{classes:,} outputs are taken for the classes of ImageNet in the order of their synsets: --labels FILE "
            "names other classes"
        )
    return tuple(name for _, name in known)


def _read_labels(file: Path, classes: int) -> tuple[str, ...]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from None
    names: Any = [line.strip() for line in text.splitlines() if line.strip()]
    if text.lstrip().startswith(("[", "{")):
        try:
            names = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file} is not JSON: {error}") from None
        names = _from_mapping(names) if isinstance(names, Mapping) else names
    if not isinstance(names, Sequence) or not all(isinstance(name, str) and name for name in names):
        raise DataError(f"{file} is no list of class names: write one a line, or a JSON list of texts")
    if len(names) != classes:
        raise DataError(f"{file} has {len(names)} class names, and the network has {classes} outputs")
    repeated = first_repeated(names)
    if repeated is not None:
        raise DataError(f"{file} names the class {repeated!r} twice: every class needs a name of its own")
    return tuple(names)


def _from_mapping(names: Mapping[str, Any]) -> list[Any]:
    """Return the names of ``{"0": "cat", ...}``, as in ``id2label`` of transformers, in the order of their numbers."""
    if "id2label" in names and isinstance(names["id2label"], Mapping):
        names = names["id2label"]
    return [names[key] for key in sorted(names, key=lambda key: (len(key), key))]
