"""A folder of images as data for training: which classes, which files, which of them are for validation.

Two layouts are read: ``train/`` and ``val/`` (or ``valid``, ``validation``) with a folder per class in each, or class
folders alone, of which a share is held out. Names that start with a dot are left alone everywhere. ``test/`` is never
read: the best epoch is chosen on the validation images, and what chose is no test any more.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from regnet_deploy.errors import DataError
from regnet_deploy.images.image_check import ImageCheck

TRAIN = "train"
#: Folder names that stand for validation beside ``train``, the first that is there.
VAL = ("val", "valid", "validation")
DEFAULT_VAL_SPLIT = 0.1


@dataclass(frozen=True)
class ImageListing:
    """Files by class as they lie in a folder, nothing opened yet.

    Attributes:
        root: the folder.
        train: class name -> paths relative to ``root``, with ``/``, sorted.
        val: the same of the validation folder; None where there is none.
        stray: files outside the class folders.
        ignored: folders beside the training and the validation folder.
    """

    root: Path
    train: Mapping[str, tuple[str, ...]]
    val: Mapping[str, tuple[str, ...]] | None
    stray: tuple[str, ...]
    ignored: tuple[str, ...] = ()

    @property
    def paths(self) -> list[str]:
        """All files in class folders."""
        return [path for subset in (self.train, self.val or {}) for paths in subset.values() for path in paths]


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """A usable image: its path relative to the folder, its class as an index, its side lengths in pixels."""

    path: str
    label: int
    width: int
    height: int


@dataclass(frozen=True)
class ImageDataset:
    """Data for training, checked and split.

    Attributes:
        root: the folder.
        classes: class names, sorted; a label is an index into them.
        train: training images, sorted by path.
        val: validation images, sorted by path.
        rejected: unusable files -> the reason.
        split: where the validation images come from, in words.
        digest: sha256 over subset, path, size and content of every usable image.
    """

    root: Path
    classes: tuple[str, ...]
    train: tuple[LabelledImage, ...]
    val: tuple[LabelledImage, ...]
    rejected: Mapping[str, str]
    split: str
    digest: str

    @property
    def classes_without_val(self) -> list[str]:
        """Classes of which no image is for validation."""
        counts = Counter(file.label for file in self.val)
        return [name for label, name in enumerate(self.classes) if not counts[label]]


def list_images(root: str | Path) -> ImageListing:
    """Find the class folders below ``root`` and the files in them, however deep.

    Raises:
        DataError: no such folder, no class folders, classes for validation alone, or a folder that cannot be read.
    """
    folder = Path(root)
    if not os.path.isdir(folder):
        state = "is a file" if os.path.exists(folder) else "does not exist"
        raise DataError(f"no image folder at {folder}: it {state}")
    folders = {name.lower(): name for name in _folders(folder)}
    if TRAIN not in folders or _is_class(folder, folders):
        train, stray = _classes(folder, "")
        return ImageListing(folder, _some(train, folder), None, stray)
    train, stray = _classes(folder, folders[TRAIN])
    _some(train, folder / folders[TRAIN])
    found = next((folders[name] for name in VAL if name in folders), None)
    if found is None:
        return ImageListing(folder, train, None, stray, _beside(folders, folders[TRAIN]))
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
    return ImageListing(folder, train, val, stray + stray_val, _beside(folders, folders[TRAIN], found))


def build_dataset(
    listing: ImageListing, checked: Mapping[str, ImageCheck], *, val_split: float = DEFAULT_VAL_SPLIT, seed: int = 0
) -> ImageDataset:
    """Put together what was listed and what the check said, and hold images out where there is no validation folder.

    Args:
        listing: the files.
        checked: what the check said of each of them.
        val_split: share of each class to hold out, where the listing has no validation images.
        seed: which images are held out.

    Raises:
        DataError: a class without a usable training image, or no image left for validation.
    """
    classes = tuple(sorted(listing.train))
    train = _usable(listing.train, classes, checked)
    if listing.val is not None:
        val = _usable(listing.val, classes, checked)
        split = f"{Path(next(path for paths in listing.val.values() for path in paths)).parts[0]}/ of the folder"
    else:
        train, val = _hold_out(train, val_split, seed)
        split = f"{val_split:.0%} of each class held out (seed {seed})"
    counts = Counter(file.label for file in train)
    for label, name in enumerate(classes):
        if not counts[label]:
            raise DataError(f"class {name} has no usable training image{_example(listing.train[name], checked)}")
    if not val:
        raise DataError(f"{listing.root} has no usable image for validation ({split}): add images to it")
    rejected = {path: checked[path].reason for path in listing.paths if checked[path].reason}
    rejected.update(dict.fromkeys(listing.stray, "not in a class folder"))
    rejected.update({f"{name}/": "neither for training nor for validation" for name in listing.ignored})
    digest = _digest({"train": train, "val": val}, classes, checked)
    return ImageDataset(listing.root, classes, tuple(train), tuple(val), dict(sorted(rejected.items())), split, digest)


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
    files: Mapping[str, tuple[str, ...]], classes: tuple[str, ...], checked: Mapping[str, ImageCheck]
) -> list[LabelledImage]:
    usable = [
        LabelledImage(path, label, checked[path].width, checked[path].height)
        for label, name in enumerate(classes)
        for path in files.get(name, ())
        if not checked[path].reason
    ]
    return sorted(usable, key=lambda file: file.path)


def _hold_out(files: list[LabelledImage], share: float, seed: int) -> tuple[list[LabelledImage], list[LabelledImage]]:
    """Hold out this share of every class: at least one image of two or more, and never all."""
    by_label: dict[int, list[LabelledImage]] = {}
    for file in files:
        by_label.setdefault(file.label, []).append(file)
    held: set[str] = set()
    for label, members in sorted(by_label.items()):
        count = min(len(members) - 1, max(1, round(share * len(members))))
        order = np.random.default_rng((seed, label)).permutation(len(members))
        held.update(members[i].path for i in order[:count])
    return [file for file in files if file.path not in held], [file for file in files if file.path in held]


def _example(paths: tuple[str, ...], checked: Mapping[str, ImageCheck]) -> str:
    reasons = [f"{path}: {checked[path].reason}" for path in paths if checked[path].reason]
    return f" ({len(paths)} files, for example {reasons[0]})" if reasons else " (its folder is empty)"


def _digest(
    subsets: Mapping[str, list[LabelledImage]], classes: tuple[str, ...], checked: Mapping[str, ImageCheck]
) -> str:
    digest = hashlib.sha256()
    for subset, files in subsets.items():
        for file in files:
            entry = checked[file.path]
            line = f"{subset}\0{classes[file.label]}\0{file.path}\0{entry.size}\0{entry.sha256}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
