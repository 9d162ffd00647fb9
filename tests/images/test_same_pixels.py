"""One way from a file to pixels: validation, golden sets, accuracy, predictions and the server see the same bits."""

import asyncio
import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from regnet_deploy.bundle.manifest import Manifest, Preprocessing
from regnet_deploy.exporting.decoded_images import decode_images
from regnet_deploy.exporting.golden_images import make_golden_set
from regnet_deploy.images.dataset import LabelledImage
from regnet_deploy.images.image_source import FolderSource
from regnet_deploy.images.preprocessing import default_preprocessing, load_pixels
from regnet_deploy.runtimes.classifier import Classifier
from regnet_deploy.serving.decode_pool import DecodePool
from regnet_deploy.training.data_loader import EvaluationDataset, ImageSubset, evaluation_dataset

SIZES = [(24, 24), (50, 31), (97, 203), (640, 480)]


def picture(width: int, height: int) -> Image.Image:
    draw = np.random.default_rng(width)
    coarse = Image.fromarray(draw.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((width, height), 3)
    noise = draw.integers(-12, 13, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(coarse).astype(int) + noise, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str, orientation: int = 1, **options: object) -> bytes:
    exif, stream = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    image.save(stream, kind, exif=exif, **options)
    return stream.getvalue()


def write_all(root: Path) -> list[Path]:
    """Every kind of file that people send, in sizes at which libjpeg's scales apply and in which they do not."""
    files = {}
    for width, height in SIZES:
        image = picture(width, height)
        for orientation in (1, 3, 6, 7):
            files[f"{width}-exif{orientation}.jpg"] = encoded(image, "JPEG", orientation)
        files[f"{width}-progressive.jpg"] = encoded(image, "JPEG", 8, progressive=True)
        files[f"{width}-grey.jpg"] = encoded(image.convert("L"), "JPEG")
        files[f"{width}-cmyk.jpg"] = encoded(image.convert("CMYK"), "JPEG", 6)
        files[f"{width}.png"] = encoded(image, "PNG", 6)
        files[f"{width}-palette.png"] = encoded(image.convert("P"), "PNG", transparency=3)
        files[f"{width}.webp"] = encoded(image, "WEBP", 5)
    for name, data in files.items():
        (root / name).write_bytes(data)
    return [root / name for name in sorted(files)]


class Seeing:
    """A session that keeps what it is shown."""

    runtime, input = "fake", "uint8"

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def run(self, images: np.ndarray) -> np.ndarray:
        self.seen.append(images.copy())
        return np.zeros((len(images), 2), np.float32)


async def served(files: list[Path], preprocessing: Preprocessing) -> np.ndarray:
    pool = DecodePool(1, 10**6)
    await pool.start()
    try:
        return np.stack([await pool.pixels(file.read_bytes(), preprocessing) for file in files])
    finally:
        await pool.close()


@pytest.mark.parametrize(("scaled", "antialias"), [(True, True), (False, True), (False, False)])
def test_all_that_evaluates_sees_the_same_pixels(tmp_path: Path, scaled: bool, antialias: bool) -> None:
    preprocessing = default_preprocessing(24).replace(scaled_decoding=scaled, antialias=antialias)
    files = write_all(tmp_path)
    wanted = np.stack([load_pixels(file.read_bytes(), preprocessing) for file in files])

    source = FolderSource(tmp_path, tuple(file.name for file in files))
    labelled = [LabelledImage(index, 0, 1, 1) for index in range(len(files))]
    training = EvaluationDataset(ImageSubset(source, labelled), preprocessing)
    cached = evaluation_dataset(source, labelled, preprocessing)
    session = Seeing()
    answers = list(Classifier(session, preprocessing, ("a", "b"), None, True).predict_files(files, k=1))
    model = torch.nn.Flatten()
    golden = make_golden_set(SimpleNamespace(files={}, manifest=Manifest()), model, preprocessing, files[:16])
    found = {
        "validation": np.stack([training[number].pixels for number in range(len(files))]),
        "validation in memory": np.stack([cached[number].pixels for number in range(len(files))]),
        "accuracy and calibration": np.stack(list(decode_images(source, range(len(files)), preprocessing))),
        "predictions": np.concatenate(session.seen),
        "golden set": golden.golden.images,
        "server": asyncio.run(served(files, preprocessing)),
    }
    assert cached.cached is not None
    assert not any(answer.error for answer in answers)
    for name, pixels in found.items():
        np.testing.assert_array_equal(pixels, wanted[: len(pixels)], err_msg=name)
