"""Decoding of image files to RGB or gray pixels, the same for training, golden sets and requests."""

from __future__ import annotations

import contextlib
import io
import re
import struct
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from regnet_deploy.errors import DataError, require

if TYPE_CHECKING:
    from PIL.Image import Image

#: Formats that are decoded. Others are not opened, whatever the name of the file; EPS, for example, runs Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
#: Formats that a server decodes: those of the web, whose decoders are tested the most.
WEB_FORMATS = ("JPEG", "PNG", "WEBP")
#: Format -> suffixes of the names of its files.
_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jif", ".jfif", ".pjpeg"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
#: Suffixes of all of them.
SUFFIXES = frozenset(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes)
#: An image whose levels differ by no more than this in every channel, of 255, is taken for one color.
ONE_COLOR = 3
#: Bits of the perceptual hash: the frequencies in each direction, squared.
_PHASH_SIDE = 16
PHASH_BITS = _PHASH_SIDE**2
#: Shorter side to which an image is reduced before it is hashed, pixels.
_HASHED_SIDE = 256
#: An image with more pixels is refused before it is decoded.
MAX_PIXELS = 100_000_000
#: Exceptions that Pillow's decoders raise for broken files.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, struct.error)
#: EXIF orientation -> Pillow's name of the transposition that makes the image upright.
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
#: Orientations that swap width and height; that put the stored image's right or bottom side left; that put it on top.
_SWAPS, _SPARE_LEFT, _SPARE_TOP = (5, 6, 7, 8), (2, 3, 6, 7), (3, 4, 7, 8)
#: Start of a PNG, and the byte that has its bits per sample.
_PNG, _PNG_BITS = b"\x89PNG\r\n\x1a\n", 24
#: Pillow's names of formats that libjpeg decodes; MPO is a file with several JPEG images.
_LIBJPEG = ("JPEG", "MPO")

#: Maps width and height of an upright image to the width and height that are needed, pixels.
Enough = Callable[[int, int], tuple[int, int]]


class ImageError(DataError):
    """An image that cannot be used.

    Attributes:
        name: of the image.
        reason: why it cannot be used.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)  # both, so that the error can be pickled
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Scaled:
    """An upright image, RGB or gray, that may be decoded at a reduced size.

    Attributes:
        image: its pixels.
        size: width and height at full size, pixels.
        scale: divisor of width and height: 1, 2, 4 or 8.
        origin: position of the upper left corner in ``image``, pixels of ``image``. It is not (0, 0) if a side that is
            not a multiple of the scale was mirrored: the pixel that is only partly covered then comes first.
    """

    image: Image
    size: tuple[int, int]
    scale: int = 1
    origin: tuple[float, float] = (0.0, 0.0)

    def box(self, left: float, top: float, right: float, bottom: float) -> tuple[float, float, float, float]:
        """Return a part of the image at full size, in pixels of ``image``."""
        x, y = self.origin
        return left / self.scale + x, top / self.scale + y, right / self.scale + x, bottom / self.scale + y


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What is known of an image after it was decoded once.

    Attributes:
        size: width and height, upright, pixels.
        contrast: largest difference of two levels in a channel of the image in RGB, of 255.
        transparent: whether an image of nearly one color has transparent pixels.
        peak: highest level of an image of 16 bits, of 65,535; None for other images.
        mode: Pillow's name of the channels in the file, such as ``RGB``, ``L`` (gray) or ``P`` (palette).
        gray: whether the channels of the image as the network sees it are equal.
        phash: perceptual hash, :data:`PHASH_BITS` bits in hexadecimal digits; empty for an image of one color.
        decode_ms: time of one core for decoding, ms.
    """

    size: tuple[int, int]
    contrast: int
    transparent: bool
    peak: int | None
    mode: str
    gray: bool
    phash: str
    decode_ms: float


def decode(
    data: bytes | bytearray | memoryview,
    name: str = "image",
    max_pixels: int = MAX_PIXELS,
    formats: tuple[str, ...] = FORMATS,
    colours: str = "RGB",
) -> Image:
    """Return an upright image.

    The EXIF orientation is applied; gray, palette and CMYK images are converted; transparent pixels are blended with
    white, or with black where the image would be white all over; 16-bit gray is scaled to 8 bits, unless it has the
    levels of 8 bits; only the first frame of an animation is decoded. A JPEG is decoded at full size.

    Gray is the luma of ITU-R 601, L = 0.299 R + 0.587 G + 0.114 B, as of Pillow's mode ``L``. A JPEG stores it; its
    colors are not decoded.

    Args:
        data: the encoded file.
        name: of the image, for errors.
        max_pixels: largest width times height.
        formats: Pillow's names of the accepted formats.
        colours: ``RGB``, or ``L`` for gray.

    Raises:
        ImageError: not an image of an accepted format, truncated, too large, or with values of unknown range.
    """
    with _one_line(name, max_pixels, formats):
        image = _open(data, name, max_pixels, formats)
        if colours == "L":
            image.draft("L", None)
        image.load()
        return _upright(image, name, colours)


def decoder() -> str:
    """Return name and version of what decodes images: with another one, pixels may differ in their last bits."""
    features, pillow = require("PIL.features", "serve"), require("PIL", "serve").__version__
    turbo = features.version_feature("libjpeg_turbo")
    return f"Pillow {pillow}, {f'libjpeg-turbo {turbo}' if turbo else 'libjpeg ' + str(features.version_codec('jpg'))}"


def image_facts(data: bytes, name: str = "image") -> ImageFacts:
    """Decode an image like :func:`decode`, in RGB, and return what it is like.

    The perceptual hash is the DCT hash of ImageHash: whether each of the lowest 16 x 16 frequencies of the gray image
    is above their median. Images that were compressed, scaled or brightened again keep most of its bits.

    Raises:
        ImageError: as of :func:`decode`.
        MissingExtra: ImageHash is not installed.
    """
    with _one_line(name, MAX_PIXELS, FORMATS):
        begun = time.thread_time()
        image = _open(data, name, MAX_PIXELS, FORMATS)
        image.load()
        seen = _upright(image, name)
        decode_ms = round(1e3 * (time.thread_time() - begun), 3)
        bands: Any = seen.getextrema()
        contrast = max(high - low for low, high in bands)
        transparent = False
        if contrast < 16 and image.has_transparency_data and not image.mode.startswith("I"):  # else it matters little
            transparent = image.convert("RGBA").getchannel("A").getextrema()[0] < 255  # type: ignore[operator]
        peak = None
        if image.mode.startswith("I"):  # gray of 16 bits; of other numbers, _upright has refused those beyond
            peak = int(image.convert("I").getextrema()[1])  # type: ignore[arg-type]
        elif data[:8] == _PNG and data[_PNG_BITS] == 16:  # of colors, Pillow keeps the upper 8 bits
            peak = max(high for _, high in bands) * 256 + 255
    small = seen.reduce(max(1, min(seen.size) // _HASHED_SIDE))  # what the hash looks at is smaller still
    phash = str(require("imagehash", "train").phash(small, _PHASH_SIDE)) if contrast > ONE_COLOR else ""
    return ImageFacts(seen.size, contrast, transparent, peak, image.mode, _is_gray(small), phash, decode_ms)


def _is_gray(image: Image) -> bool:
    """Tell whether the channels of an RGB image are equal, but for what compression alters."""
    from PIL import ImageChops

    red, green, blue = image.split()
    highest: list[Any] = [ImageChops.difference(red, other).getextrema()[1] for other in (green, blue)]
    return bool(max(highest) <= ONE_COLOR)


def suffixes_of(formats: tuple[str, ...]) -> frozenset[str]:
    """Return the suffixes of the names of files of these formats, in lower case."""
    return frozenset(suffix for name in formats for suffix in _SUFFIXES[name])


def is_image(file: IO[bytes], formats: tuple[str, ...] = FORMATS) -> bool:
    """Tell from the head of an opened file whether it is of one of these formats; it can be broken all the same."""
    _ignore_pillow_warnings()
    module = require("PIL.Image", "serve")
    try:
        module.open(file, formats=formats)
    except module.UnidentifiedImageError:
        return False
    except (module.DecompressionBombError, *_BROKEN):
        return True
    return True


def converted_image(image: Image, colours: str, name: str = "image") -> Image:
    """Return an opened PIL image upright and in ``RGB`` or ``L``, converted as :func:`decode` does.

    Raises:
        DataError: it is truncated, too large, or has levels of no known range.
    """
    with _one_line(name, MAX_PIXELS, FORMATS):
        image.load()
        return _upright(image, name, colours)


def decode_scaled(
    data: bytes | bytearray | memoryview,
    enough: Enough,
    name: str = "image",
    max_pixels: int = MAX_PIXELS,
    formats: tuple[str, ...] = FORMATS,
    colours: str = "RGB",
) -> Scaled:
    """Return an upright image like :func:`decode`, but a large JPEG at 1/2, 1/4 or 1/8 of its size.

    While it decodes, libjpeg skips what a smaller image does not need, which is faster than decoding everything and
    shrinking it. The smallest scale is used at which neither side is smaller than ``enough``.

    Args:
        data: the encoded file.
        enough: maps the full upright size to the size that is needed.
        name: of the image, for errors.
        max_pixels: largest width times height at full size.
        formats: Pillow's names of the accepted formats.
        colours: ``RGB``, or ``L`` for gray.

    Raises:
        ImageError: as of :func:`decode`.
    """
    with _one_line(name, max_pixels, formats):
        image = _open(data, name, max_pixels, formats)
        width, height = image.size
        scale, orientation = 1, 1
        if image.format in _LIBJPEG:
            orientation = image.getexif().get(_ORIENTATION, 1)
            scale = _shrink(image, enough, orientation in _SWAPS, colours)
        image.load()
        upright = _upright(image, name, colours)
        if scale == 1:
            return Scaled(upright, upright.size)
        # The last pixel of a side covers fewer than ``scale`` pixels if the side is not a multiple of it.
        spare = (image.width - width / scale, image.height - height / scale)
        if orientation in _SWAPS:
            (width, height), spare = (height, width), (spare[1], spare[0])
        x = spare[0] if orientation in _SPARE_LEFT else 0.0
        y = spare[1] if orientation in _SPARE_TOP else 0.0
        return Scaled(upright, (width, height), scale, (x, y))


def _shrink(image: Image, enough: Enough, swapped: bool, colours: str) -> int:
    """Make libjpeg decode an image smaller, and gray if that is wanted, and return the divisor of its sides."""
    width, height = image.size
    if swapped:
        high, wide = enough(height, width)
    else:
        wide, high = enough(width, height)
    if colours == "RGB" and min(width // wide, height // high) < 2:
        return 1
    if image.draft(colours, (wide, high)) is None:  # Pillow cannot reduce this file
        return 1
    return next((scale for scale in (8, 4, 2) if min(width // wide, height // high) >= scale), 1)


def _open(data: bytes | bytearray | memoryview, name: str, max_pixels: int, formats: tuple[str, ...]) -> Image:
    if not data:
        raise ImageError(name, "empty file")
    _ignore_pillow_warnings()
    image: Image = require("PIL.Image", "serve").open(io.BytesIO(data), formats=formats)
    if image.width * image.height > max_pixels:
        raise ImageError(name, f"{image.width}x{image.height} is more than {max_pixels:,} pixels")
    return image


@contextlib.contextmanager
def _one_line(name: str, max_pixels: int, formats: tuple[str, ...]) -> Iterator[None]:
    """Convert Pillow's exceptions to an error of one line that names the image."""
    image_module = require("PIL.Image", "serve")
    try:
        yield
    except image_module.UnidentifiedImageError:
        raise ImageError(name, f"not an image in a format that is read ({', '.join(formats)})") from None
    except image_module.DecompressionBombError:
        raise ImageError(name, f"more than {max_pixels:,} pixels") from None
    except _BROKEN as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ImageError(name, f"broken image ({first_line})") from None


def _ignore_pillow_warnings() -> None:
    """Ignore Pillow's warnings: unusual EXIF data does not matter, and the limit of pixels is checked here.

    Images are decoded in threads, in which ``warnings.catch_warnings`` of one thread would undo that of another.
    Therefore the filter is set for the process, and set again only if it was removed.
    """
    wanted = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
    if wanted not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")


def _upright(image: Image, name: str, colours: str = "RGB") -> Image:
    from PIL import Image as module

    # ImageOps.exif_transpose would also write the EXIF data again, and fail if another field of it is broken.
    turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    if turn:
        image = image.transpose(module.Transpose[turn])
    if image.mode == "F":
        raise ImageError(name, "its values are floating-point numbers of unknown range: save it as PNG")
    if image.mode.startswith("I;16") or image.mode == "I":  # 16-bit gray, which convert() would clip at 255
        image = image.convert("I")
        low, high = (int(level) for level in image.getextrema())  # type: ignore[arg-type]  # of one band: two numbers
        if low < 0 or high > 65535:
            raise ImageError(name, f"its values are {low} to {high}, gray images may have 0 to 65535: save it as PNG")
        if high > 255:  # else it is an image of 8 bits in a file of 16, which would become black
            image = image.point(lambda value: value / 256)
        image = image.convert("L")
    if image.mode not in ("RGBA", "LA") and (image.mode in ("PA", "La", "RGBa") or "transparency" in image.info):
        image = image.convert("RGBA")
    if image.mode in ("RGBA", "LA"):  # the image is its own mask, so that no other image is allocated
        laid = _laid_on(image, (255, 255, 255))
        opaque: Any = image.getchannel("A").getextrema()
        bands: Any = laid.getextrema()
        if opaque[1] - opaque[0] > ONE_COLOR and all(most - least <= ONE_COLOR for least, most in bands):
            laid = _laid_on(image, (0, 0, 0))  # white shapes on transparent ground
        image = laid
    if image.mode == colours:
        return image
    if image.mode not in ("1", "L"):  # a palette or CMYK; Pillow converts to gray from RGB only
        image = image if image.mode == "RGB" else image.convert("RGB")
    return image if image.mode == colours else image.convert(colours)


def _laid_on(image: Image, color: tuple[int, int, int]) -> Image:
    """Return an image with alpha on a ground of one color."""
    from PIL import Image as module

    laid = module.new("RGB", image.size, color)
    laid.paste(image, mask=image)
    return laid
