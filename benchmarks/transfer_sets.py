"""The sets of images of `benchmarks/transfer.py`: small folders as a user has them, and images to test on.

Of every set a seed draws the images to train on, a quarter as many to validate with, and from the rest those to test
on. The images of the test lie in a folder of their own, which training is not given.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

#: Most images to test on, of each class and set.
TESTED = {"mnist": 200, "digits": 120, "stamps": 40}
#: Themes of the stamps that have 30 images or more in PNG. Alphabets are left out: the weights are of characters.
THEMES = ("animals", "food", "household", "plants", "symbols", "town", "vehicles")
LEFT_OUT = "alphabets"
#: Words in names of stamps that do not say which object it is.
NO_OBJECT = (
    "and the with full out left right mirror small little large big old new photo outline cartoon sign "
    "red blue green yellow white black pink"
)


#: Of a class, groups of images that stay on one side of the split; each image is a function that writes it to a path.
Groups = Sequence[Sequence[Callable[[Path], object]]]


@dataclass(frozen=True)
class Folders:
    """Where a drawn set lies: ``train`` has ``train/`` and ``val/``, ``test`` has a folder of each class."""

    train: Path
    test: Path


def quarter(count: int) -> int:
    """Return the images to validate with, of each class, for so many to train on."""
    return max(1, round(count / 4))


def split_groups(groups: Sequence[Sequence[Any]], counts: Sequence[int], seed: int) -> list[list[Any]]:
    """Return as many items for each part as ``counts`` says; no two parts have items of the same group.

    A group may be larger than what is left of a part: of such a group the part has as many items as fit, and the
    others are in no part. The last part may get fewer items.

    Raises:
        ValueError: there are too few groups for all parts but the last, or nothing is left for that.
    """
    order = list(groups)
    random.Random(seed).shuffle(order)
    parts: list[list[Any]] = []
    for count in counts:
        part: list[Any] = []
        while order and len(part) < count:
            part += order.pop(0)[: count - len(part)]
        parts.append(part)
    if any(len(part) < count for part, count in zip(parts[:-1], counts, strict=False)) or not parts[-1]:
        raise ValueError(f"{sum(map(len, groups))} images in {len(groups)} groups are too few for parts of {counts}")
    return parts


def write_set(classes: Mapping[str, Groups], per_class: int, tested: int, seed: int, folder: Path) -> Folders:
    """Draw a set and write it below a folder."""
    folders = Folders(folder / "images", folder / "test")
    for number, (name, groups) in enumerate(classes.items()):
        parts = split_groups(groups, (per_class, quarter(per_class), tested), 1000 * seed + number)
        for target, part in zip((folders.train / "train", folders.train / "val", folders.test), parts, strict=True):
            (target / name).mkdir(parents=True)
            for index, write in enumerate(part):
                write(target / name / f"{index:04d}.png")
    return folders


def of_arrays(images: np.ndarray, labels: np.ndarray) -> dict[str, Groups]:
    """Return the classes of gray images ``(n, h, w)`` uint8."""

    def writer(pixels: np.ndarray) -> Callable[[Path], object]:
        return lambda path: Image.fromarray(pixels).save(path)

    return {str(label): [[writer(image)] for image in images[labels == label]] for label in np.unique(labels)}


def mnist(npz: Path) -> dict[str, Groups]:
    """Return the classes of an npz file with ``train_images``, ``train_labels``, ``val_images`` and ``val_labels``."""
    data = np.load(npz)
    images, labels = (
        np.concatenate([data[f"{part}_{what}"] for part in ("train", "val")]) for what in ("images", "labels")
    )
    return of_arrays(images, labels)


def digits() -> dict[str, Groups]:
    """Return the classes of scikit-learn's digits: 8 x 8 pixels, which training enlarges."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return of_arrays((data.images / 16 * 255).astype(np.uint8), data.target)


def stamps(folder: Path) -> dict[str, Groups]:
    """Return the themes of Tux Paint's stamps: photos and drawings, most of them with alpha.

    Images of a theme whose names share a word for an object (cow, cow_white; apple in fruit/ and in fruit/cartoon/) are
    one group. An object that two themes have is left out.
    """
    found = {
        theme: [path for path in sorted((folder / theme).rglob("*.png")) if LEFT_OUT not in path.parts]
        for theme in THEMES
    }
    names = [{path.stem.lower() for path in paths} for paths in found.values()]
    doubtful = {name for number, one in enumerate(names) for other in names[number + 1 :] for name in one & other}

    def writer(path: Path) -> Callable[[Path], object]:
        return lambda target: target.write_bytes(path.read_bytes())

    return {
        theme: [
            [writer(path) for path in group]
            for group in same_objects([path for path in paths if path.stem.lower() not in doubtful])
        ]
        for theme, paths in found.items()
    }


def same_objects(paths: Sequence[Path]) -> list[list[Path]]:
    """Return groups of files whose names share a word, directly or by way of others; without a word, of one folder."""
    group_of: dict[str, list[Path]] = {}
    for path in paths:
        words = _words(path) or {str(path.parent)}
        joined = [path]
        for group in {id(group_of[word]): group_of[word] for word in sorted(words) if word in group_of}.values():
            joined += group
        for word in words | {word for each in joined[1:] for word in _words(each) or {str(each.parent)}}:
            group_of[word] = joined
    return [sorted(group) for group in {id(group): group for group in group_of.values()}.values()]


def _words(path: Path) -> set[str]:
    separated = re.sub(r"([a-z])([A-Z])", r"\1 \2", path.stem)
    words = {word.lower() for word in re.findall("[A-Za-z]+", separated)}
    return {word for word in words if len(word) > 2} - set(NO_OBJECT.split())
