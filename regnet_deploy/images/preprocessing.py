"""Preprocessing: from an image to the input of the network, as the bundle describes it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.errors import require
from regnet_deploy.images.decode import FORMATS, MAX_PIXELS, Scaled, decode, decode_scaled

if TYPE_CHECKING:  # this module also runs in Triton's image, which does not have msgspec
    from PIL.Image import Image

    from regnet_deploy.bundle.manifest import Preprocessing


def default_preprocessing(resolution: int, channels: int = 3) -> Preprocessing:
    """Return the preprocessing of the paper's evaluation: short side 256 / 224 of the resolution, then a center crop.

    Below 96 pixels the whole image is used, because the objects in small images fill the frame. With one channel,
    images become gray.
    """
    from regnet_deploy.bundle.manifest import GRAY_MEAN, GRAY_STD, Preprocessing
    from regnet_deploy.space.network import SMALL_RESOLUTION

    resize = resolution if resolution < SMALL_RESOLUTION else round(resolution * 256 / 224)
    gray: dict[str, Any] = {"colours": "L", "mean": GRAY_MEAN, "std": GRAY_STD} if channels == 1 else {}
    return Preprocessing(resize=resize, crop=resolution, scaled_decoding=True, **gray)


def load_pixels(
    data: bytes | bytearray | memoryview,
    preprocessing: Preprocessing,
    name: str = "image",
    max_pixels: int = MAX_PIXELS,
    formats: tuple[str, ...] = FORMATS,
) -> NDArray[np.uint8]:
    """Decode an image and return the pixels that the network gets, ``(crop, crop, 3)`` RGB or ``(crop, crop, 1)`` gray.

    Validation, golden sets, calibration, predictions and the server all use this function. Only augmented training
    images are made in another way.

    Args:
        data: the encoded file.
        preprocessing: of the bundle.
        name: of the image, for errors.
        max_pixels: largest width times height.
        formats: Pillow's names of the accepted formats.

    Raises:
        ImageError: the file is not a usable image.
    """
    colours = preprocessing.colours
    if preprocessing.scaled_decoding:
        enough = partial(_resized, preprocessing)
        return _crop(decode_scaled(data, enough, name, max_pixels, formats, colours), preprocessing)
    return resize_and_crop(decode(data, name, max_pixels, formats, colours), preprocessing)


def resize_and_crop(image: Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Return the pixels that the network gets of a decoded image, ``(crop, crop, channels)``.

    Only the region of the image that the crop shows is resampled.
    """
    return _crop(Scaled(image, image.size), preprocessing)


def _resized(preprocessing: Preprocessing, width: int, height: int) -> tuple[int, int]:
    """Return the size to which a full image would be resized, in whole pixels."""
    short = min(width, height)
    return (
        max(preprocessing.resize, round(width * preprocessing.resize / short)),
        max(preprocessing.resize, round(height * preprocessing.resize / short)),
    )


def _crop(source: Scaled, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    module = require("PIL.Image", "serve")
    width, height = source.size
    full_width, full_height = _resized(preprocessing, width, height)
    # The position of the crop in the resized full image, in whole pixels, then in pixels of the source.
    left = (full_width - preprocessing.crop) // 2
    top = (full_height - preprocessing.crop) // 2
    box = source.box(
        left * width / full_width,
        top * height / full_height,
        (left + preprocessing.crop) * width / full_width,
        (top + preprocessing.crop) * height / full_height,
    )
    if not preprocessing.antialias:
        return _interpolated(pixels_of(source.image), box, preprocessing.crop)
    method = getattr(module.Resampling, preprocessing.interpolation.upper())
    crop = source.image.resize((preprocessing.crop, preprocessing.crop), method, box=box)
    return pixels_of(crop)


def image_of(pixels: NDArray[np.uint8]) -> Image:
    """Return the image of pixels, ``(h, w, 3)`` RGB or ``(h, w, 1)`` gray."""
    image: Image = require("PIL.Image", "serve").fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
    return image


def pixels_of(image: Image) -> NDArray[np.uint8]:
    """Return the pixels of an image, ``(h, w, 3)`` RGB or ``(h, w, 1)`` gray."""
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _interpolated(image: NDArray[np.uint8], box: tuple[float, ...], side: int) -> NDArray[np.uint8]:
    """Resize a part of an image with each pixel interpolated between its four nearest ones, as OpenCV does.

    Pillow's own transformation without antialiasing rounds all values down.
    """
    near: list[NDArray[np.int64]] = []
    far: list[NDArray[np.int64]] = []
    shares: list[NDArray[np.float32]] = []
    for start, end, size in ((box[1], box[3], image.shape[0]), (box[0], box[2], image.shape[1])):
        position = start + (np.arange(side) + 0.5) * ((end - start) / side) - 0.5
        lower = np.floor(position)
        shares.append((position - lower).astype(np.float32))
        near.append(np.clip(lower, 0, size - 1).astype(np.int64))
        far.append(np.clip(lower + 1, 0, size - 1).astype(np.int64))
    down, right = shares[0][:, None, None], shares[1][None, :, None]
    above, below = (
        image[np.ix_(rows, near[1])] * (1 - right) + image[np.ix_(rows, far[1])] * right for rows in (near[0], far[0])
    )
    return np.floor(above * (1 - down) + below * down + 0.5).astype(np.uint8)


def normalize(pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Map pixels ``(n, h, w, channels)`` uint8 to the network's input ``(n, channels, h, w)`` float32."""
    scale, shift = scale_and_shift(preprocessing)
    planes = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32)
    planes *= scale[:, None, None]
    planes += shift[:, None, None]
    return planes


def image_shape(preprocessing: Preprocessing, *, pixels: bool) -> tuple[int, int, int]:
    """Return the shape of one image in the network's input.

    It is ``(crop, crop, channels)`` for a network that takes pixels, and ``(channels, crop, crop)`` for one that takes
    normalized images.
    """
    side, channels = preprocessing.crop, preprocessing.channels
    return (side, side, channels) if pixels else (channels, side, side)


def scale_and_shift(preprocessing: Preprocessing) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return a and c, ``(channels,)`` each, such that a * pixel + c is the normalized value of a pixel in 0..255."""
    mean, std = np.asarray(preprocessing.mean), np.asarray(preprocessing.std)
    return (1.0 / (255.0 * std)).astype(np.float32), (-mean / std).astype(np.float32)
