"""An opened network that labels images: files, arrays or PIL images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.errors import DataError, ProofError, require
from regnet_deploy.images.decode import FORMATS, ONE_COLOR, converted_image
from regnet_deploy.images.folder_files import image_files
from regnet_deploy.images.image_source import read_image_file
from regnet_deploy.images.preprocessing import image_of, load_pixels, resize_and_crop
from regnet_deploy.runtimes.predictions import Prediction, top_k
from regnet_deploy.runtimes.runtime import Session, classify_pixels

if TYPE_CHECKING:
    from PIL.Image import Image

#: A path, an array of uint8, ``(h, w, 3)`` RGB or ``(h, w, 1)`` gray, or a PIL image.
ImageLike: TypeAlias = "str | os.PathLike[str] | NDArray[np.uint8] | Image"

#: Images in an inference.
BATCH = 16


@dataclass(frozen=True)
class FilePrediction:
    """The result for one image file.

    Attributes:
        path: the file.
        predictions: its most probable classes.
        error: what prevented a prediction.
        one_color: whether the network saw one color only, so that the predictions mean nothing.
    """

    path: Path
    predictions: tuple[Prediction, ...] = ()
    error: str | None = None
    one_color: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return JSON data."""
        if self.error is not None:
            return {"image": str(self.path), "error": self.error}
        return {"image": str(self.path), "predictions": [prediction.to_json() for prediction in self.predictions]}


@dataclass(frozen=True, eq=False)
class Classifier:
    """A network of a bundle, opened for inference, with its preprocessing and labels.

    Its methods can be called from several threads at the same time.

    Attributes:
        session: runs the network.
        preprocessing: maps an image to the pixels that the network sees.
        labels: class names in the order of the logits.
        variant: name of the exported variant; None where the weights run in PyTorch.
        trained: whether the bundle has trained weights; without them the predictions mean nothing.
        note: which faster variant cannot run here, and why; None: nothing to say.
    """

    session: Session
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    variant: str | None
    trained: bool
    note: str | None = None

    def logits(self, images: ImageLike | Sequence[ImageLike] | NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the logits of images, ``(n, classes)``.

        Args:
            images: one image or a sequence of them: paths, arrays of uint8, ``(h, w, 3)`` RGB or ``(h, w, 1)`` gray, or
                PIL images; or one array ``(n, h, w, 3)`` or ``(n, h, w, 1)``. Images of any size and channels are
                converted, resized and cropped as in training.

        Raises:
            DataError: an image cannot be read.
            ProofError: the network returns logits that are not finite.
        """
        waiting = iter(_as_sequence(images))
        rows = [np.empty((0, len(self.labels)), np.float32)]
        while chunk := list(islice(waiting, BATCH)):
            rows.append(self._run(np.stack([self.pixels(image) for image in chunk])))
        return np.concatenate(rows)

    def predict(
        self, images: ImageLike | Sequence[ImageLike] | NDArray[np.uint8], *, k: int = 5
    ) -> list[list[Prediction]]:
        """Return the ``k`` most probable classes of each image, the most probable first.

        Args:
            images: see :meth:`logits`. A single image gives a list with one entry.
            k: classes to return, 1 or more.

        Raises:
            DataError: an image cannot be read.
            ProofError: the network returns logits that are not finite.
        """
        return top_k(self.logits(images), self.labels, k)

    def predict_files(self, files: Sequence[Path], *, k: int = 5) -> Iterator[FilePrediction]:
        """Classify files in their order, a few at a time; a file that cannot be read yields its error.

        Raises:
            ProofError: the network returns logits that are not finite.
        """
        waiting = iter(files)
        while chunk := list(islice(waiting, BATCH)):
            loaded = [self._load(path) for path in chunk]
            pixels = [item for item in loaded if not isinstance(item, FilePrediction)]
            rows = iter(top_k(self._run(np.stack(pixels)), self.labels, k) if pixels else ())
            for path, item in zip(chunk, loaded, strict=True):
                if isinstance(item, FilePrediction):
                    yield item
                else:
                    yield FilePrediction(path, tuple(next(rows)), one_color=_is_one_color(item))

    def pixels(self, image: ImageLike) -> NDArray[np.uint8]:
        """Return the pixels of an image that the network sees, ``(crop, crop, channels)``.

        Raises:
            DataError: the image cannot be read.
        """
        if isinstance(image, str | os.PathLike):
            path = os.fspath(image)
            return load_pixels(read_image_file(path), self.preprocessing, path)
        return resize_and_crop(_pil_image(image, self.preprocessing.colours), self.preprocessing)

    def _load(self, path: Path) -> NDArray[np.uint8] | FilePrediction:
        try:
            return self.pixels(path)
        except DataError as error:
            return FilePrediction(path, error=str(error))

    def _run(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits = classify_pixels(self.session, pixels, self.preprocessing)
        if not np.isfinite(logits).all():
            raise ProofError(f"{self.session.runtime} returns logits that are not finite: choose another variant")
        return logits


@dataclass(frozen=True)
class ImageFiles:
    """Files to classify.

    Attributes:
        files: the given files, and the images inside the given folders.
        left_out: path of what is not used in these folders -> reason.
    """

    files: list[Path]
    left_out: dict[str, str]


def find_image_files(given: Sequence[Path]) -> ImageFiles:
    """Return the given files, and the images inside the given folders, by suffix or content as training reads them.

    Raises:
        DataError: a folder has no images or cannot be read.
    """
    files: list[Path] = []
    left_out: dict[str, str] = {}
    for path in given:
        if not os.path.isdir(path):  # False also where Path would raise: names too long, folders that may not be read
            files.append(path)
            continue
        inside = image_files(path)
        if not inside.files:
            raise DataError(f"{path}: no images in this folder ({', '.join(FORMATS)})")
        files += [path / name for name in inside.files]
        left_out.update((os.path.join(path, name), reason) for name, reason in inside.left_out.items())
    return ImageFiles(files, left_out)


def _is_one_color(pixels: NDArray[np.uint8]) -> bool:
    lowest, highest = pixels.min(axis=(0, 1)), pixels.max(axis=(0, 1))
    return int((highest - lowest).max()) <= ONE_COLOR


def _as_sequence(images: Any) -> Sequence[ImageLike]:
    """Return the images as a sequence: a path, a PIL image or an array but ``(n, h, w, channels)`` is one image."""
    if isinstance(images, np.ndarray):
        return cast("Sequence[ImageLike]", images if images.ndim == 4 else images[None])
    if isinstance(images, str | os.PathLike) or not isinstance(images, Sequence):
        return [cast("ImageLike", images)]
    return images


def _pil_image(image: Any, colours: str) -> Image:
    """Return an upright image, in ``RGB`` or ``L``, of an array or a PIL image.

    Raises:
        DataError: it is neither, an array of another shape or type, or a PIL image that cannot be decoded.
    """
    module = require("PIL.Image", "serve")
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3) or not image.size:
            raise DataError(
                f"an array of {image.dtype} with the shape {image.shape} is not an image: give uint8 with the shape "
                "(height, width, 3), RGB, or (height, width, 1), gray"
            )
        return converted_image(image_of(image), colours)
    if not isinstance(image, module.Image):
        raise DataError(
            f"{type(image).__name__} is not an image: give a path, an array of uint8, (height, width, 3) RGB or "
            "(height, width, 1) gray, or a PIL image"
        )
    return converted_image(image, colours)
