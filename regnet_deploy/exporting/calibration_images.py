"""Real images on which the ranges of activations are measured, as the deployed network will see them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.bundle import Bundle
from regnet_deploy.errors import DataError, UsageError
from regnet_deploy.exporting.trained_folder import trained_folder
from regnet_deploy.exporting.views import views
from regnet_deploy.images.decode import SUFFIXES
from regnet_deploy.images.preprocess import Preprocessing
from regnet_deploy.images.spread import spread

#: Fewer images miss values that a deployed network meets; more of them do not change the ranges.
LEAST, MOST = 300, 512

TRAINING, USER = "training images", "user images"

#: Called with images found and images wanted.
Advance = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class CalibrationSet:
    """Images for calibration.

    Attributes:
        pixels: ``(n, h, w, 3)`` uint8 RGB, all different.
        part: JSON data: ``images``, ``source`` in words, ``folder``, ``seed``, ``digest`` (sha256 over the pixels and
            the preprocessing), ``left_out`` (path -> reason of chosen files that could not be used).
    """

    pixels: NDArray[np.uint8]
    part: dict[str, Any]


def calibration_set(
    source: str | Path,
    bundle: Bundle,
    preprocessing: Preprocessing,
    golden_images: NDArray[np.uint8],
    *,
    count: int = MOST,
    seed: int = 0,
    advance: Advance = lambda done, total: None,
) -> CalibrationSet:
    """Choose images, decode them, and go on choosing where one cannot be used.

    Args:
        source: the folder that ``train --data`` took, of which only images that were trained on are used, spread over
            the classes; or a folder with images and no folders in it.
        bundle: its labels and its part ``training`` tell what was trained on.
        preprocessing: of the bundle.
        golden_images: ``(n, h, w, 3)`` uint8: none of these is taken.
        count: images wanted; fewer are taken where there are no more.
        seed: which ones.
        advance: called with the images found and ``count``.

    Raises:
        UsageError: ``count`` is not 300 to 512.
        DataError: no such folder, another class layout, images whose validation share cannot be told, or fewer than
            300 usable ones.
        MissingPart: a folder with classes, and a bundle that is not trained.
    """
    if not LEAST <= count <= MOST:
        raise UsageError(f"calibration takes {LEAST} to {MOST} images, not {count}")
    root = Path(source)
    plain = _files_alone(root)
    if plain is None:
        train = trained_folder(root, bundle).train
        ordered = [train[place].path for place in spread([file.label for file in train], seed)]
    else:
        ordered = [plain[place] for place in spread([0] * len(plain), seed)]
    seen = {image.tobytes() for image in golden_images}
    chosen: list[NDArray[np.uint8]] = []
    left_out: dict[str, str] = {}
    again = 0
    for path, view in zip(ordered, views(root, ordered, preprocessing), strict=False):
        if isinstance(view, DataError):
            left_out[path] = str(view).removeprefix(f"{root / path}: ")
        elif view.tobytes() in seen:
            again += 1
        else:
            seen.add(view.tobytes())
            chosen.append(view)
            advance(len(chosen), count)
        if len(chosen) == count:
            break
    if len(chosen) < LEAST:
        raise DataError(_too_few(root, plain is None, len(ordered), len(chosen), again, left_out))
    pixels = np.stack(chosen)
    return CalibrationSet(
        pixels,
        {
            "images": len(pixels),
            "source": TRAINING if plain is None else USER,
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


def _too_few(root: Path, classes: bool, files: int, usable: int, again: int, left_out: dict[str, str]) -> str:
    what = "images that were trained on" if classes else f"images ({', '.join(sorted(SUFFIXES))})"
    details = []
    if again:
        details.append(f"{again} are in the golden set, or the same as another")
    if left_out:
        path, reason = next(iter(left_out.items()))
        details.append(f"{len(left_out)} cannot be used, for example {path}: {reason}")
    why = f" ({'; '.join(details)})" if details else ""
    return (
        f"calibration needs {LEAST} images and {root} has {usable} usable ones among {files} {what}{why}: "
        "add images, or give another folder of real ones"
    )
