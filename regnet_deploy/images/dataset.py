"""Datasets from folders and tables: classes, usable images, and the split into images to train, validate and test on.

Two layouts are read: ``train/``, ``val/`` and ``test/``, or other usual names, with a folder per class in each
(:mod:`regnet_deploy.images.layout`); or class folders alone, of which shares are held out. Images to test on have one
purpose, the accuracy of what was chosen on the validation images: where it is not reported, ``test/`` is not read.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from regnet_deploy.errors import DataError
from regnet_deploy.images.findings import dataset_findings
from regnet_deploy.images.hold_out import Shares, hold_out
from regnet_deploy.images.image_check import ImageCheck
from regnet_deploy.images.image_source import ImageSource
from regnet_deploy.images.listing import ImageListing

DEFAULT_VAL_SPLIT = 0.1


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """A usable image: its index in the source, the index of its class, its width and height in pixels."""

    index: int
    label: int
    width: int
    height: int


@dataclass(frozen=True)
class ImageDataset:
    """Images to train, validate and test on, checked and split.

    Attributes:
        source: where the images are read from.
        classes: class names, sorted; a label is an index into them.
        train: training images, sorted by name.
        val: validation images, sorted by name.
        rejected: name of an image that cannot be used -> reason.
        split: where the validation images come from, in words.
        digest: sha256 over subset, name, size and content of every usable image to train on or validate with.
        findings: what is wrong with the usable images, a sentence each.
        test: images to test on, sorted by name; empty if there are none.
        test_split: where they come from, in words; empty likewise.
        test_digest: sha256 of them, as ``digest``; empty likewise.
        train_split: the folder that has the training images, or their split in a table; "" is all of it.
    """

    source: ImageSource
    classes: tuple[str, ...]
    train: tuple[LabelledImage, ...]
    val: tuple[LabelledImage, ...]
    rejected: Mapping[str, str]
    split: str
    digest: str
    findings: tuple[str, ...] = ()
    test: tuple[LabelledImage, ...] = ()
    test_split: str = ""
    test_digest: str = ""
    train_split: str = ""

    @property
    def holds_val_out(self) -> bool:
        """Whether the validation images were held out of the training images."""
        return "held out" in self.split

    @property
    def holds_test_out(self) -> bool:
        """Whether the images to test on were held out of the training images; False also if there are none."""
        return "held out" in self.test_split

    def name(self, image: LabelledImage) -> str:
        """Return the name of an image in the source."""
        return self.source.names[image.index]

    def counts(self, images: Sequence[LabelledImage]) -> tuple[int, ...]:
        """Return how many of these images each class has, in the order of the classes."""
        counts = Counter(image.label for image in images)
        return tuple(counts[label] for label in range(len(self.classes)))

    def classes_without(self, images: Sequence[LabelledImage]) -> list[str]:
        """Return the classes that none of these images is of."""
        return [name for name, count in zip(self.classes, self.counts(images), strict=True) if not count]


def build_dataset(
    listing: ImageListing,
    checked: Mapping[str, ImageCheck],
    *,
    val_split: float = DEFAULT_VAL_SPLIT,
    test_split: float | None = None,
    seed: int = 0,
) -> ImageDataset:
    """Select the usable images, and hold a share of them out if there are no validation images.

    Args:
        listing: the images.
        checked: name -> result of the check, for each of them.
        val_split: share of each class to hold out, if the listing has no validation images.
        test_split: share of each class to hold out to test on, of a listing that has no such images; None is none.
        seed: decides which images are held out.

    Raises:
        DataError: a class without a usable training image, or no image left for validation, or to test on.
    """
    source, classes = listing.source, tuple(sorted(listing.train))
    indices = {name: index for index, name in enumerate(source.names)}
    train, val, test = (
        _usable(split, classes, checked, indices) for split in (listing.train, listing.val, listing.test)
    )
    shares = Shares(0.0 if listing.val is not None else val_split, test_split or 0.0)
    held_out = hold_out([image.label for image in train], shares, seed)
    if listing.val is None:
        val = [train[i] for i in sorted(held_out[0])]
    if test_split is not None:
        test = [train[i] for i in sorted(held_out[1])]
    train = [image for i, image in enumerate(train) if i not in held_out[0] | held_out[1]]
    split = listing.origin("val") if listing.val is not None else _held_out(val_split, seed)
    test_origin = listing.origin("test") if listing.test is not None else _held_out(test_split, seed)
    counts = Counter(image.label for image in train)
    for label, name in enumerate(classes):
        if not counts[label]:
            raise DataError(f"class {name} has no usable training image{_example(listing.train[name], checked)}")
    if not val:
        raise DataError(f"{listing.root} has no usable image for validation ({split}): add images to it")
    if test_origin and not test:
        raise DataError(f"{listing.root} has no usable image to test on ({test_origin}): add images to it")
    rejected = {name: checked[name].reason for name in source.names if checked[name].reason}
    rejected.update(listing.left_out)
    subsets = {"train": train, "val": val, "test": test}
    checks = {
        subset: {source.names[image.index]: checked[source.names[image.index]] for image in images}
        for subset, images in subsets.items()
    }
    labels = {source.names[image.index]: classes[image.label] for images in subsets.values() for image in images}
    findings = dataset_findings(checks["train"], checks["val"], labels, checks["test"])
    return ImageDataset(
        source,
        classes,
        tuple(train),
        tuple(val),
        dict(sorted(rejected.items())),
        split,
        _digest({"train": train, "val": val}, source, classes, checked),
        (*listing.notes, *(each.line for each in findings)),
        tuple(test),
        test_origin,
        _digest({"test": test}, source, classes, checked) if test else "",
        listing.shown_folder("train"),
    )


def stratified_order(labels: Sequence[int], seed: int) -> list[int]:
    """Return all indices in a seeded order that takes one of each class, then a second of each, and so on.

    So any number of images from the start of the order is spread evenly over the classes.
    """
    rng = np.random.default_rng(seed)
    seen: Counter[int] = Counter()
    rounds = []
    for index in rng.permutation(len(labels)).tolist():
        rounds.append((seen[labels[index]], index))
        seen[labels[index]] += 1
    return [index for _, index in sorted(rounds, key=lambda each: each[0])]


def _held_out(share: float | None, seed: int) -> str:
    """Return in words which images are held out; empty if none are."""
    return "" if share is None else f"{share:.0%} of each class held out (seed {seed})"


def _usable(
    classes_of_names: Mapping[str, tuple[str, ...]] | None,
    classes: tuple[str, ...],
    checked: Mapping[str, ImageCheck],
    indices: Mapping[str, int],
) -> list[LabelledImage]:
    usable = [
        (name, LabelledImage(indices[name], label, checked[name].width, checked[name].height))
        for label, folder in enumerate(classes)
        for name in (classes_of_names or {}).get(folder, ())
        if not checked[name].reason
    ]
    return [image for _, image in sorted(usable, key=lambda each: each[0])]


def _example(paths: tuple[str, ...], checked: Mapping[str, ImageCheck]) -> str:
    reasons = [f"{path}: {checked[path].reason}" for path in paths if checked[path].reason]
    return f" ({len(paths)} files, for example {reasons[0]})" if reasons else " (its folder is empty)"


def _digest(
    subsets: Mapping[str, list[LabelledImage]],
    source: ImageSource,
    classes: tuple[str, ...],
    checked: Mapping[str, ImageCheck],
) -> str:
    digest = hashlib.sha256()
    for subset, images in subsets.items():
        for image in images:
            name = source.names[image.index]
            entry = checked[name]
            line = f"{subset}\0{classes[image.label]}\0{name}\0{entry.size}\0{entry.sha256}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
