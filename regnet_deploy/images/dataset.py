"""Datasets from folders of images: classes, usable images, and the split into training and validation images.

Two layouts are read: ``train/`` and ``val/``, or other usual names, with a folder per class in each
(:mod:`regnet_deploy.images.layout`); or class folders alone, of which a share is held out. ``test/`` is never read: the
best epoch is chosen on the validation images, so a result on the same images would not be a test.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from regnet_deploy.errors import DataError
from regnet_deploy.images.decode import SUFFIXES
from regnet_deploy.images.findings import dataset_findings
from regnet_deploy.images.folder_files import entries, files_below
from regnet_deploy.images.image_check import ImageCheck
from regnet_deploy.images.image_source import FolderSource, ImageSource
from regnet_deploy.images.layout import Layout, ensure_no_splits_in_classes, find_layout, find_split
from regnet_deploy.images.names import shortened

DEFAULT_VAL_SPLIT = 0.1


@dataclass(frozen=True)
class ImageListing:
    """Images by class, before any of them is opened.

    Attributes:
        source: the images of all classes, of ``train`` and then of ``val``.
        train: class name -> names of its training images in ``source``, sorted.
        val: the same for validation images; None if a share of ``train`` is to be held out.
        left_out: files, and folders with ``/`` at their end, that are not used -> reason.
        notes: what to say of the reading of the folder, a sentence each.
    """

    source: ImageSource
    train: Mapping[str, tuple[str, ...]]
    val: Mapping[str, tuple[str, ...]] | None
    left_out: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def root(self) -> Path:
        """Folder that holds the images."""
        return self.source.root


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """A usable image: its index in the source, the index of its class, its width and height in pixels."""

    index: int
    label: int
    width: int
    height: int


@dataclass(frozen=True)
class ImageDataset:
    """Images for training and validation, checked and split.

    Attributes:
        source: where the images are read from.
        classes: class names, sorted; a label is an index into them.
        train: training images, sorted by name.
        val: validation images, sorted by name.
        rejected: name of an image that cannot be used -> reason.
        split: where the validation images come from, in words.
        digest: sha256 over subset, name, size and content of every usable image.
        findings: what is wrong with the usable images, a sentence each.
    """

    source: ImageSource
    classes: tuple[str, ...]
    train: tuple[LabelledImage, ...]
    val: tuple[LabelledImage, ...]
    rejected: Mapping[str, str]
    split: str
    digest: str
    findings: tuple[str, ...] = ()

    def name(self, image: LabelledImage) -> str:
        """Return the name of an image in the source."""
        return self.source.names[image.index]

    def counts(self, images: Sequence[LabelledImage]) -> tuple[int, ...]:
        """Return how many of these images each class has, in the order of the classes."""
        counts = Counter(image.label for image in images)
        return tuple(counts[label] for label in range(len(self.classes)))

    @property
    def classes_without_val(self) -> list[str]:
        """Classes without a validation image."""
        return [name for name, count in zip(self.classes, self.counts(self.val), strict=True) if not count]


def list_images(root: str | Path) -> ImageListing:
    """Find the class folders in ``root`` and all files below them.

    Raises:
        DataError: no such folder, no class folders, names that can be read in two ways, classes for validation alone,
            or a folder that cannot be read.
    """
    folder = absolute_folder(root)
    layout = find_layout(folder, entries(folder).folders)
    train, left_out = class_files(folder, layout.train)
    if layout.train:
        left_out |= beside_splits(folder, layout)
    else:
        ensure_no_splits_in_classes(
            folder, {name: [file[len(name) + 1 :] for file in files] for name, files in train.items()}
        )
    notes = layout.notes + _case_notes(train)
    if layout.val is None:
        return _listing(folder, train, None, left_out, notes)
    found, left_out_val = class_files(folder, layout.val)
    val = _spelled_alike(found, train)
    if not any(val.values()):
        raise DataError(f"{folder / layout.val} has class folders and no files in them: add images, or remove it")
    unknown = sorted(set(val) - set(train))
    if unknown:
        raise DataError(
            f"{folder / layout.val} has {len(unknown)} class(es) that {folder / layout.train} has not: "
            f"{shortened(unknown)}; both need the same class folders"
        )
    return _listing(folder, train, val, left_out | left_out_val, notes)


def list_split(root: str | Path, split: str | None = None) -> ImageListing:
    """Find the class folders of one split of ``root``, and all files below them, as ``train`` of the listing.

    Args:
        root: the data set.
        split: ``train``, ``val`` or ``test``; None is the first of ``test`` and ``val`` that exists, else ``root``.

    Raises:
        DataError: no such folder or split, several folders of it, no class folders, or a folder that cannot be read.
    """
    folder = absolute_folder(root)
    below = find_split(folder, entries(folder).folders, split)
    classes, left_out = class_files(folder, below)
    return _listing(folder, classes, None, left_out, _case_notes(classes))


def ensure_several_classes(listing: ImageListing) -> None:
    """Refuse a folder with one class folder, and suggest the one below if its classes are there.

    Raises:
        DataError: there is one class folder.
    """
    if len(listing.train) > 1:
        return
    (only,) = listing.train
    below = {name.split("/")[1] for name in listing.train[only] if name.count("/") > 1} if listing.val is None else ()
    hint = f"; did you mean --data {listing.root / only}?" if len(below) > 1 else ""
    raise DataError(f"{listing.root} has one class folder, {only}: a classifier needs two or more{hint}")


def spelled_as(listing: ImageListing, labels: Sequence[str]) -> ImageListing:
    """Return a listing with its classes spelled as these labels, where only the form of Unicode is another."""
    like = dict.fromkeys(labels, ())
    val = None if listing.val is None else _spelled_alike(listing.val, like)
    return replace(listing, train=_spelled_alike(listing.train, like), val=val)


def build_dataset(
    listing: ImageListing, checked: Mapping[str, ImageCheck], *, val_split: float = DEFAULT_VAL_SPLIT, seed: int = 0
) -> ImageDataset:
    """Select the usable images, and hold a share of them out if there are no validation images.

    Args:
        listing: the images.
        checked: name -> result of the check, for each of them.
        val_split: share of each class to hold out, if the listing has no validation images.
        seed: decides which images are held out.

    Raises:
        DataError: a class without a usable training image, or no image left for validation.
    """
    source, classes = listing.source, tuple(sorted(listing.train))
    indices = {name: index for index, name in enumerate(source.names)}
    train = _usable(listing.train, classes, checked, indices)
    if listing.val is not None:
        val = _usable(listing.val, classes, checked, indices)
        split = f"{Path(next(name for names in listing.val.values() for name in names)).parts[0]}/ of the folder"
    else:
        train, val = _hold_out(train, val_split, seed)
        split = f"{val_split:.0%} of each class held out (seed {seed})"
    counts = Counter(image.label for image in train)
    for label, name in enumerate(classes):
        if not counts[label]:
            raise DataError(f"class {name} has no usable training image{_example(listing.train[name], checked)}")
    if not val:
        raise DataError(f"{listing.root} has no usable image for validation ({split}): add images to it")
    rejected = {name: checked[name].reason for name in source.names if checked[name].reason}
    rejected.update(listing.left_out)
    digest = _digest({"train": train, "val": val}, source, classes, checked)
    named = [(source.names[image.index] for image in images) for images in (train, val)]
    checks = [{name: checked[name] for name in names} for names in named]
    labels = {source.names[image.index]: classes[image.label] for image in (*train, *val)}
    findings = (*listing.notes, *(each.line for each in dataset_findings(checks[0], checks[1], labels)))
    rejected = dict(sorted(rejected.items()))
    return ImageDataset(source, classes, tuple(train), tuple(val), rejected, split, digest, findings)


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


def beside_splits(root: Path, layout: Layout) -> dict[str, str]:
    """Return images and folders beside the splits, and beside splits that are nested, with the reason."""
    left_out = {f"{name}/": "neither for training nor for validation" for name in layout.unused}
    nested = (split.split("/")[0] for split in (layout.train, layout.val) if split and "/" in split)
    for below in ("", *nested):
        inside, prefix = entries(root / below), f"{below}/" if below else ""
        left_out.update((prefix + name, reason) for name, reason in inside.left_out.items())
        images = (name for name in inside.files if Path(name).suffix.lower() in SUFFIXES)
        left_out.update(dict.fromkeys((prefix + name for name in images), "not in a class folder"))
    return left_out


def absolute_folder(root: str | Path) -> Path:
    """Return the absolute path of a folder.

    Raises:
        DataError: there is no such folder.
    """
    folder = Path(root).absolute()  # loading processes on other machines start in other folders
    if not os.path.isdir(folder):
        state = "is a file" if os.path.exists(folder) else "does not exist"
        raise DataError(f"no image folder at {folder}: it {state}")
    return folder


def _listing(
    folder: Path,
    train: Mapping[str, tuple[str, ...]],
    val: Mapping[str, tuple[str, ...]] | None,
    left_out: Mapping[str, str],
    notes: tuple[str, ...],
) -> ImageListing:
    names = tuple(name for subset in (train, val or {}) for files in subset.values() for name in files)
    return ImageListing(FolderSource(folder, names), train, val, left_out, notes)


def class_files(root: Path, below: str) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """Return the files of each class folder in ``root / below``, and what is left out there, with reasons.

    Raises:
        DataError: no class folders, names that are not UTF-8 or equal, or a folder that cannot be read.
    """
    base, prefix = root / below, f"{below}/" if below else ""
    inside = entries(base)
    if not inside.folders:
        raise DataError(
            f"{base} has no class folders: put the images into one folder per class, "
            "DIR/<class>/... or DIR/train/<class>/... and DIR/val/<class>/..."
        )
    left_out = {prefix + name: reason for name, reason in inside.left_out.items()}
    left_out.update(dict.fromkeys((prefix + name for name in inside.files), "not in a class folder"))
    classes, spellings = {}, dict[str, str]()
    for name in inside.folders:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(f"the class folder {name!a} in {base} has a name that is not UTF-8: rename it") from None
        twin = spellings.setdefault(unicodedata.normalize("NFC", name), name)
        if twin != name:
            raise DataError(
                f"the class folders {twin!a} and {name!a} in {base} have the same name in two forms of Unicode "
                "(NFC and NFD, as of Linux and macOS): move their images into one"
            )
        found = files_below(root, prefix + name)
        classes[name] = tuple(sorted(found.files))
        left_out.update(found.left_out)
    return classes, left_out


def _spelled_alike(
    classes: Mapping[str, tuple[str, ...]], like: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    """Return classes by the names that others have, where these are the same in another form of Unicode."""
    spellings = {unicodedata.normalize("NFC", name): name for name in like}
    return {spellings.get(unicodedata.normalize("NFC", name), name): files for name, files in classes.items()}


def _case_notes(classes: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    names: dict[str, str] = {}
    twins = [(names.setdefault(name.casefold(), name), name) for name in classes]
    return tuple(f"the classes {one} and {name} differ in case alone" for one, name in twins if one != name)


def _usable(
    classes_of_names: Mapping[str, tuple[str, ...]],
    classes: tuple[str, ...],
    checked: Mapping[str, ImageCheck],
    indices: Mapping[str, int],
) -> list[LabelledImage]:
    usable = [
        (name, LabelledImage(indices[name], label, checked[name].width, checked[name].height))
        for label, folder in enumerate(classes)
        for name in classes_of_names.get(folder, ())
        if not checked[name].reason
    ]
    return [image for _, image in sorted(usable, key=lambda each: each[0])]


def _hold_out(images: list[LabelledImage], share: float, seed: int) -> tuple[list[LabelledImage], list[LabelledImage]]:
    """Hold out this share of every class: at least one image if there are two or more, and never all."""
    by_label: dict[int, list[LabelledImage]] = {}
    for image in images:
        by_label.setdefault(image.label, []).append(image)
    held: set[int] = set()
    for label, members in sorted(by_label.items()):
        count = min(len(members) - 1, max(1, round(share * len(members))))
        order = np.random.default_rng((seed, label)).permutation(len(members))
        held.update(members[i].index for i in order[:count])
    return [image for image in images if image.index not in held], [image for image in images if image.index in held]


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
