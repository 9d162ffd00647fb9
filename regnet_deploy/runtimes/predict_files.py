"""Predictions for image files: each file is answered, with labels or with what is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.errors import DataError, ProofError
from regnet_deploy.images.decode import SUFFIXES
from regnet_deploy.images.preprocessing import Preprocessing, load_pixels
from regnet_deploy.runtimes.predictions import Prediction, top_k
from regnet_deploy.runtimes.runtime import Session, classify_pixels

#: Images in an inference.
BATCH = 16


@dataclass(frozen=True)
class FilePrediction:
    """What came of an image file: its likeliest classes, or why there are none."""

    path: Path
    predictions: tuple[Prediction, ...] = ()
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return JSON data."""
        if self.error is not None:
            return {"image": str(self.path), "error": self.error}
        return {"image": str(self.path), "predictions": [prediction.to_json() for prediction in self.predictions]}


def image_files(given: Sequence[Path]) -> list[Path]:
    """Return the files given, and the images by their suffix inside the folders given, but for names with a dot first.

    Raises:
        DataError: a folder without images, or one that cannot be read.
    """
    files: list[Path] = []
    for path in given:
        if not os.path.isdir(path):  # False also where Path would raise: names too long, folders that may not be read
            files.append(path)
            continue
        inside = sorted(
            entry
            for entry in path.rglob("*")
            if entry.suffix.lower() in SUFFIXES
            and os.path.isfile(entry)
            and not any(part.startswith(".") for part in entry.relative_to(path).parts)
        )
        if not inside:
            raise DataError(f"{path}: no images in this folder ({', '.join(sorted(SUFFIXES))})")
        files += inside
    return files


def predict_files(
    session: Session, preprocessing: Preprocessing, labels: tuple[str, ...], files: Sequence[Path], k: int
) -> Iterator[FilePrediction]:
    """Classify files in their order, a few at a time.

    Raises:
        ProofError: the session cannot run the images.
    """
    waiting = iter(files)
    while chunk := list(islice(waiting, BATCH)):
        loaded = [_load(path, preprocessing) for path in chunk]
        pixels = [item for item in loaded if not isinstance(item, FilePrediction)]
        rows = iter(_predictions(session, preprocessing, labels, np.stack(pixels), k) if pixels else ())
        for path, item in zip(chunk, loaded, strict=True):
            yield item if isinstance(item, FilePrediction) else FilePrediction(path, tuple(next(rows)))


def _load(path: Path, preprocessing: Preprocessing) -> NDArray[np.uint8] | FilePrediction:
    try:
        return load_pixels(path.read_bytes(), preprocessing, str(path))
    except OSError as error:
        return FilePrediction(path, error=f"{path}: {error.strerror}")
    except DataError as error:
        return FilePrediction(path, error=str(error))


def _predictions(
    session: Session, preprocessing: Preprocessing, labels: tuple[str, ...], pixels: NDArray[np.uint8], k: int
) -> list[list[Prediction]]:
    logits = classify_pixels(session, pixels, preprocessing)
    if not np.isfinite(logits).all():
        raise ProofError(f"{session.runtime} gives logits that are not finite: run `regnet-deploy verify`")
    return top_k(logits, labels, k)
