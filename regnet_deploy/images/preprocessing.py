"""What stands between a decoded image and the network, written down once and carried in the bundle."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.errors import require
from regnet_deploy.images.decode import FORMATS, MAX_PIXELS, Scaled, decode, decode_scaled

if TYPE_CHECKING:  # this module runs in Triton's image, too, which does not have msgspec
    from PIL.Image import Image

    from regnet_deploy.bundle.manifest import Preprocessing


def default_preprocessing(resolution: int) -> Preprocessing:
    """Return the paper's test-time view: short side 256 / 224 of the resolution, then its centre.

    Small images (below 96 pixels a side) are shown whole: what they depict fills the frame.
    """
    from regnet_deploy.bundle.manifest import Preprocessing
    from regnet_deploy.space.network import SMALL_RESOLUTION

    resize = resolution if resolution < SMALL_RESOLUTION else round(resolution * 256 / 224)
    return Preprocessing(resize=resize, crop=resolution, scaled_decoding=True)


def load_pixels(
    data: bytes | bytearray | memoryview,
    preprocessing: Preprocessing,
    name: str = "image",
    max_pixels: int = MAX_PIXELS,
    formats: tuple[str, ...] = FORMATS,
) -> NDArray[np.uint8]:
    """Decode a file and return what the network sees of it, ``(crop, crop, 3)`` RGB.

    The one way from a file to pixels that are evaluated: of validation, golden sets, calibration, predictions and the
    server alike. Only the views that are drawn at random in training have another.

    Args:
        data: the encoded file.
        preprocessing: of the bundle.
        name: what an error calls the file.
        max_pixels: width times height that is refused before decoding.
        formats: Pillow's names of what may be decoded.

    Raises:
        DataError: the file is not a usable image.
    """
    if preprocessing.scaled_decoding:
        return _view(decode_scaled(data, partial(_resized, preprocessing), name, max_pixels, formats), preprocessing)
    return resize_and_crop(decode(data, name, max_pixels, formats), preprocessing)


def resize_and_crop(image: Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Return the pixels that the network sees of an image of full size, ``(crop, crop, 3)`` RGB.

    Only the region of the source that ends up in the crop is resampled.
    """
    return _view(Scaled(image, image.size), preprocessing)


def _resized(preprocessing: Preprocessing, width: int, height: int) -> tuple[int, int]:
    """Return the size to which a whole image would be resized, in whole pixels."""
    short = min(width, height)
    return (
        max(preprocessing.resize, round(width * preprocessing.resize / short)),
        max(preprocessing.resize, round(height * preprocessing.resize / short)),
    )


def _view(source: Scaled, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    module = require("PIL.Image", "serve")
    (width, height), scale, (x, y) = source.size, source.scale, source.origin
    full_width, full_height = _resized(preprocessing, width, height)
    # The crop's place in what the whole image would be resized to, in whole pixels, then in the source's own pixels.
    left = (full_width - preprocessing.crop) // 2
    top = (full_height - preprocessing.crop) // 2
    box = (
        left * width / full_width / scale + x,
        top * height / full_height / scale + y,
        (left + preprocessing.crop) * width / full_width / scale + x,
        (top + preprocessing.crop) * height / full_height / scale + y,
    )
    method = getattr(module.Resampling, preprocessing.interpolation.upper())
    view = source.image.resize((preprocessing.crop, preprocessing.crop), method, box=box)
    return np.asarray(view, dtype=np.uint8)


def normalize(pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Map pixels ``(n, h, w, 3)`` uint8 to the network's input ``(n, 3, h, w)`` float32."""
    scale, shift = scale_and_shift(preprocessing)
    planes = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32)
    planes *= scale[:, None, None]
    planes += shift[:, None, None]
    return planes


def scale_and_shift(preprocessing: Preprocessing) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return a and c, ``(3,)`` each, such that a * pixel + c is the normalised value of a pixel in 0..255."""
    mean, std = np.asarray(preprocessing.mean), np.asarray(preprocessing.std)
    return (1.0 / (255.0 * std)).astype(np.float32), (-mean / std).astype(np.float32)
