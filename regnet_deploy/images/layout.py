"""Which folders of a data set are its classes, and which are its splits, by their names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from regnet_deploy.errors import DataError
from regnet_deploy.images.folder_files import entries
from regnet_deploy.images.names import shortened

#: Split -> the words for it in names of folders. Images without labels are never read.
_WORDS = {
    "train": ("train", "training", "trainval", "trn"),
    "val": ("val", "valid", "validation", "validate", "validating", "dev", "eval", "evaluation", "holdout"),
    "test": ("test", "testing", "tst"),
    "unlabeled": ("pred", "predict", "prediction", "predictions", "unlabeled", "unlabelled"),
}
_SPLITS = {word: split for split, words in _WORDS.items() for word in words}
#: Words, or ends of words, that say no more than that there are images.
_FILLERS = ("set", "sets", "data", "dataset", "images", "imgs", "img", "split", "folder", "samples")
_SPLIT_WORD = re.compile(rf"({'|'.join(sorted(_SPLITS, key=len, reverse=True))})(?:{'|'.join(_FILLERS)})?")


@dataclass(frozen=True)
class Layout:
    """Where the class folders are.

    Attributes:
        train: folder of the class folders to train on, relative to the root; "" is the root itself.
        val: folder of those for validation; None if images are to be held out.
        test: folder of those to test on; None if there is none.
        unused: folders beside them.
        notes: what to say of the reading, a sentence each.
    """

    train: str
    val: str | None = None
    test: str | None = None
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Named:
    """A folder whose name has a word for a split; ``rest``: its other words; exact names have none."""

    name: str
    split: str
    word: str
    rest: tuple[str, ...]


def find_layout(root: Path, folders: Sequence[str]) -> Layout:
    """Tell splits from classes.

    Splits are folders with the usual names, also with what all of them have in common (``seg_train``, ``seg_test``),
    and nested once (``train/train``). A split beside class folders is refused, for it is rarely a class.

    Args:
        root: the data set.
        folders: names of the folders in it.

    Raises:
        DataError: the names can be read in two ways; the message says how to tell which one is meant.
    """
    named = [found for found in map(_named, folders) if found]
    train = _training_folder(root, folders, named)
    if train is None:
        return Layout("", notes=_ensure_classes(root, folders, named))
    val, test = _validation_folder(root, train, named), _test_folder(train, named)
    splits = {split.name for split in (train, val, test) if split}
    unused = tuple(name for name in folders if name not in splits)
    classes = set(entries(root / train.name).folders)
    twice = sorted(classes & {*unused, *([test.name] if test else [])})
    if twice:
        raise DataError(
            f"{root} has the class folders {shortened(twice)} and {root / train.name} has them too: move all images of "
            f"a class into one folder in {root / train.name}"
        )
    return Layout(
        _nested(root, train), _nested(root, val) if val else None, _nested(root, test) if test else None, unused
    )


def find_split(root: Path, folders: Sequence[str], split: str | None = None) -> str:
    """Return the folder of the class folders of a split, relative to the root; "" where the root has classes alone.

    Args:
        root: the data set.
        folders: names of the folders in it.
        split: ``train``, ``val`` or ``test``; None is the first of ``test`` and ``val`` that exists, else the root.

    Raises:
        DataError: there is no such folder, or there are several.
    """
    named = [found for found in map(_named, folders) if found]
    for wanted in (split,) if split else ("test", "val"):
        found = [each for each in named if each.split == wanted]
        found = [each for each in found if not each.rest] or found
        if len(found) > 1:
            names = shortened([each.name for each in found])
            raise DataError(f"{root} has several folders of {wanted} images, {names}: give one of them as the folder")
        if found:
            return _nested(root, found[0])
    if split:
        raise DataError(f"{root} has no folder of {split} images, such as {root / split}: it has {shortened(folders)}")
    if any(each.split == "train" for each in named) and len(named) > 1:
        raise DataError(
            f"{root} has no folder of images to test or validate with: it has {shortened(folders)}; name one with "
            "--split"
        )
    return ""


def ensure_no_splits_in_classes(root: Path, classes: Mapping[str, Iterable[str]]) -> None:
    """Refuse class folders that have splits in them: ``cat/train`` and ``cat/test``.

    Args:
        root: the data set.
        classes: class name -> names of its files, relative to its folder.

    Raises:
        DataError: a class folder has them.
    """
    if len(classes) == 1:
        return  # the folder above the data set was given
    found: dict[str, list[str]] = {}
    for name, files in classes.items():
        below = {file.split("/", 1)[0] for file in files if "/" in file}
        splits = {each.split: each.name for each in map(_named, sorted(below)) if each and not each.rest}
        if "train" in splits and len(splits) > 1:
            found[name] = sorted(splits.values())
    for name, inside in found.items():
        has = f"the folder {name} in {root} has the splits {shortened(inside)} in it"
        if len(found) == 1:
            raise DataError(f"{has}, and the folders beside it have none: did you mean --data {root / name}?")
        above = " and ".join(f"{root}/{split}/{name}" for split in inside)
        raise DataError(f"{has}: move them above the classes, as {above}")


def split_of(folder: str) -> str | None:
    """Return the split that a folder is by its name: a key of :data:`_WORDS`; None if it is none."""
    named = _named(folder)
    return named.split if named else None


def _named(name: str) -> _Named | None:
    words = re.findall(r"[a-z]+|\d+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    found = [(word, match[1]) for word in words if (match := _SPLIT_WORD.fullmatch(word))]
    if len(found) != 1:  # none, or several: "train_vs_test" is no split
        return None
    (word, meant) = found[0]
    rest = tuple(each for each in words if each != word and each not in _FILLERS)
    return _Named(name, _SPLITS[meant], meant, rest)


def _training_folder(root: Path, folders: Sequence[str], named: Sequence[_Named]) -> _Named | None:
    """Return the folder of training images; None if all folders are classes."""
    candidates = [each for each in named if each.split == "train" and not each.rest]
    if len(candidates) == 1 and len(folders) > 1 and len(named) == 1 and not entries(root / candidates[0].name).folders:
        return None  # a class among others: the vehicle, not the word
    if not candidates:
        others = [each for each in named if each.split != "train"]
        trains = [each for each in named if each.split == "train"]
        if len(trains) == 1 and len(named) == len(folders):
            candidates = trains
        else:
            candidates = [each for each in trains if any(other.rest == each.rest for other in others)]
    if len(candidates) > 1:
        names = [each.name for each in candidates]
        raise DataError(
            f"{root} has {len(names)} folders of training images, {shortened(names)}: keep one of them there, "
            "with all images in it"
        )
    return candidates[0] if candidates else None


def _validation_folder(root: Path, train: _Named, named: Sequence[_Named]) -> _Named | None:
    """Return the folder of validation images; of several, the one whose other words are those of the training folder.

    Raises:
        DataError: there are several.
    """
    found = [each for each in named if each.split == "val"]
    found = [each for each in found if each.rest == train.rest] or found
    if len(found) > 1:
        raise DataError(
            f"{root} has several folders of validation images, {shortened([each.name for each in found])}: keep one of "
            "them there"
        )
    return found[0] if found else None


def _test_folder(train: _Named, named: Sequence[_Named]) -> _Named | None:
    """Return the folder of images to test on, chosen as that for validation is; None also if there are several."""
    found = [each for each in named if each.split == "test"]
    found = [each for each in found if each.rest == train.rest] or found
    return found[0] if len(found) == 1 else None


def _nested(root: Path, split: _Named) -> str:
    """Return the folder of the class folders of a split: the one in it, if that is all and named as a split too."""
    inside = entries(root / split.name).folders
    if len(inside) == 1:
        below = _named(inside[0])
        if below and (below.split, below.rest) == (split.split, split.rest):
            return f"{split.name}/{inside[0]}"
    return split.name


def _ensure_classes(root: Path, folders: Sequence[str], named: Sequence[_Named]) -> tuple[str, ...]:
    """Refuse folders that are not all classes; return what to say of those that are taken for classes.

    Raises:
        DataError: a folder is named as a split.
    """
    if len(folders) < 2:
        return ()
    train = root / "train"
    shared = any(one.rest == other.rest and one.split != other.split for one in named for other in named)
    if len(named) == len(folders) and shared:
        raise DataError(
            f"{root} has {shortened(folders)} and no folder of training images: give the folder that has train/, or "
            f"class folders. If these are the classes, move them into {train}/"
        )
    for each in named:
        others = [name for name in folders if name not in {other.name for other in named}]
        repeats = set(entries(root / each.name).folders) & set(folders)
        if others and each.split != "train" and (not each.rest or repeats):
            use = "for validation" if each.split == "val" else f"to {_USES[each.split]}"
            raise DataError(
                f"{root} has {each.name}/ beside {shortened(others)}: by its name it has images {use}, and beside "
                f"class folders it would be a class. Move the class folders into {train}/; if {each.name} is a class, "
                "move it there too"
            )
    _ensure_no_repeated_names(root, folders)
    return tuple(
        f"{each.name}/ is taken for a class like the others, not for images to {_USES[each.split]}" for each in named
    )


def _ensure_no_repeated_names(root: Path, folders: Sequence[str]) -> None:
    """Refuse folders that are splits by what is in them, whatever their names are.

    Raises:
        DataError: a folder has the class folders that are beside it, or all folders have the same ones and no images.
    """
    inside = {name: entries(root / name) for name in folders}
    train = root / "train"
    for name, found in inside.items():
        repeated = sorted(set(found.folders) & set(folders))
        if len(repeated) > 1:
            raise DataError(
                f"{root / name} has folders with the names of classes beside it, {shortened(repeated)}: it looks like "
                f"images to test on or to validate with, and would be a class. Call it val or test and move the "
                f"class folders into {train}/; if {name} is a class, move it there too"
            )
    common = {found.folders for found in inside.values()}
    below = next(iter(common))
    if len(common) > 1 or len(below) < 2 or any(map(_named, below)):  # the last are refused with the classes
        return
    if not any(found.files for found in inside.values()):
        raise DataError(
            f"{root} has {shortened(folders)}, each with the folders {shortened(below)}: they look like parts of a "
            "data set, not like classes. Name them train and val, or put the images of each class into one folder; if "
            f"they are the classes, move them into {train}/"
        )


_USES = {"train": "train on", "val": "validate with", "test": "test on", "unlabeled": "predict on"}
