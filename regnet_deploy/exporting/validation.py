"""The validation set: labeled images as inputs of the network, kept in memory or decoded in every pass."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.bundle import Bundle
from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.errors import DataError
from regnet_deploy.exporting.decoded_images import decode_images
from regnet_deploy.exporting.training_dataset import load_training_dataset
from regnet_deploy.images.dataset import ImageDataset, stratified_order
from regnet_deploy.images.decode import ImageError
from regnet_deploy.images.image_source import MAX_UNREADABLE, ImageSource
from regnet_deploy.images.preprocessing import image_shape
from regnet_deploy.progress import NoProgress, Progress

#: Largest size of all pixels, in bytes, that is kept in memory; larger sets are decoded in every pass.
MEMORY_BYTES = 512 * 2**20
BATCH = 16


class ImageBatch(NamedTuple):
    """Validation images: their numbers ``(n,)``, pixels ``(n, h, w, channels)`` uint8, labels ``(n,)`` int64."""

    numbers: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ValidationSet:
    """Labeled images as inputs of the network.

    Attributes:
        source: where the images are read from.
        indices: of the images in ``source``.
        labels: ``(n,)`` int64, indices into the bundle's labels.
        numbers: ``(n,)`` int64, rising: index of each image in the full set; a subset keeps these numbers.
        split: where the images come from, in words.
        preprocessing: of the bundle.
        pixels: ``(n, h, w, channels)`` uint8 if they are kept in memory, else None.
        unreadable: name -> reason of images that cannot be read; filled while batches are read if ``pixels`` is None.
    """

    source: ImageSource
    indices: tuple[int, ...]
    labels: NDArray[np.int64]
    numbers: NDArray[np.int64]
    split: str
    preprocessing: Preprocessing
    pixels: NDArray[np.uint8] | None
    unreadable: dict[str, str]

    def __len__(self) -> int:
        return len(self.indices)

    def batches(self, size: int = BATCH) -> Iterator[ImageBatch]:
        """Yield all readable images in order, ``size`` at a time."""
        if self.pixels is not None:
            for i in range(0, len(self), size):
                yield ImageBatch(self.numbers[i : i + size], self.pixels[i : i + size], self.labels[i : i + size])
            return
        rows: list[int] = []
        pixels: list[NDArray[np.uint8]] = []
        for row, image in enumerate(decode_images(self.source, self.indices, self.preprocessing)):
            if isinstance(image, ImageError):
                self.unreadable[image.name] = image.reason
                continue
            rows.append(row)
            pixels.append(image)
            if len(pixels) == size:
                yield ImageBatch(self.numbers[rows], np.stack(pixels), self.labels[rows])
                rows, pixels = [], []
        if pixels:
            yield ImageBatch(self.numbers[rows], np.stack(pixels), self.labels[rows])

    def subset(self, n: int, seed: int = 0) -> ValidationSet:
        """Return ``n`` of the images, or all if there are not more: one of each class, then a second, and so on."""
        if n >= len(self):
            return self
        rows = sorted(stratified_order(self.labels.tolist(), seed)[:n])
        return replace(
            self,
            indices=tuple(self.indices[row] for row in rows),
            labels=self.labels[rows],
            numbers=self.numbers[rows],
            pixels=None if self.pixels is None else self.pixels[rows],
            unreadable={},
        )

    def check_unreadable(self) -> str | None:
        """Return one line about files that cannot be read, after all were tried; None if all can be read.

        Raises:
            DataError: they are more than a tenth.
        """
        if not self.unreadable:
            return None
        example, reason = next(iter(self.unreadable.items()))
        names = {self.source.names[index] for index in self.indices} | self.unreadable.keys()
        images, unreadable = len(names), len(self.unreadable)
        line = (
            f"{unreadable:,} of {images:,} validation images in {self.source.root} cannot be read, "
            f"for example {example}: {reason}"
        )
        if unreadable > MAX_UNREADABLE * images:
            raise DataError(f"{line}; at most {MAX_UNREADABLE:.0%} may be unreadable: repair or remove those files")
        return line


def load_validation_set(
    data: str | Path | ImageDataset,
    bundle: Bundle,
    preprocessing: Preprocessing,
    progress: Progress | None = None,
) -> ValidationSet:
    """Return the validation images: those in ``val/`` of a folder, or those that training held out.

    Args:
        data: the folder that was given to ``train --data``, another folder with ``val/`` and the same classes, or the
            result of :func:`regnet_deploy.exporting.training_dataset.load_training_dataset`.
        bundle: a trained bundle.
        preprocessing: of the bundle.
        progress: receives the images decoded, where they are kept in memory.

    Raises:
        DataError: the folder does not exist, has other classes than the bundle, its held-out images are not known, or,
            where the images are kept in memory, more than a tenth of them cannot be read.
        MissingPart: the bundle is not trained.
    """
    progress = progress or NoProgress()
    dataset = data if isinstance(data, ImageDataset) else load_training_dataset(data, bundle, progress)
    index = {name: i for i, name in enumerate(bundle.labels)}
    labels = np.asarray([index[dataset.classes[image.label]] for image in dataset.val], np.int64)
    indices = tuple(image.index for image in dataset.val)
    numbers = np.arange(len(indices))
    if len(indices) * math.prod(image_shape(preprocessing, pixels=True)) > MEMORY_BYTES:
        return ValidationSet(dataset.source, indices, labels, numbers, dataset.split, preprocessing, None, {})
    usable: list[int] = []
    pixels = np.empty((len(indices), *image_shape(preprocessing, pixels=True)), np.uint8)
    unreadable: dict[str, str] = {}
    for number, image in enumerate(decode_images(dataset.source, indices, preprocessing)):
        if isinstance(image, ImageError):
            unreadable[image.name] = image.reason
        else:
            pixels[len(usable)] = image
            usable.append(number)
        progress.update(number + 1, len(indices))
    validation = ValidationSet(
        dataset.source,
        tuple(indices[number] for number in usable),
        labels[usable],
        numbers[usable],
        dataset.split,
        preprocessing,
        pixels[: len(usable)],
        unreadable,
    )
    validation.check_unreadable()
    return validation
