"""Preprocessing: what the network sees of an image, and the same numbers everywhere."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from regnet_deploy.bundle.manifest import GRAY_MEAN, GRAY_STD, IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from regnet_deploy.errors import BundleError, UsageError
from regnet_deploy.images.preprocessing import (
    default_preprocessing,
    image_of,
    load_pixels,
    normalize,
    pixels_of,
    resize_and_crop,
    scale_and_shift,
)


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours with some noise, as a camera gives."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((width, height), 3)
    noise = draw.integers(-12, 13, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(coarse).astype(int) + noise, 0, 255).astype(np.uint8))


@settings(max_examples=200, deadline=None)
@given(
    width=st.integers(20, 300),
    height=st.integers(20, 300),
    crop=st.integers(16, 64),
    margin=st.integers(0, 20),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)
def test_cropping_while_resizing_is_resizing_then_cropping(
    width: int, height: int, crop: int, margin: int, interpolation: str
) -> None:
    preprocessing = Preprocessing(resize=crop + margin, crop=crop, interpolation=interpolation)
    image = photo(width, height)
    short = min(width, height)
    full = (
        max(preprocessing.resize, round(width * preprocessing.resize / short)),
        max(preprocessing.resize, round(height * preprocessing.resize / short)),
    )
    left, top = (full[0] - crop) // 2, (full[1] - crop) // 2
    whole = image.resize(full, getattr(Image.Resampling, interpolation.upper()))
    wanted = np.asarray(whole.crop((left, top, left + crop, top + crop))).astype(int)
    difference = np.abs(resize_and_crop(image, preprocessing).astype(int) - wanted)
    # Pillow rounds to 8 bits after each of its two passes, where a tie can fall either way; bicubic's weights beyond 1
    # multiply what the first made of it.
    assert difference.max() <= (2 if interpolation == "bilinear" else 4)
    assert (difference > 1).mean() < 0.01


def test_an_image_of_the_right_size_is_left_as_it_is() -> None:
    image = photo(32, 32)
    assert (resize_and_crop(image, Preprocessing(resize=32, crop=32)) == np.asarray(image)).all()


def interpolated(image: np.ndarray, resize: int, crop: int) -> np.ndarray:
    """Resize and crop as OpenCV's bilinear interpolation does, by its definition, one pixel after the other."""
    height, width = image.shape[:2]
    full_h, full_w = (max(resize, round(side * resize / min(width, height))) for side in (height, width))
    result = np.zeros((crop, crop, 3))
    for row, column in np.ndindex(crop, crop):
        y = ((full_h - crop) // 2 + row + 0.5) * height / full_h - 0.5
        x = ((full_w - crop) // 2 + column + 0.5) * width / full_w - 0.5
        for i, j in np.ndindex(2, 2):
            ny, nx = int(np.floor(y)) + i, int(np.floor(x)) + j
            share = (1 - abs(y - ny)) * (1 - abs(x - nx))
            result[row, column] += share * image[min(max(ny, 0), height - 1), min(max(nx, 0), width - 1)]
    return result


@pytest.mark.parametrize("size", [(90, 61), (37, 200), (40, 40), (15, 22), (1, 1)])
def test_without_antialiasing_a_pixel_is_interpolated_between_the_four_nearest(size: tuple[int, int]) -> None:
    image = photo(*size)
    pixels = resize_and_crop(image, Preprocessing(resize=40, crop=32, antialias=False))
    assert pixels.shape == (32, 32, 3)
    np.testing.assert_allclose(pixels, interpolated(np.asarray(image), 40, 32), rtol=0, atol=0.501)


def test_bicubic_resizing_is_antialiased() -> None:
    with pytest.raises(UsageError, match="without antialiasing, interpolation must be bilinear, got bicubic"):
        Preprocessing(40, 32, "bicubic", antialias=False)
    with pytest.raises(BundleError, match="interpolation must be bilinear"):
        Preprocessing.from_json({"resize": 40, "crop": 32, "interpolation": "bicubic", "antialias": False})


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 500), (500, 1), (33, 2000)])
def test_extreme_shapes_give_a_full_view(width: int, height: int) -> None:
    view = resize_and_crop(Image.new("RGB", (width, height), (9, 8, 7)), Preprocessing(resize=36, crop=32))
    assert view.shape == (32, 32, 3)
    assert (view == (9, 8, 7)).all()


def test_normalising_is_the_formula() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 4, 3), dtype=np.uint8)
    preprocessing = default_preprocessing(32)
    wanted = (pixels / 255.0 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    result = normalize(pixels, preprocessing)
    assert result.dtype == np.float32
    assert result.flags.c_contiguous
    np.testing.assert_allclose(result, wanted.transpose(0, 3, 1, 2), rtol=0, atol=1e-6)


def test_normalising_is_exactly_scale_and_shift() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    preprocessing = default_preprocessing(32)
    scale, shift = scale_and_shift(preprocessing)
    for channel in range(3):
        wanted = pixels[..., channel].astype(np.float32) * scale[channel] + shift[channel]
        assert (normalize(pixels, preprocessing)[:, channel] == wanted).all()


@pytest.mark.parametrize(("resolution", "resize"), [(224, 256), (96, 110), (95, 95), (32, 32)])
def test_the_default_view_is_the_papers_and_whole_for_small_images(resolution: int, resize: int) -> None:
    assert default_preprocessing(resolution) == Preprocessing(resize=resize, crop=resolution, scaled_decoding=True)


def test_json_brings_it_back() -> None:
    preprocessing = Preprocessing(40, 32, "bicubic", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    plain = Preprocessing(40, 32, antialias=False)
    assert "antialias" not in preprocessing.to_json()
    for each in (preprocessing, preprocessing.replace(scaled_decoding=True), plain):
        assert Preprocessing.from_json(each.to_json()) == each


def test_a_bundle_that_says_nothing_of_scaled_decoding_goes_on_without_and_says_the_same() -> None:
    older = {name: value for name, value in default_preprocessing(32).to_json().items() if name != "scaled_decoding"}
    preprocessing = Preprocessing.from_json(older)
    assert preprocessing.scaled_decoding is False
    assert preprocessing.to_json() == older
    assert Preprocessing.from_json({**older, "scaled_decoding": False}) == preprocessing


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colours": "BGR"}, "colours: invalid enum value 'BGR'"),
        ({"interpolation": "nearest"}, "interpolation: invalid enum value 'nearest'"),
        ({"gamma": 2}, "unknown field gamma"),
        ({"scaled_decoding": "no"}, "scaled_decoding: expected bool, got str"),
    ],
)
def test_what_is_not_understood_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        Preprocessing.from_json({**default_preprocessing(32).to_json(), **change})


def jpeg(image: Image.Image, orientation: int = 1, **options: object) -> bytes:
    exif, stream = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    image.save(stream, "JPEG", quality=95, exif=exif, **options)
    return stream.getvalue()


def both(data: bytes, preprocessing: Preprocessing) -> tuple[np.ndarray, np.ndarray]:
    """With scaled decoding and without."""
    scaled = load_pixels(data, preprocessing.replace(scaled_decoding=True))
    return scaled, load_pixels(data, preprocessing.replace(scaled_decoding=False))


@settings(max_examples=100, deadline=None)
@given(
    width=st.integers(20, 600),
    height=st.integers(20, 600),
    orientation=st.integers(1, 8),
    progressive=st.booleans(),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)
def test_scaled_decoding_shows_nearly_the_same(
    width: int, height: int, orientation: int, progressive: bool, interpolation: str
) -> None:
    coarse = Image.fromarray(np.random.default_rng(width).integers(0, 256, (3, 4, 3), dtype=np.uint8))
    data = jpeg(coarse.resize((width, height), Image.Resampling.BICUBIC), orientation, progressive=progressive)
    scaled, full = both(data, Preprocessing(36, 32, interpolation))
    difference = np.abs(scaled.astype(int) - full)
    assert difference.mean() < 2
    if min(width, height) < 72:  # no scale of libjpeg leaves 36 pixels of it
        assert (difference == 0).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("side", [257, 263])
def test_a_turned_image_is_not_shifted_by_scaled_decoding(orientation: int, side: int) -> None:
    ramp = np.linspace(0, 255, side)
    image = np.stack([ramp[:, None] + 0 * ramp, ramp + 0 * ramp[:, None], np.full((side, side), 128.0)], axis=2)
    scaled, full = both(
        jpeg(Image.fromarray(image.astype(np.uint8)), orientation, subsampling=0), Preprocessing(32, 32)
    )
    assert np.abs((scaled.astype(int) - full).mean((0, 1))).max() < 0.7  # a pixel of the view is 8 levels


def test_gray_images_have_one_channel_from_the_file_to_the_network() -> None:
    preprocessing = default_preprocessing(32, 1)
    assert (preprocessing.colours, preprocessing.mean, preprocessing.std) == ("L", GRAY_MEAN, GRAY_STD)
    image = Image.new("RGB", (40, 50), (200, 30, 90))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    pixels = load_pixels(stream.getvalue(), preprocessing)
    assert pixels.shape == (32, 32, 1)
    assert (pixels == round(0.299 * 200 + 0.587 * 30 + 0.114 * 90)).all()
    assert normalize(pixels[None], preprocessing).shape == (1, 1, 32, 32)
    np.testing.assert_allclose(
        normalize(pixels[None], preprocessing), (pixels[0, 0, 0] / 255 - 0.459) / 0.226, atol=1e-6
    )
    assert (pixels_of(image_of(pixels)) == pixels).all()


def test_gray_mean_and_deviation_follow_from_those_of_the_colors() -> None:
    weights = np.array([0.299, 0.587, 0.114])
    assert (round(float(weights @ IMAGENET_MEAN), 3),) == GRAY_MEAN
    assert (round(float(weights @ IMAGENET_STD), 3),) == GRAY_STD


def test_a_mean_for_each_channel_is_needed() -> None:
    with pytest.raises(BundleError, match=r"preprocessing.mean must have 1 value for images in L, got 3"):
        Preprocessing.from_json({**default_preprocessing(32).to_json(), "colours": "L"})
    with pytest.raises(BundleError, match=r"preprocessing.std must have 3 values for images in RGB, got 2"):
        Preprocessing.from_json({**default_preprocessing(32).to_json(), "std": [0.2, 0.2]})
