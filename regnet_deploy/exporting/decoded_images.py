"""Image files as the inputs of a network: decoded in threads, in order."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.cpu import available_cores
from regnet_deploy.errors import DataError
from regnet_deploy.images.image_check import MAX_BYTES
from regnet_deploy.images.preprocessing import load_pixels

#: Files that are decoded at a time; no more images than this are in memory.
_CHUNK = 32


def decode_images(
    root: Path, paths: Sequence[str], preprocessing: Preprocessing
) -> Iterator[NDArray[np.uint8] | DataError]:
    """Yield for each path, relative to ``root``, its pixels ``(h, w, 3)``, or the error if it cannot be decoded."""

    def decode(path: str) -> NDArray[np.uint8] | DataError:
        try:
            return load_network_input(root / path, preprocessing)
        except DataError as error:
            return error

    pool = ThreadPoolExecutor(max_workers=min(16, available_cores()))
    try:
        for start in range(0, len(paths), _CHUNK):
            yield from pool.map(decode, paths[start : start + _CHUNK])
    finally:
        pool.shutdown(cancel_futures=True)


def pixels_fingerprint(pixels: NDArray[np.uint8]) -> bytes:
    """Return the sha256 of an image's pixels (32 bytes), which identifies it."""
    return hashlib.sha256(pixels.tobytes()).digest()


def load_network_input(file: Path, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Return the pixels ``(h, w, 3)`` of a file after resize and crop.

    Raises:
        DataError: the file cannot be read, or is not a usable image.
    """
    try:
        found = os.stat(file)
        if not stat.S_ISREG(found.st_mode):  # reading a pipe could block for ever
            raise DataError(f"{file}: not a file")
        if found.st_size > MAX_BYTES:
            raise DataError(f"{file}: larger than {MAX_BYTES // 2**20} MiB")
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from None
    return load_pixels(data, preprocessing, str(file))
