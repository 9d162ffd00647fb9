"""Datasets from folders of images: classes, usable images, and the split into training and validation images.

Two layouts are read: ``train/`` and ``val/`` (or ``valid``, ``validation``) with a folder per class in each, or class
folders alone, of which a share is held out. Names that start with a dot are ignored. ``test/`` is never read: the best
epoch is chosen on the validation images, so a result on the same images would not be a test.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from regnet_deploy.errors import DataError
from regnet_deploy.images.image_check import ImageCheck
from regnet_deploy.images.image_source import FolderSource, ImageSource

TRAIN = "train"
#: Folder names that stand for validation beside ``train``, the first that is there.
VAL = ("val", "valid", "validation")
DEFAULT_VAL_SPLIT = 0.1


@dataclass(frozen=True)
class ImageListing:
    """Images by class, before any of them is opened.

    Attributes:
        source: the images of all classes, of ``train`` and then of ``val``.
        train: class name -> names of its training images in ``source``, sorted.
        val: the same for validation images; None if a share of ``train`` is to be held out.
        stray: files outside the class folders.
        ignored: folders that are neither for training nor for validation.
    """

    source: ImageSource
    train: Mapping[str, tuple[str, ...]]
    val: Mapping[str, tuple[str, ...]] | None
    stray: tuple[str, ...]
    ignored: tuple[str, ...] = ()

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
        DataError: no such folder, no class folders, classes for validation alone, or a folder that cannot be read.
    """
    folder = Path(root).absolute()  # loading processes on other machines start in other folders
    if not os.path.isdir(folder):
        state = "is a file" if os.path.exists(folder) else "does not exist"
        raise DataError(f"no image folder at {folder}: it {state}")
    folders = {name.lower(): name for name in _folders(folder)}
    if TRAIN not in folders or _is_class(folder, folders):
        train, stray = _classes(folder, "")
        return _listing(folder, _some(train, folder), None, stray)
    train, stray = _classes(folder, folders[TRAIN])
    _some(train, folder / folders[TRAIN])
    found = next((folders[name] for name in VAL if name in folders), None)
    if found is None:
        return _listing(folder, train, None, stray, _beside(folders, folders[TRAIN]))
    val, stray_val = _classes(folder, found)
    _some(val, folder / found)
    if not any(val.values()):
        raise DataError(f"{folder / found} has class folders and no files in them: add images, or remove it")
    unknown = sorted(set(val) - set(train))
    if unknown:
        raise DataError(
            f"{folder / found} has {len(unknown)} class(es) that {folder / folders[TRAIN]} has not: "
            f"{', '.join(unknown[:5])}{', ...' if len(unknown) > 5 else ''}; both need the same class folders"
        )
    return _listing(folder, train, val, stray + stray_val, _beside(folders, folders[TRAIN], found))


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
    rejected.update(dict.fromkeys(listing.stray, "not in a class folder"))
    rejected.update({f"{name}/": "neither for training nor for validation" for name in listing.ignored})
    digest = _digest({"train": train, "val": val}, source, classes, checked)
    return ImageDataset(source, classes, tuple(train), tuple(val), dict(sorted(rejected.items())), split, digest)


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


def _listing(
    folder: Path,
    train: Mapping[str, tuple[str, ...]],
    val: Mapping[str, tuple[str, ...]] | None,
    stray: tuple[str, ...],
    ignored: tuple[str, ...] = (),
) -> ImageListing:
    names = tuple(name for subset in (train, val or {}) for files in subset.values() for name in files)
    return ImageListing(FolderSource(folder, names), train, val, stray, ignored)


def _is_class(folder: Path, folders: Mapping[str, str]) -> bool:
    """Tell whether ``train`` is a class among others: the vehicle, not the word."""
    others = [name for name in folders if name != TRAIN]
    return bool(others) and not set(others) & {*VAL, "test"} and not _folders(folder / folders[TRAIN])


def _beside(folders: Mapping[str, str], *used: str) -> tuple[str, ...]:
    return tuple(sorted(set(folders.values()) - set(used)))


def _folders(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"cannot read {folder}: {error.strerror}") from None


def _classes(root: Path, below: str) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """Return the files of each class folder in ``root / below``, and the files beside the class folders."""
    base = root / below
    names = _folders(base)
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(f"the class folder {name!a} in {base} has a name that is not UTF-8: rename it") from None
    classes = {name: tuple(sorted(_files(base / name, root))) for name in names}
    stray = sorted(
        Path(below, entry.name).as_posix()
        for entry in os.scandir(base)
        if not entry.is_dir() and not entry.name.startswith(".")
    )
    return classes, tuple(stray)


def _files(folder: Path, root: Path) -> Iterable[str]:
    def refuse(error: OSError) -> None:
        raise DataError(f"cannot read {error.filename}: {error.strerror}")

    for where, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if not name.startswith("."):
                yield Path(where, name).relative_to(root).as_posix()


def _some(classes: dict[str, tuple[str, ...]], where: Path) -> dict[str, tuple[str, ...]]:
    if not classes:
        raise DataError(
            f"{where} has no class folders: put the images into one folder per class, "
            "DIR/<class>/... or DIR/train/<class>/... and DIR/val/<class>/..."
        )
    return classes


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
