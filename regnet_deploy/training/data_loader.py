"""Datasets and batches for training and evaluation: images come from their source, or from memory if they fit."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.errors import DataError
from regnet_deploy.images.dataset import LabelledImage
from regnet_deploy.images.decode import ImageError, decode
from regnet_deploy.images.image_source import ImageSource
from regnet_deploy.images.preprocessing import image_shape, load_pixels
from regnet_deploy.progress import NoProgress, Progress
from regnet_deploy.training.augmentation import augment, epoch_order
from regnet_deploy.training.recipe import Recipe, steps_per_epoch

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

#: Images are cached in memory if they take at most this many bytes.
MEMORY_BYTES = 512 * 2**20
#: Shorter side of a cached image, in sides of the network's input.
_CACHED_SIDE = 2
#: Channels -> bytes of a pixel in Pillow.
_PIXEL_BYTES = {1: 1, 3: 4}

#: Epoch and number of an image: together with the seed they determine how it is augmented.
Key = tuple[int, int]


class LoaderDied(DataError):
    """A process that loads images died. Nothing is wrong with the images."""


class UnreadableImage(NamedTuple):
    """Name of an image that cannot be read any more, though the check before training could, and the reason."""

    name: str
    reason: str


class Sample(NamedTuple):
    """One image: pixels ``(h, w, channels)`` uint8, color shift ``(channels,)`` float32, label."""

    pixels: NDArray[np.uint8]
    shift: NDArray[np.float32]
    label: int


class Batch(NamedTuple):
    """A batch of images.

    Attributes:
        pixels: uint8 ``(n, h, w, channels)``.
        shifts: of the colors, float32 ``(n, channels)``.
        labels: int64 ``(n,)``.
        unreadable: images that are missing in it.
        seconds: time that one thread needed to make it.
    """

    pixels: Tensor
    shifts: Tensor
    labels: Tensor
    unreadable: list[UnreadableImage]
    seconds: float = 0.0


@dataclass(frozen=True)
class _Arrays:
    """A batch as NumPy arrays, as it travels from a loading process.

    PyTorch would send tensors through /dev/shm, of which a container has 64 MB by default: the sending thread of a
    loading process fails when it is full, and training waits for ever. Arrays go through a pipe, whatever their size.
    """

    pixels: NDArray[np.uint8]
    shifts: NDArray[np.float32]
    labels: NDArray[np.int64]
    unreadable: list[UnreadableImage]
    seconds: float

    def batch(self) -> Batch:
        """Return the batch as tensors, which share the memory of the arrays."""
        pixels, shifts, labels = (torch.from_numpy(array) for array in (self.pixels, self.shifts, self.labels))
        return Batch(pixels, shifts, labels, self.unreadable, self.seconds)

    def pin_memory(self) -> Batch:
        """Return the batch as tensors in page-locked memory; called by the thread of the loader that pins."""
        pixels, shifts, labels, unreadable, seconds = self.batch()
        return Batch(pixels.pin_memory(), shifts.pin_memory(), labels.pin_memory(), unreadable, seconds)


@dataclass(frozen=True)
class ImageSubset:
    """The training images or the validation images of a dataset.

    Attributes:
        source: where they are read from.
        images: index and label of each.
        cached: each decoded image, or why it cannot be read; None if images are read from the source every time.
    """

    source: ImageSource
    images: Sequence[LabelledImage]
    cached: Sequence[Image | UnreadableImage] | None = None

    def decoded(self, number: int, preprocessing: Preprocessing) -> Image | UnreadableImage:
        """Return an upright image with the channels that the network gets."""
        if self.cached is not None:
            return self.cached[number]
        return self._read(number, lambda data, name: decode(data, name, colours=preprocessing.colours))

    def evaluation_pixels(self, number: int, preprocessing: Preprocessing) -> NDArray[np.uint8] | UnreadableImage:
        """Return the pixels that evaluation and the server use, ``(h, w, channels)``.

        They are made from the encoded image even if it is cached: cached images are decoded at full size and shrunk.
        """
        return self._read(number, lambda data, name: load_pixels(data, preprocessing, name))

    def _read(self, number: int, decoder: Callable[[bytes, str], T]) -> T | UnreadableImage:
        index = self.images[number].index
        name = self.source.names[index]
        try:
            return decoder(self.source.read(index), name)
        except ImageError as error:
            return UnreadableImage(name, error.reason)


def training_dataset(
    source: ImageSource,
    images: Sequence[LabelledImage],
    recipe: Recipe,
    preprocessing: Preprocessing,
    progress: Progress = NoProgress(),
) -> TrainingDataset:
    """Return the augmented training images; decoded images are cached if all of them fit into :data:`MEMORY_BYTES`.

    A cached image is shrunk until its short side is twice that of the network's input.
    """
    subset, short_side = ImageSubset(source, images), _CACHED_SIDE * preprocessing.crop
    if fits_into_memory(images, preprocessing):
        cached = _in_threads(
            lambda number: _shrink(subset.decoded(number, preprocessing), short_side), len(images), progress
        )
        subset = ImageSubset(source, images, cached)
    return TrainingDataset(subset, recipe, preprocessing)


def fits_into_memory(images: Iterable[LabelledImage], preprocessing: Preprocessing) -> bool:
    """Tell whether :func:`training_dataset` caches these images."""
    short_side = _CACHED_SIDE * preprocessing.crop
    pixels = sum(math.prod(_shrunk_size(image.width, image.height, short_side)) for image in images)
    return pixels * _PIXEL_BYTES[preprocessing.channels] <= MEMORY_BYTES


def evaluation_dataset(
    source: ImageSource,
    images: Sequence[LabelledImage],
    preprocessing: Preprocessing,
    progress: Progress = NoProgress(),
) -> EvaluationDataset:
    """Return the images for evaluation; their pixels are cached if all of them fit into :data:`MEMORY_BYTES`."""
    dataset = EvaluationDataset(ImageSubset(source, images), preprocessing)
    if len(images) * math.prod(image_shape(preprocessing, pixels=True)) <= MEMORY_BYTES:
        dataset.cached = _in_threads(dataset.__getitem__, len(images), progress)
    return dataset


class TrainingDataset(Dataset[Sample | UnreadableImage]):
    """Augmented training images by :data:`Key`."""

    def __init__(self, subset: ImageSubset, recipe: Recipe, preprocessing: Preprocessing) -> None:
        self.subset, self.recipe, self.preprocessing = subset, recipe, preprocessing

    def __len__(self) -> int:
        return len(self.subset.images)

    def __getitem__(self, key: Key) -> Sample | UnreadableImage:
        """Return image ``key[1]`` as it is augmented in epoch ``key[0]``."""
        image = self.subset.decoded(key[1], self.preprocessing)
        if isinstance(image, UnreadableImage):
            return image
        pixels, shift = augment(image, key, self.recipe, self.preprocessing)
        return Sample(pixels, shift, self.subset.images[key[1]].label)


class EvaluationDataset(Dataset[Sample | UnreadableImage]):
    """Images by number, with the pixels that the server makes of them."""

    def __init__(self, subset: ImageSubset, preprocessing: Preprocessing) -> None:
        self.subset, self.preprocessing = subset, preprocessing
        self.cached: Sequence[Sample | UnreadableImage] | None = None

    def __len__(self) -> int:
        return len(self.subset.images)

    def __getitem__(self, number: int) -> Sample | UnreadableImage:
        """Return an image."""
        if self.cached is not None:
            return self.cached[number]
        pixels = self.subset.evaluation_pixels(number, self.preprocessing)
        if isinstance(pixels, UnreadableImage):
            return pixels
        return Sample(pixels, np.zeros(self.preprocessing.channels, np.float32), self.subset.images[number].label)


def epoch_batches(recipe: Recipe, epoch: int, images: int) -> list[list[Key]]:
    """Return the keys of every batch of an epoch, in order."""
    order = epoch_order(recipe.seed, epoch, images).tolist()
    size = recipe.batch
    return [
        [(epoch, number) for number in order[step * size : (step + 1) * size]]
        for step in range(steps_per_epoch(images, size))
    ]


def batches_from(recipe: Recipe, images: int, epoch: int, step: int) -> Iterator[list[Key]]:
    """Yield the keys of every remaining batch of a run that is at this epoch and step."""
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
    """Yield the batches in order, made by this number of processes (0: by this one).

    Raises:
        DataError: a loading process died, or none can be started.
    """
    loader: DataLoader[_Arrays | Batch] = DataLoader(
        _Batches(dataset),
        batch_sampler=batches,
        collate_fn=_whole,
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=_ignore_signals,
    )
    try:
        iterator = iter(loader)
    except OSError as error:  # semaphores and processes of the system are used up, or there is no /dev/shm at all
        raise LoaderDied(
            f"cannot start {workers} processes that load images: {error.strerror}; give --workers 0"
        ) from None
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise LoaderDied(
                f"a process that loads images died, most likely out of memory: give fewer --workers than {workers}"
            ) from None
        yield batch.batch() if isinstance(batch, _Arrays) else batch


def _ignore_signals(worker: int) -> None:
    """Leave SIGINT and SIGTERM, which terminals and service managers send to all processes, to the training.

    It needs batches until its step is completed, and ends its loading processes itself; they also end without it.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class _Batches(Dataset[Any]):
    """A dataset by lists of keys or numbers: a batch each."""

    def __init__(self, dataset: Dataset[Sample | UnreadableImage]) -> None:
        self.dataset = dataset

    def __getitems__(self, keys: list[Any]) -> _Arrays:
        begun = time.perf_counter()
        return _collate([self.dataset[key] for key in keys], begun)


def _whole(batch: Any) -> Any:
    """Return a batch as it is: PyTorch's default would convert it."""
    return batch


def _collate(samples: list[Sample | UnreadableImage], begun: float) -> _Arrays:
    """Return a batch of samples; making them has begun at this time of ``time.perf_counter``."""
    good = [sample for sample in samples if isinstance(sample, Sample)]
    unreadable = [sample for sample in samples if isinstance(sample, UnreadableImage)]
    return _Arrays(
        np.stack([sample.pixels for sample in good]) if good else np.empty((0, 0, 0, 0), np.uint8),
        np.stack([sample.shift for sample in good]) if good else np.empty((0, 0), np.float32),
        np.array([sample.label for sample in good], np.int64),
        unreadable,
        time.perf_counter() - begun,
    )


def _in_threads(function: Callable[[int], T], count: int, progress: Progress) -> list[T]:
    progress.step("loading images", count)
    results: list[T] = []
    pool = ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1))
    try:
        for result in pool.map(function, range(count)):
            results.append(result)
            progress.update(len(results))
    finally:
        pool.shutdown(cancel_futures=True)
    return results


def _shrink(image: Image | UnreadableImage, short_side: int) -> Image | UnreadableImage:
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
