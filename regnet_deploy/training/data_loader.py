"""Batches of images: read from files, or from memory where the decoded images fit, in one order for every run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.errors import DataError
from regnet_deploy.images.dataset import LabelledImage
from regnet_deploy.images.decode import decode
from regnet_deploy.images.preprocessing import load_pixels
from regnet_deploy.training.augmentation import augment, epoch_order
from regnet_deploy.training.recipe import Recipe

if TYPE_CHECKING:
    from PIL.Image import Image

Made = TypeVar("Made")

#: Decoded images are kept in memory where they take no more than this, bytes.
MEMORY_BYTES = 512 * 2**20
#: Pillow keeps a pixel of an RGB image in so many bytes.
_PIXEL_BYTES = 4

#: Epoch and number of an image: what its random view is a function of.
Key = tuple[int, int]
#: Called with what is done and what there is to do.
Advance = Callable[[int, int], None]


class LoaderDied(DataError):
    """A process that loads images died: nothing is wrong with the images."""


class UnreadableImage(NamedTuple):
    """A file that could be read when it was checked and cannot now."""

    path: str
    reason: str


class Sample(NamedTuple):
    """One image: pixels ``(h, w, 3)`` uint8, colour shift ``(3,)`` float32, label."""

    pixels: NDArray[np.uint8]
    shift: NDArray[np.float32]
    label: int


class Batch(NamedTuple):
    """Pixels ``(n, h, w, 3)`` uint8, colour shifts ``(n, 3)`` float32, labels ``(n,)`` int64, and what is missing."""

    pixels: Tensor
    shifts: Tensor
    labels: Tensor
    unreadable: list[UnreadableImage]


@dataclass(frozen=True)
class ImageSubset:
    """Images by number: from files, or from memory.

    Attributes:
        root: the image folder.
        files: its images; their place is their number.
        kept: the decoded images or what was wrong with them; None where they are read from the files each time.
    """

    root: Path
    files: Sequence[LabelledImage]
    kept: Sequence[Image | UnreadableImage] | None = None

    def image(self, number: int) -> Image | UnreadableImage:
        """Return an upright RGB image, or say why there is none."""
        if self.kept is not None:
            return self.kept[number]
        return self._from_file(number, lambda data: decode(data, ""))

    def view(self, number: int, preprocessing: Preprocessing) -> NDArray[np.uint8] | UnreadableImage:
        """Return the evaluation view ``(h, w, 3)``, or say why there is none.

        It is always made of the file, as it is everywhere: images in memory are decoded in full, and shrunk.
        """
        return self._from_file(number, lambda data: load_pixels(data, preprocessing, ""))

    def _from_file(self, number: int, make: Callable[[bytes], Made]) -> Made | UnreadableImage:
        path = self.files[number].path
        try:
            return make((self.root / path).read_bytes())
        except OSError as error:
            return UnreadableImage(path, f"cannot be read: {error.strerror}")
        except DataError as error:
            return UnreadableImage(path, str(error).removeprefix(": "))


def training_dataset(
    root: Path, files: Sequence[LabelledImage], recipe: Recipe, preprocessing: Preprocessing, advance: Advance
) -> TrainingDataset:
    """Return the random views, of images kept in memory where they are few or small enough.

    In memory an image is shrunk until its short side is twice the view's.
    """
    source, short_side = ImageSubset(root, files), 2 * preprocessing.crop
    if sum(_kept_bytes(file, short_side) for file in files) <= MEMORY_BYTES:
        kept = _in_threads(lambda number: _shrunk(source.image(number), short_side), len(files), advance)
        source = ImageSubset(root, files, kept)
    return TrainingDataset(source, recipe, preprocessing)


def evaluation_dataset(
    root: Path, files: Sequence[LabelledImage], preprocessing: Preprocessing, advance: Advance
) -> EvaluationDataset:
    """Return the evaluation views, kept in memory where they are few or small enough."""
    views = EvaluationDataset(ImageSubset(root, files), preprocessing)
    if len(files) * preprocessing.crop**2 * 3 <= MEMORY_BYTES:
        views.kept = _in_threads(views.__getitem__, len(files), advance)
    return views


class TrainingDataset(Dataset[Sample | UnreadableImage]):
    """Training views by :data:`Key`."""

    def __init__(self, source: ImageSubset, recipe: Recipe, preprocessing: Preprocessing) -> None:
        self.source, self.recipe, self.preprocessing = source, recipe, preprocessing

    def __getitem__(self, key: Key) -> Sample | UnreadableImage:
        """Return the view of image ``key[1]`` in epoch ``key[0]``."""
        image = self.source.image(key[1])
        if isinstance(image, UnreadableImage):
            return image
        pixels, shift = augment(image, key, self.recipe, self.preprocessing)
        return Sample(pixels, shift, self.source.files[key[1]].label)


class EvaluationDataset(Dataset[Sample | UnreadableImage]):
    """The views that the server, too, would show the network, by number of the image."""

    def __init__(self, source: ImageSubset, preprocessing: Preprocessing) -> None:
        self.source, self.preprocessing = source, preprocessing
        self.kept: Sequence[Sample | UnreadableImage] | None = None

    def __getitem__(self, number: int) -> Sample | UnreadableImage:
        """Return the view of an image."""
        if self.kept is not None:
            return self.kept[number]
        pixels = self.source.view(number, self.preprocessing)
        if isinstance(pixels, UnreadableImage):
            return pixels
        return Sample(pixels, np.zeros(3, np.float32), self.source.files[number].label)


def steps_per_epoch(images: int, batch: int) -> int:
    """Return the steps of an epoch: the last, partial batch is left out unless it is the only one."""
    return max(1, images // batch)


def epoch_batches(recipe: Recipe, epoch: int, images: int) -> list[list[Key]]:
    """Return the keys of every batch of an epoch, in order."""
    order = epoch_order(recipe.seed, epoch, images).tolist()
    size = recipe.batch
    return [
        [(epoch, number) for number in order[step * size : (step + 1) * size]]
        for step in range(steps_per_epoch(images, size))
    ]


def batches_from(recipe: Recipe, images: int, epoch: int, step: int) -> Iterator[list[Key]]:
    """Yield the keys of every batch that is left of a run which stands at this epoch and step."""
    for each in range(epoch, recipe.epochs):
        yield from epoch_batches(recipe, each, images)[step if each == epoch else 0 :]


def number_batches(images: int, size: int) -> list[list[int]]:
    """Return the numbers of all images in batches, the last of them partial."""
    return [list(range(start, min(start + size, images))) for start in range(0, images, size)]


def load(
    dataset: Dataset[Sample | UnreadableImage],
    batches: Iterable[list[Key]] | Iterable[list[int]],
    workers: int,
    pin: bool,
) -> Iterator[Batch]:
    """Yield the batches in order, made by so many processes (0: by this one).

    Raises:
        DataError: a loading process died.
    """
    loader: DataLoader[Batch] = DataLoader(
        dataset,  # type: ignore[arg-type]  # the collation makes batches of samples
        batch_sampler=batches,
        collate_fn=_collate,
        num_workers=workers,
        pin_memory=pin,
    )
    iterator = iter(loader)
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise LoaderDied(
                f"a process that loads images died, most likely for want of memory: give fewer --workers than {workers}"
            ) from None
        yield batch


def _collate(samples: list[Sample | UnreadableImage]) -> Batch:
    good = [sample for sample in samples if isinstance(sample, Sample)]
    unreadable = [sample for sample in samples if isinstance(sample, UnreadableImage)]
    if not good:
        empty = torch.empty(0)
        return Batch(empty.to(torch.uint8), empty, empty.long(), unreadable)
    return Batch(
        torch.from_numpy(np.stack([sample.pixels for sample in good])),
        torch.from_numpy(np.stack([sample.shift for sample in good])),
        torch.tensor([sample.label for sample in good]),
        unreadable,
    )


def _in_threads(make: Callable[[int], Made], count: int, advance: Advance) -> list[Made]:
    made: list[Made] = []
    pool = ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1))
    try:
        for each in pool.map(make, range(count)):
            made.append(each)
            advance(len(made), count)
    finally:
        pool.shutdown(cancel_futures=True)
    return made


def _kept_bytes(file: LabelledImage, short_side: int) -> int:
    width, height = _shrunk_size(file.width, file.height, short_side)
    return width * height * _PIXEL_BYTES


def _shrunk(image: Image | UnreadableImage, short_side: int) -> Image | UnreadableImage:
    if isinstance(image, UnreadableImage):
        return image
    size = _shrunk_size(image.width, image.height, short_side)
    if size == image.size:
        return image
    from PIL.Image import Resampling

    return image.resize(size, Resampling.BOX)


def _shrunk_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    scale = min(1.0, short_side / min(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))
