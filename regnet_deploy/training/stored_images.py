"""How training images are stored between epochs: decoded once and shrunk, in memory or packed into a file.

Whether images are shrunk follows from their sizes alone. Where they are stored, or that they are decoded every time,
changes the time of an epoch and not one bit of its batches.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.errors import UsageError, require
from regnet_deploy.images.dataset import LabelledImage
from regnet_deploy.images.decode import Scaled
from regnet_deploy.progress import Progress

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

#: Decoded images are kept in memory if they take at most this many bytes.
MEMORY_BYTES = 512 * 2**20
#: Images are shrunk before they are cropped if all of them, shrunk, are at most this many bytes.
PACKED_BYTES = 16 * 2**30
#: Shorter side of a shrunk image, in sides of the network's input.
_SIDES = 2
#: Channels -> bytes of a pixel in Pillow.
_PIXEL_BYTES = {1: 1, 3: 4}


@dataclass(frozen=True)
class ImageStore:
    """Where decoded training images may be stored.

    Attributes:
        memory: in memory, if they fit into :data:`MEMORY_BYTES`.
        folder: in a file of this folder; None for no file.
        required: whether the user named the folder: then images that cannot be packed into it are an error.
    """

    memory: bool = True
    folder: Path | None = None
    required: bool = False


def image_store(cache: str, directory: Path, taken: Iterable[Path]) -> ImageStore:
    """Return where the images of a run are stored.

    Args:
        cache: ``auto`` for memory, else the run directory; ``off`` for nowhere; or a folder.
        directory: the run directory.
        taken: folders that the folder may not be in: that of the images, and the bundle.

    Raises:
        UsageError: the folder is a file, or in one of those.
    """
    if cache in ("auto", "off"):
        return ImageStore(cache == "auto", directory if cache == "auto" else None)
    folder = Path(os.path.realpath(cache))
    if not cache or (folder.exists() and not folder.is_dir()):
        raise UsageError(f"--cache {cache or repr(cache)} is not a folder: give auto, off or a folder")
    for other in taken:
        if folder.is_relative_to(os.path.realpath(other)):
            raise UsageError(f"--cache {cache} is in {other}: give a folder outside of it")
    return ImageStore(False, folder, required=True)


def stored_side(images: Iterable[LabelledImage], preprocessing: Preprocessing) -> int | None:
    """Return the shorter side to which larger images are shrunk before they are cropped, pixels.

    None: they are cropped as they are in their files, because all of them would take more than :data:`PACKED_BYTES`.
    """
    side = _SIDES * preprocessing.crop
    return side if packed_bytes(images, side, preprocessing) <= PACKED_BYTES else None


def packed_bytes(images: Iterable[LabelledImage], side: int, preprocessing: Preprocessing) -> int:
    """Return the bytes of these images, shrunk."""
    return preprocessing.channels * sum(math.prod(_shrunk_size(each.width, each.height, side)) for each in images)


def fits_into_memory(images: Iterable[LabelledImage], preprocessing: Preprocessing) -> bool:
    """Tell whether these images are kept in memory by default."""
    channels = preprocessing.channels
    packed = packed_bytes(images, _SIDES * preprocessing.crop, preprocessing)
    return packed // channels * _PIXEL_BYTES[channels] <= MEMORY_BYTES


def enough_to_shrink(side: int) -> Callable[[int, int], tuple[int, int]]:
    """Return the function from the size of an image to its size when it is shrunk to this shorter side."""
    return lambda width, height: _shrunk_size(width, height, side)


def shrink(image: Scaled, side: int) -> Image:
    """Return an image whose shorter side is ``side`` pixels; smaller images as they are."""
    size = _shrunk_size(*image.size, side)
    if size == image.size and image.scale == 1:
        return image.image
    return image.image.resize(size, require("PIL.Image", "train").Resampling.BOX, box=image.box(0, 0, *image.size))


def in_threads(function: Callable[[int], T], count: int, progress: Progress) -> list[T]:
    """Return ``function(number)`` for all numbers below ``count``."""
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


def _shrunk_size(width: int, height: int, side: int) -> tuple[int, int]:
    scale = min(1.0, side / min(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))
