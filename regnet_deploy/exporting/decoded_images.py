"""Images as the inputs of a network: decoded in threads, in order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.cpu import available_cores
from regnet_deploy.images.decode import ImageError
from regnet_deploy.images.image_source import ImageSource
from regnet_deploy.images.preprocessing import load_pixels

#: Images that are decoded at a time; no more images than this are in memory.
_CHUNK = 32


def decode_images(
    source: ImageSource, indices: Sequence[int], preprocessing: Preprocessing
) -> Iterator[NDArray[np.uint8] | ImageError]:
    """Yield for each index its pixels ``(h, w, channels)``, or the error if the image cannot be decoded."""

    def decode(index: int) -> NDArray[np.uint8] | ImageError:
        try:
            return load_pixels(source.read(index), preprocessing, source.names[index])
        except ImageError as error:
            return error

    pool = ThreadPoolExecutor(max_workers=min(16, available_cores()))
    try:
        for start in range(0, len(indices), _CHUNK):
            yield from pool.map(decode, indices[start : start + _CHUNK])
    finally:
        pool.shutdown(cancel_futures=True)


def pixels_fingerprint(pixels: NDArray[np.uint8]) -> bytes:
    """Return the sha256 of an image's pixels (32 bytes), which identifies it."""
    return hashlib.sha256(pixels.tobytes()).digest()
