"""Decoding: every kind of file that people have comes out upright, RGB and 8-bit, or is refused in one line."""

import io
import re
import threading
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from regnet_deploy.errors import DataError
from regnet_deploy.images.decode import decode, decode_scaled

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def photo(width: int = 40, height: int = 30) -> Image.Image:
    rows, columns = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([rows * 8, columns * 6, rows + columns], axis=2).astype(np.uint8))


def pixels(data: bytes) -> np.ndarray:
    image = decode(data, "it")
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG", "MPO"])
def test_every_known_format_is_read(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    image = Image.new("RGB", (16, 12), (200, 30, 90))
    difference = pixels(encode(image, kind, **options)).astype(int) - np.asarray(image).astype(int)
    assert np.abs(difference).max() <= (3 if kind in ("JPEG", "MPO") else 0)


def test_grey_has_three_equal_channels() -> None:
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    assert (pixels(encode(Image.fromarray(grey))) == grey[:, :, None]).all()


def test_one_bit_is_black_and_white() -> None:
    bits = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1")
    assert pixels(encode(bits)).tolist() == [[[0] * 3, [255] * 3], [[255] * 3, [0] * 3]]


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    levels = np.array([[0, 256, 32768, 65535]], np.uint16)
    assert pixels(encode(Image.fromarray(levels)))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_transparency_is_laid_on_white() -> None:
    image = Image.new("RGBA", (2, 1))
    image.putpixel((0, 0), (*RED, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    assert pixels(encode(image)).tolist() == [[list(RED), list(WHITE)]]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_white_shapes_on_transparent_ground_are_laid_on_black(mode: str) -> None:
    image = Image.new("RGBA", (2, 1), (255, 255, 255, 0))
    image.putpixel((0, 0), (255, 255, 255, 255))
    assert pixels(encode(image.convert(mode))).tolist() == [[list(WHITE), [0, 0, 0]]]


def test_gray_of_16_bits_with_the_levels_of_8_is_read_as_8() -> None:
    levels = np.array([[0, 100, 255]], np.uint16)
    assert pixels(encode(Image.fromarray(levels)))[0, :, 0].tolist() == [0, 100, 255]
    levels = np.array([[0, 100, 256]], np.uint16)
    assert pixels(encode(Image.fromarray(levels)))[0, :, 0].tolist() == [0, 0, 1]


def test_half_transparent_is_half_white() -> None:
    assert pixels(encode(Image.new("RGBA", (1, 1), (0, 0, 0, 128)))).tolist() == [[[127] * 3]]


def test_grey_with_alpha_is_laid_on_white() -> None:
    assert pixels(encode(Image.new("LA", (1, 1), (0, 0)))).tolist() == [[list(WHITE)]]


@pytest.mark.parametrize("transparency", [1, bytes([255, 0])], ids=["index", "table"])
def test_palette_with_transparency_is_laid_on_white(transparency: object) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*BLUE, *GREEN])
    image.putpixel((1, 0), 1)
    assert pixels(encode(image, transparency=transparency)).tolist() == [[list(BLUE), list(WHITE)]]


def test_palette_without_transparency_keeps_its_colours() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*BLUE, *GREEN])
    image.putpixel((1, 0), 1)
    assert pixels(encode(image)).tolist() == [[list(BLUE), list(GREEN)]]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_converted(kind: str) -> None:
    cyan = pixels(encode(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), kind))[4, 4]
    assert np.abs(cyan.astype(int) - [0, 255, 255]).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_put_upright(orientation: int) -> None:
    upright = np.asarray(photo())
    # What a camera that is held so stores: the inverse of what turns it upright.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    assert (pixels(data) == upright).all()


def test_another_broken_exif_field_does_not_keep_an_image_from_being_read() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    exif[0x011A] = 72.0
    data = bytearray(encode(photo(), exif=exif))
    start = data.index(b"eXIf")
    end = start + 4 + int.from_bytes(data[start - 4 : start], "big")
    data[data.index(b"\x01\x1a\x00\x05") + 3] = 3  # the type of the field: a fraction becomes a short number
    data[end : end + 4] = zlib.crc32(data[start:end]).to_bytes(4, "big")
    assert (pixels(bytes(data)) == np.asarray(photo())[::-1, ::-1]).all()


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (4, 4), RED), Image.new("RGB", (4, 4), BLUE)]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixels(data)[0, 0].tolist() == list(RED)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_a_truncated_file_is_refused(kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encode(noise, kind)
    with pytest.raises(DataError, match=r"^it: (broken|not an) image"):
        decode(data[: len(data) // 2], "it")
    with pytest.raises(DataError, match=r"^it: (broken|not an) image"):
        decode_scaled(data[: len(data) // 2], lambda width, height: (8, 8), "it")


@pytest.mark.parametrize("data", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\0" * 5000])
def test_what_is_no_image_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(DataError, match=r"^it: (empty file|not an image in a format that is read)"):
        decode(data, "it")


@pytest.mark.parametrize(("width", "height"), [(10_001, 10_000), (20_000, 20_000)])
def test_a_huge_image_is_refused_before_its_pixels_are_made(width: int, height: int) -> None:
    header = f"P6 {width} {height} 255\n".encode()  # not a byte of pixels follows
    with pytest.raises(DataError, match=r"^it: .*more than 100,000,000 pixels"):
        decode(header, "it")


def test_formats_can_be_narrowed() -> None:
    with pytest.raises(DataError, match=r"\(JPEG\)"):
        decode(encode(photo(), "PNG"), "it", formats=("JPEG",))


def test_warnings_of_pillow_stay_silent_in_many_threads() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*BLUE, *GREEN])
    data = encode(image, transparency=bytes([255, 0]))
    caught: list[Exception] = []

    def work() -> None:
        for _ in range(50):
            try:
                decode(data)
            except Exception as error:
                caught.append(error)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert caught == []


#: Big-endian, one field: the orientation, 6.
EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
ENCODED = [encode(photo(), kind, exif=EXIF) for kind in ("JPEG", "PNG", "WEBP")]
ENCODED += [encode(Image.new("CMYK", (40, 30)), "JPEG", progressive=True), encode(photo(), "MPO")]
ENCODED += [encode(photo(), kind) for kind in ("GIF", "BMP", "TIFF", "PPM")]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(ENCODED), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6))
def test_changed_bytes_are_an_image_or_a_data_error(data: bytes, changes: list[tuple[int, int]]) -> None:
    broken = bytearray(data)
    for place, value in changes:
        broken[place % len(broken)] = value
    message = ""
    try:
        assert decode_scaled(bytes(broken), lambda width, height: (9, 9), "it", max_pixels=10**7).image.mode == "RGB"
        assert decode(bytes(broken), "it", max_pixels=10**7).mode == "RGB"
    except DataError as error:
        message = str(error)
    assert not message or re.fullmatch(r"it: .+", message)


def test_floating_point_levels_are_refused_with_a_reason() -> None:
    image = Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32))
    with pytest.raises(DataError, match=r"^it: its values are floating-point"):
        decode(encode(image, "TIFF"), "it")


@pytest.mark.parametrize("levels", [[0, 70_000], [-1, 5]])
def test_levels_beyond_16_bits_are_refused_with_a_reason(levels: list[int]) -> None:
    image = Image.fromarray(np.array([levels], np.int32))
    with pytest.raises(DataError, match=rf"^it: its values are {levels[0]} to {levels[1]}"):
        decode(encode(image, "TIFF"), "it")


def test_32_bit_grey_within_16_bits_is_scaled() -> None:
    levels = np.array([[0, 256, 65535]], np.int32)
    assert pixels(encode(Image.fromarray(levels), "TIFF"))[0, :, 0].tolist() == [0, 1, 255]


def test_transparency_is_laid_on_white_without_another_image_of_four_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(Image.new("RGBA", (4, 4), (10, 20, 30, 0)))
    monkeypatch.setattr(Image.Image, "convert", lambda *arguments: pytest.fail("a copy was made"))
    assert decode(data).getpixel((0, 0)) == WHITE


@pytest.mark.parametrize(
    ("size", "enough", "scale"),
    [
        ((100, 80), (100, 80), 1),
        ((100, 80), (51, 40), 1),
        ((100, 80), (50, 41), 1),
        ((100, 80), (50, 40), 2),
        ((101, 83), (25, 20), 4),
        ((101, 83), (12, 10), 8),
        ((101, 83), (1, 1), 8),
        ((9, 2000), (20, 4000), 1),
    ],
)
def test_a_jpeg_is_decoded_at_the_smallest_scale_that_is_enough(
    size: tuple[int, int], enough: tuple[int, int], scale: int
) -> None:
    found = decode_scaled(encode(photo(*size), "JPEG"), lambda width, height: enough)
    assert (found.scale, found.size, found.origin) == (scale, size, (0.0, 0.0))
    assert found.image.size == (-(-size[0] // scale), -(-size[1] // scale))
    assert scale == 1 or (found.image.width >= enough[0] and found.image.height >= enough[1])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_what_is_enough_is_said_of_the_upright_image(orientation: int) -> None:
    asked, exif = [], Image.Exif()
    exif[0x0112] = orientation
    data = encode(photo(120, 33), "JPEG", exif=exif)
    upright = (33, 120) if orientation >= 5 else (120, 33)

    def enough(width: int, height: int) -> tuple[int, int]:
        asked.append((width, height))
        return (width // 4, height // 4)

    found = decode_scaled(data, enough)
    assert asked == [upright]
    assert (found.scale, found.size) == (4, upright)
    assert found.image.size == ((9, 30) if orientation >= 5 else (30, 9))
    # The ninth pixel is a quarter the image's own; where that side was turned, it comes first.
    turned = {3: (0, 0.75), 4: (0, 0.75), 6: (0.75, 0), 7: (0.75, 0)}
    assert found.origin == turned.get(orientation, (0, 0))


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("L", "JPEG", {}),
        ("CMYK", "JPEG", {}),
        ("RGB", "JPEG", {"progressive": True}),
        ("RGB", "JPEG", {"subsampling": 0}),
        ("RGB", "MPO", {"save_all": True, "append_images": [photo()]}),
    ],
)
def test_every_jpeg_can_be_scaled(mode: str, kind: str, options: dict[str, object]) -> None:
    image = Image.new("L", (64, 48), 77).convert(mode)
    found = decode_scaled(encode(image, kind, **options), lambda width, height: (20, 15))
    assert (found.scale, found.image.size, found.image.mode) == (2, (32, 24), "RGB")
    assert np.abs(np.asarray(found.image).astype(int) - 77).max() <= 2


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_what_is_no_jpeg_is_decoded_in_full(kind: str) -> None:
    exif = {"exif": EXIF} if kind in ("PNG", "WEBP") else {}
    data = encode(photo(), kind, **exif)
    found = decode_scaled(data, lambda width, height: (4, 3))
    assert (found.scale, found.size) == (1, (30, 40) if exif else (40, 30))
    assert (np.asarray(found.image) == pixels(data)).all()


def luma(image: Image.Image) -> np.ndarray:
    """0.299 R + 0.587 G + 0.114 B, with 16 bits for the fractions as in Pillow."""
    red, green, blue = (np.asarray(band).astype(int) for band in image.convert("RGB").split())
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


def gray(data: bytes) -> np.ndarray:
    image = decode(data, "it", colours="L")
    assert image.mode == "L"
    return np.asarray(image)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA", "LA"])
def test_gray_is_the_luma_of_what_is_decoded_in_rgb(mode: str) -> None:
    data = encode(photo().convert(mode))
    assert (gray(data) == luma(decode(data))).all()


def test_a_jpeg_has_the_luma_in_itself() -> None:
    for options in ({}, {"subsampling": 0, "quality": 95}):
        data = encode(photo(), "JPEG", **options)
        assert np.abs(gray(data).astype(int) - luma(photo())).mean() < 2
    cmyk = encode(photo().convert("CMYK"), "JPEG")
    assert (gray(cmyk) == luma(decode(cmyk))).all()


def test_gray_of_sixteen_bits_and_white_shapes_are_as_in_rgb() -> None:
    deep = encode(Image.fromarray(np.array([[0, 256, 32768, 65535]], np.uint16)))
    assert gray(deep).tolist() == [[0, 1, 128, 255]]
    shapes = Image.new("RGBA", (8, 4), "white")
    shapes.putalpha(Image.fromarray(np.tile(np.array([0, 255], np.uint8), (4, 4))))
    assert gray(encode(shapes)).tolist() == [[0, 255] * 4] * 4


@pytest.mark.parametrize("orientation", [1, 6, 8])
def test_a_large_gray_jpeg_is_decoded_at_a_part_of_its_size(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photo(400, 303), "JPEG", exif=exif)
    found = decode_scaled(data, lambda width, height: (width // 4, height // 4), colours="L")
    same = decode_scaled(data, lambda width, height: (width // 4, height // 4))
    assert (found.image.mode, found.scale) == ("L", 4)
    assert (found.size, found.scale, found.origin) == (same.size, same.scale, same.origin)
    assert np.abs(np.asarray(found.image).astype(int) - luma(same.image)).mean() < 2
    for larger in (1, 3):  # as large as the image, and larger
        whole = decode_scaled(data, lambda width, height, larger=larger: (larger * width, larger * height), colours="L")
        assert (whole.image.mode, whole.scale, whole.image.size) == ("L", 1, same.size)
