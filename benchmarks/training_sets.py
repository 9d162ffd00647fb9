"""The folders of images of `benchmarks/training.py`: images to train on, to validate with, and to test on.

A seed draws the images of a folder, a quarter as many to validate with, and others to test on, which lie in a folder of
their own that no training is given. Everything that a program could read in more than one way is decided here: images
are RGB or gray PNG files without transparency.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from glyph_folder import class_name
from PIL import Image
from transfer_sets import Folders, Groups, digits, mnist, quarter, split_groups, stamps

#: Most images to validate with, of each class: those of glyphs are of fonts that are not trained on.
VALIDATED = 60
#: Width and height to which drawings are reduced, and digits are enlarged, in pixels.
DRAWING, DIGIT = 128, 32

Write = Callable[[Path], object]
#: Of a class, what writes the images to train on, to validate with and to test on.
Parts = Sequence[Sequence[Write]]


@dataclass(frozen=True)
class Archives:
    """Where the images come from.

    Attributes:
        mnist: npz file with ``train_images`` ``(n, 28, 28)`` uint8, ``train_labels``, ``val_images``, ``val_labels``.
        glyphs: npz file with the same names, ``(n, 64, 64)``, and ``classes``; the fonts of both parts differ.
        stamps: folder of Tux Paint's stamps.
    """

    mnist: Path
    glyphs: Path
    stamps: Path


@dataclass(frozen=True)
class ImageSet:
    """A folder of images.

    Attributes:
        kind: ``digits``, ``mnist``, ``glyphs`` or ``stamps``.
        per_class: images to train on, of each class; with ``tail``, of the largest.
        tested: most images to test on, of each class.
        resolution: width and height of the input of the networks, pixels.
        classes: the classes of the kind that the folder has; none: all of them.
        tail: the class of rank r = 1, 2, ... has ``per_class / r ** tail`` images; the seed says which has which rank.
        time: of a training, as a multiple of the time of the benchmark.
    """

    kind: str
    per_class: int
    tested: int
    resolution: int = 32
    classes: tuple[str, ...] = ()
    tail: float = 0.0
    time: float = 1.0

    @property
    def mirrored(self) -> bool:
        """Whether a mirrored image is still one of its class."""
        return self.kind == "stamps"

    def counts(self, classes: Sequence[str], seed: int) -> dict[str, int]:
        """Return the images to train on, of each class."""
        ranked = list(classes)
        if self.tail:
            random.Random(seed).shuffle(ranked)
        counted = {name: round(self.per_class / rank**self.tail) for rank, name in enumerate(ranked, start=1)}
        return {name: counted[name] for name in classes}


SETS: Mapping[str, ImageSet] = {
    "digits, 100 a class": ImageSet("digits", 100, 49),
    "MNIST, 100 a class": ImageSet("mnist", 100, 140),
    "MNIST, 500 a class": ImageSet("mnist", 500, 140),
    "MNIST, long tail": ImageSet("mnist", 500, 140, tail=1.5),
    "glyphs, 10 a class": ImageSet("glyphs", 10, 60),
    "glyphs, 100 a class": ImageSet("glyphs", 100, 60, time=2.0),
    "glyphs, 1,000 a class": ImageSet("glyphs", 1000, 60, time=4.0),
    "glyphs, B or 8": ImageSet("glyphs", 200, 171, classes=("upper_B", "digit_8")),
    "stamps, 7 themes": ImageSet("stamps", 20, 40, resolution=64),
    "stamps, animals or town": ImageSet("stamps", 40, 40, resolution=64, classes=("animals", "town")),
}


def write_folders(images: ImageSet, archives: Archives, seed: int, folder: Path) -> Folders:
    """Draw the images of a set and write them below a folder; the same seed gives the same files.

    Raises:
        ValueError: the archive has too few images.
    """
    folders = Folders(folder / "images", folder / "test")
    for name, parts in sorted(_drawn(images, archives, seed).items()):
        for target, part in zip((folders.train / "train", folders.train / "val", folders.test), parts, strict=True):
            (target / name).mkdir(parents=True)
            for index, write in enumerate(part):
                write(target / name / f"{index:04d}.png")
    return folders


def _drawn(images: ImageSet, archives: Archives, seed: int) -> dict[str, Parts]:
    """Return the parts of each class."""
    if images.kind == "glyphs":
        return _glyphs(images, archives.glyphs, seed)
    found = _classes_of(images.kind, archives)
    groups = {name: found[name] for name in images.classes or found}
    return {
        name: split_groups(groups[name], (count, quarter(count), images.tested), 1000 * seed + number)
        for number, (name, count) in enumerate(images.counts(tuple(groups), seed).items())
    }


def _classes_of(kind: str, archives: Archives) -> dict[str, Groups]:
    if kind == "mnist":
        return mnist(archives.mnist)
    if kind == "digits":
        return {name: [[_resized(write) for write in group] for group in groups] for name, groups in digits().items()}
    return {
        name: [[_flattened(write) for write in group] for group in groups]
        for name, groups in stamps(archives.stamps).items()
    }


def _resized(write: Write) -> Write:
    """Enlarge the image that is written."""

    def enlarge(path: Path) -> None:
        write(path)
        with Image.open(path) as image:
            enlarged = image.resize((DIGIT, DIGIT), Image.Resampling.BICUBIC)
        enlarged.save(path)

    return enlarge


def _flattened(write: Write) -> Write:
    """Lay the image that is written on white, and reduce it."""

    def flatten(path: Path) -> None:
        write(path)
        with Image.open(path) as image:
            drawing = image.convert("RGBA")
        ground = Image.new("RGBA", drawing.size, "white")
        flat = Image.alpha_composite(ground, drawing).convert("RGB")
        flat.thumbnail((DRAWING, DRAWING))
        flat.save(path)

    return flatten


def _glyphs(images: ImageSet, npz: Path, seed: int) -> dict[str, Parts]:
    """Return the parts of each character: the fonts to train on, to validate with and to test on are disjoint.

    The archive has one image of each character and font, and the fonts of a family follow one another. Its fonts for
    validation are halved.
    """
    data = np.load(npz)
    pools = {part: (data[f"{part}_images"], data[f"{part}_labels"]) for part in ("train", "val")}
    labels = {class_name(str(character)): label for label, character in enumerate(data["classes"])}
    names = images.classes or tuple(labels)
    drawn = {}
    for number, (name, count) in enumerate(images.counts(names, seed).items()):
        train, val = (pixels[where == labels[name]] for pixels, where in pools.values())
        half = len(val) // 2
        rng = random.Random(1000 * seed + number)
        drawn[name] = [
            [_saved(pixels) for pixels in _sample(rng, pool, wanted)]
            for pool, wanted in (
                (train, count),
                (val[:half], min(quarter(count), VALIDATED, half)),
                (val[half:], min(images.tested, len(val) - half)),
            )
        ]
    return drawn


def _sample(rng: random.Random, pool: np.ndarray, count: int) -> list[np.ndarray]:
    """Return so many images of a pool ``(n, h, w)``.

    Raises:
        ValueError: it has fewer.
    """
    if count > len(pool):
        raise ValueError(f"{len(pool)} images are too few for {count}")
    return [pool[index] for index in rng.sample(range(len(pool)), count)]


def _saved(pixels: np.ndarray) -> Write:
    return lambda path: Image.fromarray(pixels).save(path)
