"""The golden set that exports are held against: which images, and the logits that the model itself gives for them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from regnet_deploy.bundle import Bundle
from regnet_deploy.errors import BundleError, DataError, ProofError, require
from regnet_deploy.images.decode import SUFFIXES
from regnet_deploy.images.preprocessing import Preprocessing, load_pixels, normalize
from regnet_deploy.models.weights import FILE as WEIGHTS
from regnet_deploy.models.weights import inference_model
from regnet_deploy.runtimes.golden_set import FILE, GoldenSet, golden_to_bytes, load_golden

SAMPLES = "samples.safetensors"
#: Images taken from the training data, or drawn. A server runs them all before it is ready.
IMAGES = 16
#: Images taken of the user's own; of more, this many are picked evenly.
MOST_IMAGES = 64
NOISE_SEED = 0
TRAINING, USER, NOISE = "training images", "user images", "seeded noise"
TOPPED_UP = f"{USER}, filled up with {TRAINING}"


@dataclass(frozen=True, eq=False)
class NewGoldenSet:
    """A golden set, the part ``golden`` that describes it, its bytes as stored, and which files could not be used."""

    golden: GoldenSet
    part: dict[str, Any]
    data: bytes
    left_out: tuple[str, ...] = ()


def make_golden_set(
    bundle: Bundle, model: nn.Module, preprocessing: Preprocessing, images: Sequence[Path]
) -> NewGoldenSet:
    """Return the golden set for a bundle's weights.

    The user's images, if given now or for these weights before, and where they are few, images that training left in
    the bundle; else those alone; else, before training, seeded noise. Where these weights answered the same images
    before, the answers stay to the last bit, which another CPU would change, and so does what was proved on them.

    Raises:
        DataError: an image or a folder cannot be used; it is named.
        BundleError: the samples or an earlier set in the bundle are damaged.
        ProofError: the model's own logits are not finite.
    """
    weights = bundle.files[WEIGHTS].sha256 if WEIGHTS in bundle.files else None
    before = bundle.parts.get("golden", {})
    users = before.get("source") in (USER, TOPPED_UP)
    known = FILE in bundle.files and before.get("weights_sha256") == weights
    if not images and users and known:
        return NewGoldenSet(load_golden(bundle), before, bundle.read(FILE))
    seed, left_out = None, list[str]()
    if images:
        pixels, left_out = _load(_pick(_files(images), MOST_IMAGES), preprocessing)
        source = USER
        missing = IMAGES - len(pixels)
        if missing > 0 and SAMPLES in bundle.files:
            pixels, source = np.concatenate([pixels, _samples(bundle, preprocessing, missing)]), TOPPED_UP
    elif SAMPLES in bundle.files:
        pixels, source = _samples(bundle, preprocessing, IMAGES), TRAINING
    else:
        pixels, source, seed = noise_images(IMAGES, preprocessing.crop, NOISE_SEED), NOISE, NOISE_SEED
    part = {"images": len(pixels), "source": source, "seed": seed, "weights_sha256": weights}
    if known and weights is not None:  # weights that are drawn anew may be others, by another PyTorch
        with contextlib.suppress(BundleError):  # a damaged set is made again
            golden = load_golden(bundle)
            if np.array_equal(golden.images, pixels):
                return NewGoldenSet(golden, part, bundle.read(FILE), tuple(left_out))
    golden = GoldenSet(pixels, golden_logits(model, pixels, preprocessing))
    return NewGoldenSet(golden, part, golden_to_bytes(golden), tuple(left_out))


def golden_logits(model: nn.Module, pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Return the logits, ``(n, classes)``, of pixels ``(n, h, w, 3)`` in float32 on the CPU.

    One image at a time in one thread: what is summed in which order does not depend on the machine's cores or on which
    other images are in the set.

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


def noise_images(count: int, side: int, seed: int) -> NDArray[np.uint8]:
    """Return coloured blotches under grain, ``(count, side, side, 3)``: unlike each other, unlike flat noise."""
    random = np.random.default_rng(seed)
    cell = -(-side // 7)
    blotches = random.integers(0, 256, (count, 7, 7, 3)).repeat(cell, axis=1).repeat(cell, axis=2)[:, :side, :side]
    grain = random.integers(-32, 33, (count, side, side, 3))
    pixels: NDArray[np.uint8] = np.clip(blotches + grain, 0, 255).astype(np.uint8)
    return pixels


def _samples(bundle: Bundle, preprocessing: Preprocessing, most: int) -> NDArray[np.uint8]:
    safetensors = require("safetensors", "export")
    wrong = BundleError(
        f"{bundle.stored_path(SAMPLES)} does not hold images of {preprocessing.crop}x{preprocessing.crop} pixels: "
        "run `regnet-deploy train` again, or give your own with --images"
    )
    try:
        images: NDArray[Any] = require("safetensors.numpy", "export").load(bundle.read(SAMPLES))["images"]
    except (safetensors.SafetensorError, KeyError):
        raise wrong from None
    if images.dtype != np.uint8 or images.shape[1:] != (preprocessing.crop, preprocessing.crop, 3) or not len(images):
        raise wrong
    chosen: NDArray[np.uint8] = images[_spread(len(images), most)]
    return chosen


def _load(files: Sequence[tuple[Path, bool]], preprocessing: Preprocessing) -> tuple[NDArray[np.uint8], list[str]]:
    """Return the pixels, ``(n, h, w, 3)``, and what in a folder could not be used; a file that was named must be."""
    views, left_out = [], list[str]()
    for file, named in files:
        try:
            views.append(load_pixels(_read(file), preprocessing, str(file)))
        except DataError as error:
            if named:
                raise
            left_out.append(str(error))
    if not views:
        raise DataError(f"--images: none of the {len(files)} files can be used, for example {left_out[0]}")
    return np.stack(views), left_out


def _files(given: Sequence[Path]) -> list[tuple[Path, bool]]:
    """Return the files that were named (True) or lie in a folder that was (False)."""
    found: list[tuple[Path, bool]] = []
    for path in given:
        if not os.path.isdir(path):  # False also where Path would raise: names too long, folders that may not be read
            found.append((path, True))
            continue
        inside = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in SUFFIXES and os.path.isfile(file)]
        if not inside:
            raise DataError(f"--images {path}: no images in this folder ({', '.join(sorted(SUFFIXES))})")
        found += [(file, False) for file in inside]
    return found


def _pick(files: Sequence[tuple[Path, bool]], most: int) -> list[tuple[Path, bool]]:
    return [files[i] for i in _spread(len(files), most)]


def _spread(count: int, most: int) -> list[int]:
    """Return indices, ``most`` or fewer, spread evenly over ``range(count)``."""
    return [i * count // most for i in range(most)] if count > most else list(range(count))


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"--images {file}: {error.strerror}") from None


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
