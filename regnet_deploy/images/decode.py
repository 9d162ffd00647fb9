"""Image bytes to RGB pixels, the same for training, golden sets and requests."""

from __future__ import annotations

import io
import re
import struct
import warnings
from typing import TYPE_CHECKING

from regnet_deploy.errors import DataError, require

if TYPE_CHECKING:
    from PIL.Image import Image

#: Formats that are decoded. Others (EPS runs Ghostscript, for one) are not opened, whatever the file is called.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
#: Pixels beyond which an image is refused before it is decoded.
MAX_PIXELS = 100_000_000
#: What Pillow's decoders raise on broken files.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, struct.error)
#: EXIF orientation -> Pillow's name of the transposition that puts the image upright.
_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
_ORIENTATION = 0x0112


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
    if not data:
        raise DataError(f"{name}: empty file")
    try:
        _ignore_pillow_warnings()
        image = image_module.open(io.BytesIO(data), formats=formats)
        if image.width * image.height > max_pixels:
            raise DataError(f"{name}: {image.width}x{image.height} is more than {max_pixels:,} pixels")
        image.load()
        return _upright_rgb(image)
    except image_module.UnidentifiedImageError:
        raise DataError(f"{name}: not an image in a format that is read ({', '.join(formats)})") from None
    except image_module.DecompressionBombError:
        raise DataError(f"{name}: more than {max_pixels:,} pixels") from None
    except _BROKEN as error:
        raise DataError(
            f"{name}: broken image ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        ) from None


def _ignore_pillow_warnings() -> None:
    """Have Pillow's warnings ignored: odd EXIF is not worth a word, and the limit of pixels is our own.

    Images are decoded in threads, where ``warnings.catch_warnings`` of one would undo that of another. So the filter is
    set for the process, and again only where someone has taken it away.
    """
    wanted = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
    if wanted not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")


def _upright_rgb(image: Image) -> Image:
    from PIL import Image as module

    # ImageOps.exif_transpose would write the EXIF anew as well, and fail where another field of it is broken.
    turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    if turn:
        image = image.transpose(module.Transpose[turn])
    if image.mode.startswith("I;16") or image.mode == "I":  # 16-bit grey, which convert() would clip at 255
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    elif image.mode == "F":
        image = image.convert("L")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = module.new("RGBA", image.size, (255, 255, 255, 255))
        image = module.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")
