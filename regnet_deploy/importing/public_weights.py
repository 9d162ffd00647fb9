"""The public weights of RegNets, from ``profiles/public_weights.csv``, and how a file is recognized as one of them."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from regnet_deploy.bundle.manifest import forbids_commercial_use
from regnet_deploy.errors import UsageError, did_you_mean
from regnet_deploy.space.network import Network
from regnet_deploy.space.published import data_folder, find_published


@dataclass(frozen=True)
class PublicWeights:
    """One set of public weights.

    Attributes:
        name: such as ``regnet_y_400mf.IMAGENET1K_V2`` (torchvision), ``regnety_016.tv2_in1k`` (timm) or
            ``RegNetX-200MF.pycls``.
        source: the library.
        network: name of the network.
        location: https address, or ``hf:`` and the name of a repository of the Hugging Face hub.
        sha256_prefix: first digits of the SHA-256 of the file; "" where it is not published.
        bytes: size of the file; None where it is not published.
        license: of the weights.
        classes: number of outputs.
        resolution: pixels a side of the network's input in the published test.
        resize: short side of the image before the central crop, pixels; None where it is not published.
        interpolation: ``bilinear`` or ``bicubic``.
        top1_percent: published top-1 accuracy on the validation images of ImageNet-1k; None where there is none.
        top1_setting: where the accuracy is published.
    """

    name: str
    source: str
    network: str
    location: str
    sha256_prefix: str
    bytes: int | None
    license: str
    classes: int
    resolution: int
    resize: int | None
    interpolation: str
    top1_percent: float | None
    top1_setting: str

    @property
    def file_name(self) -> str:
        """Name of the file."""
        return "model.safetensors" if self.location.startswith("hf:") else self.location.rpartition("/")[2]

    @property
    def non_commercial(self) -> bool:
        """Whether the license forbids commercial use."""
        return forbids_commercial_use(self.license)


@lru_cache(maxsize=1)
def public_weights() -> tuple[PublicWeights, ...]:
    """Return all sets of public weights, in the order of their sources."""
    with open(data_folder() / "public_weights.csv", newline="", encoding="utf-8") as file:
        return tuple(_entry(row) for row in csv.DictReader(file))


def find_weights(name: str) -> PublicWeights:
    """Return the weights of a name; ``hf:timm/...`` and ``timm/...`` are names too.

    Raises:
        UsageError: no public weights have this name.
    """
    wanted = name.removeprefix("hf:").removeprefix("timm/").lower()
    known = {entry.name.lower(): entry for entry in public_weights()}
    if wanted not in known:
        names = {entry.name: entry for entry in public_weights()}
        raise UsageError(
            f"no public weights {name!r}{did_you_mean(name, names)}; `regnet-deploy weights` lists all of them"
        )
    return known[wanted]


def weights_at(location: str) -> PublicWeights | None:
    """Return the public weights of an address, or of ``hf:OWNER/NAME``; None where it is the place of none."""
    repository = (
        location.partition("@")[0].removesuffix("/model.safetensors") if location.startswith("hf:") else location
    )
    return next((entry for entry in public_weights() if entry.location == repository), None)


def weights_of(source: str, network: Network, classes: int) -> tuple[PublicWeights, ...]:
    """Return the public weights of a network: a file of it may be one of them, or may be anybody's.

    Args:
        source: the library, by the names of the tensors.
        network: the network.
        classes: number of outputs.
    """
    return tuple(
        entry
        for entry in public_weights()
        if entry.source == source and entry.classes == classes and _stages(entry.network) == _key(network)
    )


def with_digest(sha256: str, size: int) -> PublicWeights | None:
    """Return the public weights of a file by its SHA-256 and its size, bytes; None if no digest is published."""
    return next(
        (
            entry
            for entry in public_weights()
            if entry.sha256_prefix and sha256.startswith(entry.sha256_prefix) and entry.bytes in (None, size)
        ),
        None,
    )


def with_name(file_name: str, entries: Iterable[PublicWeights]) -> PublicWeights | None:
    """Return the public weights that a file is called after: by their name, or by the published name of their file.

    None where the digest of those is published, which tells what the file is; and for the names that files of every
    repository of the hub have.
    """
    stem = file_name.rpartition(".")[0].lower()
    return next(
        (
            entry
            for entry in entries
            if not entry.sha256_prefix
            and (
                stem == entry.name.lower()
                or (not entry.location.startswith("hf:") and file_name in _file_names(entry.file_name))
            )
        ),
        None,
    )


def _file_names(published: str) -> tuple[str, ...]:
    return published, published.removesuffix(".zip")


def digest_in_name(file_name: str) -> str | None:
    """Return the digits of the SHA-256 that a file name of PyTorch ends in, such as ``e6988f5f``."""
    found = re.search(r"-([0-9a-f]{8,64})\.\w+\Z", file_name)
    return found[1] if found else None


@lru_cache(maxsize=256)
def _stages(name: str) -> tuple[object, ...]:
    return _key(find_published(name).network)


def _key(network: Network) -> tuple[object, ...]:
    return (
        network.depths,
        network.widths,
        network.group_widths,
        network.bottlenecks,
        network.se_ratio,
        network.input_channels,
    )


def _entry(row: dict[str, str]) -> PublicWeights:
    return PublicWeights(
        name=row["name"],
        source=row["source"],
        network=row["network"],
        location=row["location"],
        sha256_prefix=row["sha256_prefix"],
        bytes=int(row["bytes"]) if row["bytes"] else None,
        license=row["license"],
        classes=int(row["classes"]),
        resolution=int(row["resolution"]),
        resize=int(row["resize"]) if row["resize"] else None,
        interpolation=row["interpolation"],
        top1_percent=float(row["top1_percent"]) if row["top1_percent"] else None,
        top1_setting=row["top1_setting"],
    )
