"""Labeled images of a source that says itself of which class and split each image is: CSV files, shards, tables."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from regnet_deploy.errors import DataError
from regnet_deploy.images.image_source import ImageSource

#: Splits that are read, in their usual order.
SPLITS = ("train", "val", "test")


class LabeledName(NamedTuple):
    """Name of an image, its class, and its split: ``train``, ``val``, ``test``, or "" where none is said."""

    name: str
    label: str
    split: str = ""


@dataclass(frozen=True)
class ImageTable:
    """Images by split and class, before any of them is opened.

    Attributes:
        source: all images.
        kind: what the images are in, in words, such as ``CSV file``.
        splits: ``train``, ``val`` and ``test``, as far as they are named -> class -> names of its images, sorted. Where
            no split is named, all images are in ``train``.
        named: whether splits are named.
        left_out: name of an image, or of a part of the source -> why it is not used.
        notes: what to say of the reading, a sentence each.
    """

    source: ImageSource
    kind: str
    splits: Mapping[str, Mapping[str, tuple[str, ...]]]
    named: bool = False
    left_out: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def folders(self) -> dict[str, str]:
        """Split -> its name; "" where none is named."""
        return {split: split if self.named else "" for split in self.splits}

    @property
    def train(self) -> Mapping[str, tuple[str, ...]]:
        """Class -> names of its training images.

        Raises:
            DataError: there are none.
        """
        if not self.splits.get("train"):
            has = f"it has {' and '.join(self.splits)} alone" if self.splits else "it has none that can be used"
            raise DataError(f"{self.source.root} has no images to train on: {has}")
        return self.splits["train"]


def image_table(
    source: ImageSource,
    kind: str,
    images: Iterable[LabeledName],
    declared: Iterable[str] = (),
    left_out: Mapping[str, str] | None = None,
    notes: tuple[str, ...] = (),
) -> ImageTable:
    """Sort images by split and class.

    Classes whose names differ only in their form of Unicode are one class, spelled as it comes first.

    Args:
        source: has the images.
        kind: what they are in, in words.
        images: each with its class and its split; in all of them a split is named, or in none.
        declared: splits that are named, also if none of their images can be used.
        left_out: name -> why it is not used.
        notes: what to say of the reading.
    """
    splits: dict[str, dict[str, list[str]]] = {split: {} for split in SPLITS if split in set(declared)}
    named, spellings = bool(splits), dict[str, str]()
    for name, label, split in images:
        plain = unicodedata.normalize("NFC", label)
        spelled = spellings.setdefault(plain, label)
        splits.setdefault(split or "train", {}).setdefault(spelled, []).append(name)
    return ImageTable(
        source,
        kind,
        {split: {label: tuple(sorted(names)) for label, names in sorted(splits[split].items())} for split in splits},
        named,
        left_out or {},
        notes,
    )


def plain_label(value: object) -> str:
    """Return a class name on one line, without space around it. Halves of characters, as JSON may have, are escaped."""
    return " ".join(str(value).split()).encode(errors="backslashreplace").decode()
