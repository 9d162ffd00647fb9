"""Real images on which the ranges of activations are measured, as the deployed network will see them."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.bundle import Bundle
from regnet_deploy.errors import DataError, UsageError
from regnet_deploy.exporting.image_batches import image_batches, pixels_fingerprint
from regnet_deploy.exporting.progress import Advance, quiet
from regnet_deploy.exporting.training_folder import is_training_folder, training_folder
from regnet_deploy.images.dataset import ImageDataset
from regnet_deploy.images.decode import SUFFIXES
from regnet_deploy.images.preprocessing import Preprocessing
from regnet_deploy.images.stratified_order import stratified_order

#: Fewer images miss values that a deployed network meets; more of them do not change the ranges.
LEAST, MOST = 300, 512

TRAINING, USER = "training images", "user images"


@dataclass(frozen=True, eq=False)
class CalibrationSet:
    """Images for calibration.

    Attributes:
        pixels: ``(n, h, w, 3)`` uint8 RGB, all different.
        part: JSON data: ``images``, ``source`` in words (the folder, where it may not be the one that was trained
            on), ``folder``, ``seed``, ``digest`` (sha256 over the pixels and the preprocessing), ``left_out`` (path ->
            reason of chosen files that could not be used).
    """

    pixels: NDArray[np.uint8]
    part: dict[str, Any]


def calibration_set(
    source: str | Path | ImageDataset,
    bundle: Bundle,
    preprocessing: Preprocessing,
    golden_images: NDArray[np.uint8],
    *,
    count: int = MOST,
    seed: int = 0,
    excluded: Collection[bytes] = frozenset(),
    advance: Advance = quiet,
) -> CalibrationSet:
    """Choose images, decode them, and go on choosing where one cannot be used.

    Args:
        source: the folder that ``train --data`` took, of which only images that were trained on are used, spread over
            the classes; what ``trained_folder`` made of it; or a folder with images and no folders in it.
        bundle: its labels and its part ``training`` tell what was trained on.
        preprocessing: of the bundle.
        golden_images: ``(n, h, w, 3)`` uint8: none of these is taken.
        count: images wanted; fewer are taken where there are no more.
        seed: which ones.
        excluded: fingerprints of the views of validation images: none of these is taken either.
        advance: called with the images found and ``count``; before that, where :func:`trained_folder` reads files, with
            the files read and all files.

    Raises:
        UsageError: ``count`` is not 300 to 512.
        DataError: no such folder, another class layout, images whose validation share cannot be told, or fewer than
            300 usable ones.
        MissingPart: a folder with classes, and a bundle that is not trained.
    """
    if not LEAST <= count <= MOST:
        raise UsageError(f"calibration takes {LEAST} to {MOST} images, not {count}")
    root, ordered, words = _ordered(source, bundle, seed, advance)
    golden = {pixels_fingerprint(image) for image in golden_images}
    seen: set[bytes] = set()
    chosen: list[NDArray[np.uint8]] = []
    left_out: dict[str, str] = {}
    apart = Counter[str]()
    for path, view in zip(ordered, image_batches(root, ordered, preprocessing), strict=False):
        if isinstance(view, DataError):
            left_out[path] = str(view).removeprefix(f"{root / path}: ")
            continue
        digest = pixels_fingerprint(view)
        why = _why_apart(digest, golden, excluded, seen)
        if why:
            apart[why] += 1
            continue
        seen.add(digest)
        chosen.append(view)
        advance(len(chosen), count)
        if len(chosen) == count:
            break
    if len(chosen) < LEAST:
        raise DataError(_too_few(root, words, len(ordered), len(chosen), apart, left_out))
    pixels = np.stack(chosen)
    return CalibrationSet(
        pixels,
        {
            "images": len(pixels),
            "source": words,
            "folder": root.resolve().name,
            "seed": seed,
            "digest": digest_of(pixels, preprocessing),
            "left_out": left_out,
        },
    )


def digest_of(pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> str:
    """Return the sha256 over pixels, their shape and the preprocessing that made and will normalise them."""
    head = json.dumps([list(pixels.shape), preprocessing.to_json()], sort_keys=True)
    return hashlib.sha256(head.encode() + b"\n" + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def _ordered(
    source: str | Path | ImageDataset, bundle: Bundle, seed: int, advance: Advance
) -> tuple[Path, list[str], str]:
    """Return the folder, its files in the order in which they are tried, and what they are in words."""
    if not isinstance(source, ImageDataset):
        plain = _files_alone(Path(source))
        if plain is not None:
            return Path(source), [plain[place] for place in stratified_order([0] * len(plain), seed)], USER
        source = training_folder(source, bundle, advance)
    train = source.train
    ordered = [train[place].path for place in stratified_order([file.label for file in train], seed)]
    if is_training_folder(source, bundle):
        return source.root, ordered, TRAINING
    return source.root, ordered, f"images of {train[0].path.split('/')[0]}/ in {source.root.resolve().name}"


def _files_alone(root: Path) -> list[str] | None:
    """Return the names of the images in a folder without folders; None where there are folders, or no such folder."""
    try:
        entries = [entry for entry in os.scandir(root) if not entry.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"cannot read {root}: {error.strerror}") from None
    if any(entry.is_dir() for entry in entries):
        return None
    return sorted(entry.name for entry in entries if Path(entry.name).suffix.lower() in SUFFIXES)


def _why_apart(
    digest: bytes, golden: Collection[bytes], validation: Collection[bytes], seen: Collection[bytes]
) -> str | None:
    places = {"in the golden set": golden, "among the validation images": validation, "the same as another": seen}
    return next((name for name, digests in places.items() if digest in digests), None)


def _too_few(
    root: Path, words: str, files: int, usable: int, apart: Mapping[str, int], left_out: dict[str, str]
) -> str:
    what = f"images ({', '.join(sorted(SUFFIXES))})" if words == USER else words
    details = [f"{count} {'is' if count == 1 else 'are'} {why}" for why, count in apart.items()]
    if left_out:
        path, reason = next(iter(left_out.items()))
        details.append(f"{len(left_out)} cannot be used, for example {path}: {reason}")
    why = f" ({'; '.join(details)})" if details else ""
    return (
        f"calibration needs {LEAST} images and {root} has {usable} usable ones among {files} {what}{why}: "
        "add images, or give another folder of real ones"
    )
