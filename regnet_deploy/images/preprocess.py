"""What stands between a decoded image and the network, written down once and carried in the bundle."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.errors import BundleError, require
from regnet_deploy.images.decode import decode

if TYPE_CHECKING:
    from PIL.Image import Image

#: Mean and standard deviation of ImageNet's training images, RGB, of 0..1 (as in pycls, timm and torchvision).
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """Resize the short side, crop the centre, normalise.

    Attributes:
        resize: short side after resizing, pixels.
        crop: side of the central square that the network sees, pixels.
        interpolation: ``bilinear`` or ``bicubic``, with antialiasing.
        mean: subtracted from RGB in 0..1.
        std: divided by after that.
        colours: order of the channels; always ``RGB``.
    """

    resize: int
    crop: int
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    colours: str = "RGB"

    def to_json(self) -> dict[str, Any]:
        """Return JSON data that :meth:`from_json` reads."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Preprocessing:
        """Read what :meth:`to_json` wrote.

        Raises:
            BundleError: fields are missing or unknown.
        """
        try:
            fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
            made = cls(**fields)
        except TypeError:
            raise BundleError(f"the bundle's preprocessing is not understood: {data}") from None
        if made.colours != "RGB" or made.interpolation not in ("bilinear", "bicubic"):
            raise BundleError(f"the bundle's preprocessing is not understood: {data}")
        return made


def default_preprocessing(resolution: int) -> Preprocessing:
    """Return the paper's test-time view: short side 256 / 224 of the resolution, then its centre.

    Small images (below 96 pixels a side) are shown whole: what they depict fills the frame.
    """
    from regnet_deploy.space.network import SMALL_RESOLUTION

    resize = resolution if resolution < SMALL_RESOLUTION else round(resolution * 256 / 224)
    return Preprocessing(resize=resize, crop=resolution)


def resize_and_crop(image: Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Return the pixels that the network sees, ``(crop, crop, 3)`` RGB.

    Only the region of the source that ends up in the crop is resampled.
    """
    module = require("PIL.Image", "serve")
    width, height = image.size
    short = min(width, height)
    # The size to which the whole image would be resized, and the crop's place in it, both in whole pixels.
    full_width = max(preprocessing.resize, round(width * preprocessing.resize / short))
    full_height = max(preprocessing.resize, round(height * preprocessing.resize / short))
    left = (full_width - preprocessing.crop) // 2
    top = (full_height - preprocessing.crop) // 2
    box = (
        left * width / full_width,
        top * height / full_height,
        (left + preprocessing.crop) * width / full_width,
        (top + preprocessing.crop) * height / full_height,
    )
    method = getattr(module.Resampling, preprocessing.interpolation.upper())
    view = image.resize((preprocessing.crop, preprocessing.crop), method, box=box)
    return np.asarray(view, dtype=np.uint8)


def normalise(pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.float32]:
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


def load_pixels(data: bytes, preprocessing: Preprocessing, name: str = "image") -> NDArray[np.uint8]:
    """Decode a file and return what the network sees of it, ``(crop, crop, 3)`` RGB.

    Raises:
        DataError: the file is not a usable image.
    """
    return resize_and_crop(decode(data, name), preprocessing)
