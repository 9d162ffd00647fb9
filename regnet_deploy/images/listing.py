"""Lists of the images of a folder or table, by class and split, before any of them is opened."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from regnet_deploy.errors import DataError, UsageError
from regnet_deploy.images.decode import SUFFIXES
from regnet_deploy.images.folder_files import entries, files_below
from regnet_deploy.images.image_source import FolderSource, ImageSource, select_images
from regnet_deploy.images.image_table import ImageTable
from regnet_deploy.images.layout import Layout, ensure_no_splits_in_classes, find_layout, find_split, split_of
from regnet_deploy.images.names import printable, shortened
from regnet_deploy.images.open_table import FILES, open_table
from regnet_deploy.progress import NoProgress, Progress

#: Kind of a data set that is a folder of class folders.
FOLDER = "folder"


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
        folders: split -> the folder of its class folders, relative to the root, or its name in a table; "" is the root
            itself, or a table that names no splits.
        kind: what the images are in, in words: ``folder``, or the kind of a table.
    """

    source: ImageSource
    train: Mapping[str, tuple[str, ...]]
    val: Mapping[str, tuple[str, ...]] | None
    test: Mapping[str, tuple[str, ...]] | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    folders: Mapping[str, str] = field(default_factory=dict)
    kind: str = FOLDER

    @property
    def root(self) -> Path:
        """Folder or file that holds the images."""
        return self.source.root

    @property
    def classes_noun(self) -> str:
        """What the classes are, in words."""
        return "class folders" if self.kind == FOLDER else "classes"

    def shown_folder(self, split: str) -> str:
        """Return the folder of a split, with ``/`` at its end, or its name in a table; "" is all of the data set."""
        folder = self.folders.get(split, "").split("/")[0]
        return f"{folder}/" if folder and self.kind == FOLDER else folder

    def origin(self, split: str) -> str:
        """Return in words where the images of a split come from."""
        folder = self.shown_folder(split)
        return f"{folder} of the {self.kind}" if folder else f"the {self.kind}"


def list_images(root: str | Path, *, test: bool = False, progress: Progress = NoProgress()) -> ImageListing:
    """Find the images to train on and to validate with: class folders in ``root``, or the lines of a table.

    Args:
        root: the data set, as :func:`regnet_deploy.images.open_table.open_table` takes it.
        test: whether images to test on are wanted too.
        progress: receives what takes long.

    Raises:
        DataError: no such folder, no class folders, names that can be read in two ways, classes for validation or to
            test on alone, or a folder or table that cannot be read.
    """
    table = open_table(root, progress)
    if table is not None:
        return _of_table(table, test)
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
    folders = {"train": layout.train, "val": layout.val, "test": layout.test}
    return ImageListing(
        FolderSource(folder, _names(train, splits)),
        train,
        splits.get("val"),
        splits.get("test"),
        left_out,
        layout.notes + _case_notes(train),
        {split: below for split, below in folders.items() if below is not None},
    )


def list_split(root: str | Path, split: str | None = None, progress: Progress = NoProgress()) -> ImageListing:
    """Find the images of one split of ``root``, as ``train`` of the listing.

    Args:
        root: the data set.
        split: ``train``, ``val`` or ``test``; None is the first of ``test`` and ``val`` that exists, else ``root``.
        progress: receives what takes long.

    Raises:
        DataError: no such folder or split, several folders of it, no class folders, or a folder or table that cannot be
            read.
    """
    table = open_table(root, progress)
    if table is not None:
        return _split_of_table(table, split)
    folder = absolute_folder(root)
    below = find_split(folder, entries(folder).folders, split)
    classes, left_out = class_files(folder, below)
    source = FolderSource(folder, _names(classes, {}))
    return ImageListing(source, classes, None, None, left_out, _case_notes(classes), {"train": below})


def own_splits(root: str | Path, progress: Progress = NoProgress()) -> tuple[str, ...] | None:
    """Return the splits that a folder or table has images of; None where there is neither.

    Raises:
        DataError: a folder or table cannot be read.
    """
    table = open_table(root, progress)
    if table is not None:
        return tuple(table.splits) if table.named else ()
    if not Path(root).is_dir():
        return None
    return tuple(split for name in entries(root).folders if (split := split_of(name)))


def ensure_several_classes(listing: ImageListing) -> None:
    """Refuse a folder with one class folder, and suggest the one below if its classes are there.

    Raises:
        DataError: there is one class folder.
    """
    if len(listing.train) > 1:
        return
    (only,) = listing.train
    below = {name.split("/")[1] for name in listing.train[only] if name.count("/") > 1} if listing.val is None else ()
    hint = f"; did you mean --data {listing.root / only}?" if len(below) > 1 and listing.kind == FOLDER else ""
    what = "class folder" if listing.kind == FOLDER else "class"
    raise DataError(f"{listing.root} has one {what}, {printable(only)}: a classifier needs two or more{hint}")


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
        if not os.path.exists(folder):
            raise DataError(f"no image folder at {folder}: it does not exist")
        raise DataError(f"no image folder at {folder}: it is a file; of files, --data takes {FILES}")
    return folder


def _of_table(table: ImageTable, test: bool) -> ImageListing:
    """Return the images of a table to train on and to validate with, and those to test on if they are wanted.

    Raises:
        DataError: there are none of a split, or it has classes that the images to train on have not.
    """
    train, splits = table.train, dict(table.splits)
    if not test:
        splits.pop("test", None)
    for split in ("val", "test"):
        classes = splits.get(split)
        if classes is None:
            continue
        if not classes:
            raise DataError(f"{table.source.root} has no images of its split {split} that can be used")
        unknown = sorted(set(classes) - set(train))
        if unknown:
            noun = "class" if len(unknown) == 1 else "classes"
            raise DataError(
                f"the split {split} of {table.source.root} has {len(unknown)} {noun} that train has not: "
                f"{shortened(unknown)}; both need the same classes"
            )
    return ImageListing(
        select_images(table.source, _names(train, splits)),
        train,
        splits.get("val"),
        splits.get("test"),
        table.left_out,
        table.notes + _case_notes(train),
        table.folders,
        table.kind,
    )


def _split_of_table(table: ImageTable, split: str | None) -> ImageListing:
    """Return one split of a table: of None the first of ``test`` and ``val`` that it has, else ``train``.

    Raises:
        DataError: it has no images of the split.
    """
    own = table.splits if table.named else {}
    found = split or next((each for each in ("test", "val") if each in own), "train")
    classes = table.splits.get(found) if split is None else own.get(found)
    if not classes:
        has = f"its splits are {', '.join(own)}" if own else "it names no splits"
        raise DataError(f"{table.source.root} has no images of the split {found} that can be used: {has}")
    return ImageListing(
        select_images(table.source, _names(classes, {})),
        classes,
        None,
        None,
        table.left_out,
        table.notes + _case_notes(classes),
        {"train": found if table.named else ""},
        table.kind,
    )


def _names(
    train: Mapping[str, tuple[str, ...]], splits: Mapping[str, Mapping[str, tuple[str, ...]]]
) -> tuple[str, ...]:
    """Return the names of all images to train on, then of those of the splits ``val`` and ``test``."""
    subsets = (train, splits.get("val", {}), splits.get("test", {}))
    return tuple(name for subset in subsets for files in subset.values() for name in files)


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
