"""Lists of the images in a folder, by class and split, before any of them is opened."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from regnet_deploy.errors import DataError, UsageError
from regnet_deploy.images.decode import SUFFIXES
from regnet_deploy.images.folder_files import entries, files_below
from regnet_deploy.images.image_source import FolderSource, ImageSource
from regnet_deploy.images.layout import Layout, ensure_no_splits_in_classes, find_layout, find_split
from regnet_deploy.images.names import shortened


@dataclass(frozen=True)
class ImageListing:
    """Images by class, before any of them is opened.

    Attributes:
        source: the images of all classes, of ``train``, then of ``val``, then of ``test``.
        train: class name -> names of its training images in ``source``, sorted.
        val: the same for validation images; None if a share of ``train`` is to be held out.
        test: the same for images to test on; None if there are none, or if they were not asked for.
        left_out: files, and folders with ``/`` at their end, that are not used -> reason.
        notes: what to say of the reading of the folder, a sentence each.
    """

    source: ImageSource
    train: Mapping[str, tuple[str, ...]]
    val: Mapping[str, tuple[str, ...]] | None
    test: Mapping[str, tuple[str, ...]] | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def root(self) -> Path:
        """Folder that holds the images."""
        return self.source.root


def list_images(root: str | Path, *, test: bool = False) -> ImageListing:
    """Find the class folders in ``root`` and all files below them.

    Args:
        root: the data set.
        test: whether images to test on are wanted too.

    Raises:
        DataError: no such folder, no class folders, names that can be read in two ways, classes for validation or to
            test on alone, or a folder that cannot be read.
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
    splits: dict[str, dict[str, tuple[str, ...]]] = {}
    for split, below in (("val", layout.val), ("test", layout.test)):
        if below is None:
            continue
        unused = _test_unused_reason(folder / below, train, test) if split == "test" else None
        if unused:
            left_out[f"{below.split('/')[0]}/"] = unused
            continue
        found, left_out_here = class_files(folder, below)
        splits[split] = spelled_alike(found, train)
        left_out |= left_out_here
        if not any(found.values()):
            raise DataError(f"{folder / below} has class folders and no files in them: add images, or remove it")
        unknown = sorted(set(splits[split]) - set(train))
        if unknown:
            classes = "class" if len(unknown) == 1 else "classes"
            raise DataError(
                f"{folder / below} has {len(unknown)} {classes} that {folder / layout.train} has not: "
                f"{shortened(unknown)}; both need the same class folders"
            )
    return _listing(
        folder, train, splits.get("val"), left_out, layout.notes + _case_notes(train), test=splits.get("test")
    )


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


def ensure_no_split_twice(listing: ImageListing, val_split: float | None, test_split: float | None) -> None:
    """Refuse to hold images out for what the listing has images of its own for; None is a share that is not given.

    Raises:
        UsageError: a share is given, and there are such images.
    """
    for share, images, use, option in (
        (val_split, listing.val, "validation images", "--val-split"),
        (test_split, listing.test, "images to test on", "--test-split"),
    ):
        if share is not None and images is not None:
            raise UsageError(f"{listing.root} has {use} of its own: omit {option}, or give a folder without them")


def spelled_as(listing: ImageListing, labels: Sequence[str]) -> ImageListing:
    """Return a listing with its classes spelled as these labels, where only the form of Unicode is another."""
    like = dict.fromkeys(labels, ())
    val, test = (None if split is None else spelled_alike(split, like) for split in (listing.val, listing.test))
    return replace(listing, train=spelled_alike(listing.train, like), val=val, test=test)


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


def _test_unused_reason(folder: Path, train: Mapping[str, tuple[str, ...]], wanted: bool) -> str | None:
    """Return why images of a folder to test on are not read; None if they are."""
    if not wanted:
        return "images to test on, which have no part in this"
    known = {unicodedata.normalize("NFC", name) for name in train}
    if known.isdisjoint(unicodedata.normalize("NFC", name) for name in entries(folder).folders):
        return "images to test on, not in class folders, so no accuracy can be measured"
    return None


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
    *,
    test: Mapping[str, tuple[str, ...]] | None = None,
) -> ImageListing:
    names = tuple(name for subset in (train, val or {}, test or {}) for files in subset.values() for name in files)
    return ImageListing(FolderSource(folder, names), train, val, test, left_out, notes)


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


def spelled_alike(
    classes: Mapping[str, tuple[str, ...]], like: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    """Return classes by the names that others have, where these are the same in another form of Unicode."""
    spellings = {unicodedata.normalize("NFC", name): name for name in like}
    return {spellings.get(unicodedata.normalize("NFC", name), name): files for name, files in classes.items()}


def _case_notes(classes: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    names: dict[str, str] = {}
    twins = [(names.setdefault(name.casefold(), name), name) for name in classes]
    return tuple(f"the classes {one} and {name} differ in case alone" for one, name in twins if one != name)
