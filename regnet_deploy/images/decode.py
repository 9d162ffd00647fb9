"""Image bytes to RGB pixels, the same for training, golden sets and requests."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

from regnet_deploy.errors import DataError, require

if TYPE_CHECKING:
    from PIL.Image import Image

#: Formats that are decoded. Others (EPS runs Ghostscript, for one) are not opened, whatever the file is called.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "MPO")
#: Pixels beyond which an image is refused before it is decoded.
MAX_PIXELS = 100_000_000


def decode(data: bytes, name: str = "image", max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] = FORMATS) -> Image:
    """Return an upright RGB image.

    The EXIF orientation is applied; grey, palette and CMYK images are converted; transparency is laid on white; 16-bit
    grey is scaled to 8; of an animation the first frame is taken.

    Args:
        data: the encoded file.
        name: what an error calls it.
        max_pixels: width times height that is refused before decoding.
        formats: Pillow's names of what may be decoded.

    Raises:
        DataError: not an image of a known format, truncated, or too large.
    """
    image_module = require("PIL.Image", "serve")
    require("PIL.ImageOps", "serve")
    if not data:
        raise DataError(f"{name}: empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", image_module.DecompressionBombWarning)
            # What Pillow merely warns of (odd EXIF, a palette with bytes for transparency) is not worth a word here.
            warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
            image = image_module.open(io.BytesIO(data), formats=formats)
            if image.width * image.height > max_pixels:
                raise DataError(f"{name}: {image.width}x{image.height} is more than {max_pixels:,} pixels")
            image.load()
            return _upright_rgb(image)
    except image_module.UnidentifiedImageError:
        raise DataError(f"{name}: not an image in a format that is read ({', '.join(formats)})") from None
    except (image_module.DecompressionBombError, image_module.DecompressionBombWarning):
        raise DataError(f"{name}: more than {max_pixels:,} pixels") from None
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError) as error:
        # Pillow's decoders raise any of these on broken files.
        raise DataError(f"{name}: broken image ({str(error).splitlines()[0] if str(error) else type(error).__name__})") from None


def _upright_rgb(image: Image) -> Image:
    from PIL import Image as module
    from PIL import ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode == "I":  # 16-bit grey, which convert() would clip at 255
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    elif image.mode == "F":
        image = image.convert("L")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = module.new("RGBA", image.size, (255, 255, 255, 255))
        image = module.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")
