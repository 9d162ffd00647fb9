"""Makes the golden set: images, and the logits of the trained model for them, with which variants are compared."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from regnet_deploy.bundle import Bundle
from regnet_deploy.bundle.manifest import Golden, Preprocessing
from regnet_deploy.errors import BundleError, DataError, ProofError, require
from regnet_deploy.images.decode import FORMATS, ImageError
from regnet_deploy.images.folder_files import image_files
from regnet_deploy.images.image_source import read_image_file
from regnet_deploy.images.preprocessing import load_pixels, normalize
from regnet_deploy.models.weights import FILE as WEIGHTS
from regnet_deploy.models.weights import SAMPLES, inference_model
from regnet_deploy.runtimes.golden_set import FILE, GoldenSet, golden_to_bytes, load_golden

#: Number of images from the training data, or of noise. A server runs all of them before it is ready.
GOLDEN_IMAGES = 16
#: Largest number of the user's images; from more, this many are selected at equal distances.
MAX_USER_IMAGES = 64
NOISE_SEED = 0
TRAINING, USER, NOISE = "training images", "user images", "seeded noise"
TOPPED_UP = f"{USER}, filled up with {TRAINING}"


@dataclass(frozen=True, eq=False)
class NewGoldenSet:
    """A golden set.

    Attributes:
        golden: images and logits.
        record: the part ``golden``, which describes it.
        data: its file.
        skipped: path -> reason, of files and folders (with ``/`` at their end) of the user that could not be used.
    """

    golden: GoldenSet
    record: Golden
    data: bytes
    skipped: Mapping[str, str] = field(default_factory=dict)


def make_golden_set(
    bundle: Bundle, model: nn.Module, preprocessing: Preprocessing, images: Sequence[Path]
) -> NewGoldenSet:
    """Return the golden set for a bundle's weights.

    It consists of the user's images, if they are given now or were given for these weights before; where these are
    few, also of the samples that training stored in the bundle. Without user images it consists of these samples, and
    before training of seeded noise. If the bundle has logits of these weights for the same images, they are kept to the
    last bit, because another CPU would compute slightly different ones; so earlier proofs remain valid.

    Raises:
        DataError: an image or a folder cannot be used; the message names it.
        BundleError: the samples or the earlier golden set in the bundle are damaged.
        ProofError: the model's own logits are not finite.
    """
    weights = bundle.files[WEIGHTS].sha256 if WEIGHTS in bundle.files else None
    before = bundle.manifest.golden
    known = FILE in bundle.files and (before.weights_sha256 if before else None) == weights
    if before and before.source in (USER, TOPPED_UP) and known and not images:
        return NewGoldenSet(load_golden(bundle), before, bundle.read(FILE))
    seed, skipped = None, dict[str, str]()
    if images:
        files, left_out = _files(images)
        picked = [files[i] for i in _evenly_spaced(len(files), MAX_USER_IMAGES)]
        pixels, unusable = _load(picked, preprocessing)
        skipped = {**left_out, **unusable}
        source = USER
        missing = GOLDEN_IMAGES - len(pixels)
        if missing > 0 and SAMPLES in bundle.files:
            pixels, source = np.concatenate([pixels, _samples(bundle, preprocessing, missing)]), TOPPED_UP
    elif SAMPLES in bundle.files:
        pixels, source = _samples(bundle, preprocessing, GOLDEN_IMAGES), TRAINING
    else:
        pixels = noise_images(GOLDEN_IMAGES, preprocessing.crop, NOISE_SEED, preprocessing.channels)
        source, seed = NOISE, NOISE_SEED
    record = Golden(images=len(pixels), source=source, seed=seed, weights_sha256=weights)
    if known and weights is not None:  # untrained weights are initialized again, and may differ with another PyTorch
        with contextlib.suppress(BundleError):  # a damaged set is replaced
            golden = load_golden(bundle)
            if np.array_equal(golden.images, pixels):
                return NewGoldenSet(golden, record, bundle.read(FILE), skipped)
    golden = GoldenSet(pixels, golden_logits(model, pixels, preprocessing))
    return NewGoldenSet(golden, record, golden_to_bytes(golden), skipped)


def golden_logits(model: nn.Module, pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Return the logits ``(n, classes)`` of pixels ``(n, h, w, channels)``, computed in FP32 on the CPU.

    Images run one at a time in one thread, so that the order of summation does not depend on the number of cores or on
    the other images of the set.

    Raises:
        ProofError: a logit is not finite.
    """
    model = model.to("cpu", torch.float32).eval()
    with _one_thread():
        rows = [
            inference_model(model, torch.from_numpy(normalize(pixels[i : i + 1], preprocessing)))
            for i in range(len(pixels))
        ]
    logits: NDArray[np.float32] = torch.cat(rows).numpy()
    if not np.isfinite(logits).all():
        raise ProofError("the model's own logits are not finite, so nothing can be proved: train again (a lower --lr)")
    return logits


def noise_images(count: int, side: int, seed: int, channels: int = 3) -> NDArray[np.uint8]:
    """Return random images ``(count, side, side, channels)`` of 7 x 7 cells with noise, all different."""
    random = np.random.default_rng(seed)
    cell = -(-side // 7)
    cells = random.integers(0, 256, (count, 7, 7, channels)).repeat(cell, axis=1).repeat(cell, axis=2)[:, :side, :side]
    noise = random.integers(-32, 33, (count, side, side, channels))
    pixels: NDArray[np.uint8] = np.clip(cells + noise, 0, 255).astype(np.uint8)
    return pixels


def _samples(bundle: Bundle, preprocessing: Preprocessing, count: int) -> NDArray[np.uint8]:
    safetensors = require("safetensors", "export")
    error = BundleError(
        f"{bundle.stored_path(SAMPLES)} does not contain {preprocessing.colours} images of "
        f"{preprocessing.crop}x{preprocessing.crop} pixels: "
        f"run `regnet-deploy train --data DIR{bundle.argument}` again, or give your own with --images"
    )
    try:
        images: NDArray[Any] = require("safetensors.numpy", "export").load(bundle.read(SAMPLES))["images"]
    except (safetensors.SafetensorError, KeyError):
        raise error from None
    wanted = (preprocessing.crop, preprocessing.crop, preprocessing.channels)
    if images.dtype != np.uint8 or images.shape[1:] != wanted or not len(images):
        raise error
    chosen: NDArray[np.uint8] = images[_evenly_spaced(len(images), count)]
    return chosen


def _load(files: Sequence[tuple[Path, bool]], preprocessing: Preprocessing) -> tuple[NDArray[np.uint8], dict[str, str]]:
    """Return the pixels ``(n, h, w, channels)``, and why files in folders are unusable; a named one must be usable."""
    images, skipped = [], dict[str, str]()
    for file, named in files:
        try:
            images.append(load_pixels(_read(file), preprocessing, str(file)))
        except ImageError as error:
            if named:
                raise
            skipped[str(file)] = error.reason
    if not images:
        name, reason = next(iter(skipped.items()))
        raise DataError(f"--images: none of the {len(files)} files can be used, for example {name}: {reason}")
    return np.stack(images), skipped


def _files(given: Sequence[Path]) -> tuple[list[tuple[Path, bool]], dict[str, str]]:
    """Return the files, with True for a named file and False for one in a named folder, and what is left out there."""
    found: list[tuple[Path, bool]] = []
    left_out: dict[str, str] = {}
    for path in given:
        if not os.path.isdir(path):  # False where Path.is_dir would raise: name too long, no permission
            found.append((path, True))
            continue
        inside = image_files(path)
        if not inside.files:
            raise DataError(f"--images {path}: no images in this folder ({', '.join(FORMATS)})")
        found += [(path / name, False) for name in inside.files]
        left_out.update((f"{path}/{name}", reason) for name, reason in inside.left_out.items())
    return found, left_out


def _evenly_spaced(n: int, count: int) -> list[int]:
    """Return ``count`` or fewer indices at equal distances in ``range(n)``."""
    return [i * n // count for i in range(count)] if n > count else list(range(n))


def _read(file: Path) -> bytes:
    return read_image_file(file, f"--images {file}")


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
