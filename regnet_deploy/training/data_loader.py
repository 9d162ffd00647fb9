"""Datasets and batches for training and evaluation: images come from their source, or from where they are stored."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.cpu import available_memory
from regnet_deploy.errors import DataError
from regnet_deploy.images.dataset import LabelledImage
from regnet_deploy.images.decode import Enough, ImageError, Scaled, decode_scaled, decoder
from regnet_deploy.images.image_source import ImageSource
from regnet_deploy.images.preprocessing import image_shape, load_pixels
from regnet_deploy.progress import NoProgress, Progress
from regnet_deploy.training import stored_images
from regnet_deploy.training.augmentation import augment, enough_to_crop, epoch_order
from regnet_deploy.training.class_balance import uses_in_epoch
from regnet_deploy.training.packed_images import PackedImages, Packing, drop_packed, pack_images
from regnet_deploy.training.recipe import Recipe, steps_per_epoch
from regnet_deploy.training.stored_images import (
    ImageStore,
    enough_to_shrink,
    fits_into_memory,
    in_threads,
    packed_bytes,
    shrink,
    stored_side,
)

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

#: Epoch and number of an image: together with the seed they determine how it is augmented. If an epoch shows it again,
#: a third number says how often it has been shown before: 1, 2, ...
Key = tuple[int, ...]


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
    """

    source: ImageSource
    images: Sequence[LabelledImage]

    def decoded(self, number: int, preprocessing: Preprocessing, enough: Enough) -> Scaled | UnreadableImage:
        """Return an upright image with the channels of the network's input; a JPEG may be reduced to ``enough``."""
        return self._read(number, lambda data, name: decode_scaled(data, enough, name, colours=preprocessing.colours))

    def shrunk(self, number: int, preprocessing: Preprocessing, side: int) -> Image | UnreadableImage:
        """Return an image as it is stored, with a shorter side of at most ``side`` pixels."""
        image = self.decoded(number, preprocessing, enough_to_shrink(side))
        return image if isinstance(image, UnreadableImage) else shrink(image, side)

    def evaluation_pixels(self, number: int, preprocessing: Preprocessing) -> NDArray[np.uint8] | UnreadableImage:
        """Return the pixels that evaluation and the server use, ``(h, w, channels)``, made from the encoded image."""
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
    store: ImageStore | None = None,
) -> TrainingDataset:
    """Return the augmented training images, decoded and stored as ``store`` says; by default in memory, if they fit.

    Images that are stored are shrunk first, until their shorter side is twice that of the network's input, and so they
    are where they are not stored, unless they are too many: see :func:`stored_side`.

    Raises:
        DataError: the user named a folder for decoded images, and they cannot be stored there.
    """
    store = store or ImageStore()
    subset, side = ImageSubset(source, images), stored_side(images, preprocessing)
    dataset = TrainingDataset(subset, recipe, preprocessing, side)
    if side is None:
        if store.required:
            limit = f"{stored_images.PACKED_BYTES / 1e9:.1f} GB"
            raise DataError(f"these images take more than {limit} decoded, and so many are not packed: omit --cache")
        return dataset
    if store.memory and fits_into_memory(images, preprocessing):
        dataset.stored = in_threads(dataset.shrunk, len(images), progress)
        dataset.in_memory = True
    elif store.folder:
        size = packed_bytes(images, side, preprocessing)
        if not (store.required or size <= available_memory() // 2):  # a disk may be slower than decoding
            progress.message(
                f"images are decoded in every epoch: decoded, they take {size / 1e9:.1f} GB, more than half of the "
                "memory; --cache DIR stores them in a folder of a fast disk"
            )
            return dataset
        indices = [image.index for image in images]
        packing = Packing(source, indices, preprocessing.channels, f"{side} px, {decoder()}", size, dataset.shrunk)
        try:
            dataset.stored = pack_images(store.folder, packing, progress)
        except DataError as error:
            if store.required:
                raise
            progress.message(f"{error}. Images are now decoded in every epoch, to the same pixels")
        else:
            if not store.required:
                drop_packed(store.folder, keep=packing.name)
    return dataset


def evaluation_dataset(
    source: ImageSource,
    images: Sequence[LabelledImage],
    preprocessing: Preprocessing,
    progress: Progress = NoProgress(),
) -> EvaluationDataset:
    """Return the images for evaluation; their pixels are kept in memory if they fit."""
    dataset = EvaluationDataset(ImageSubset(source, images), preprocessing)
    if len(images) * math.prod(image_shape(preprocessing, pixels=True)) <= stored_images.MEMORY_BYTES:
        dataset.cached = in_threads(dataset.__getitem__, len(images), progress)
    return dataset


class TrainingDataset(Dataset[Sample | UnreadableImage]):
    """Augmented training images by :data:`Key`.

    Attributes:
        subset: the images.
        recipe: how they are augmented.
        preprocessing: of the network.
        side: shorter side to which larger images are shrunk before they are cropped, pixels; None if they are not.
        stored: each shrunk image, or why it cannot be read; None for one that is not stored, or instead of all.
        in_memory: whether they are stored in memory.
    """

    def __init__(
        self, subset: ImageSubset, recipe: Recipe, preprocessing: Preprocessing, side: int | None = None
    ) -> None:
        self.subset, self.recipe, self.preprocessing, self.side = subset, recipe, preprocessing, side
        self.stored: Sequence[Image | UnreadableImage | None] | PackedImages | None = None
        self.in_memory = False

    def __len__(self) -> int:
        return len(self.subset.images)

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Class of each image, ``(images,)``."""
        return np.array([image.label for image in self.subset.images], np.int64)

    def class_counts(self, classes: int) -> list[int]:
        """Return the number of images of each class."""
        counts: list[int] = np.bincount(self.labels, minlength=classes).tolist()
        return counts

    def __getitem__(self, key: Key) -> Sample | UnreadableImage:
        """Return image ``key[1]`` as it is augmented in epoch ``key[0]``."""
        number = key[1]
        image: Scaled | Image | UnreadableImage | None = None if self.stored is None else self.stored[number]
        if image is None:
            image = self._decoded(key) if self.side is None else self.shrunk(number)
        if isinstance(image, UnreadableImage):
            return image
        pixels, shift = augment(image, key, self.recipe, self.preprocessing)
        return Sample(pixels, shift, self.subset.images[number].label)

    def shrunk(self, number: int) -> Image | UnreadableImage:
        """Return an image as it is stored."""
        assert self.side is not None  # else none is stored
        return self.subset.shrunk(number, self.preprocessing, self.side)

    def _decoded(self, key: Key) -> Scaled | UnreadableImage:
        """Return an image, decoded at the smallest size at which its crop need not be enlarged."""
        return self.subset.decoded(
            key[1],
            self.preprocessing,
            lambda width, height: enough_to_crop(width, height, key, self.recipe, self.preprocessing),
        )


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


def epoch_batches(recipe: Recipe, epoch: int, labels: NDArray[np.int64]) -> list[list[Key]]:
    """Return the keys of every batch of an epoch, in order; ``labels`` are the classes of the images, ``(images,)``.

    With repeated augmentation, the views of an image follow each other, and the epoch ends when it has had as many
    views as there are images, as with ``RASampler`` of torchvision: it has a part of the images.
    """
    images, size, views = len(labels), recipe.batch, recipe.repeated_augmentation
    numbers, before = np.arange(images), np.zeros(images, np.int64)
    uses = uses_in_epoch(recipe, epoch, labels)
    if uses is not None:
        numbers = np.repeat(numbers, uses)
        before = np.arange(images) - np.repeat(np.cumsum(uses) - uses, uses)
    order = np.repeat(epoch_order(recipe.seed, epoch, images)[: math.ceil(images / views)], views)[:images]
    again = before[order] * views + np.arange(images) % views
    shown = zip(numbers[order].tolist(), again.tolist(), strict=True)
    keys: list[Key] = [(epoch, number, view) if view else (epoch, number) for number, view in shown]
    return [keys[step * size : (step + 1) * size] for step in range(steps_per_epoch(images, size))]


def batches_from(recipe: Recipe, labels: NDArray[np.int64], epoch: int, step: int) -> Iterator[list[Key]]:
    """Yield the keys of every remaining batch of a run that is at this epoch and step."""
    for each in range(epoch, recipe.epochs):
        yield from epoch_batches(recipe, each, labels)[step if each == epoch else 0 :]


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
    signal.set_wakeup_fd(-1)


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
