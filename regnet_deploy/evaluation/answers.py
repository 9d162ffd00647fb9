"""The answers on labeled images in short, for the model card: confusion, and the worst mistakes with small pictures.

They are one file of the bundle, ``answers.npz``, which NumPy alone reads: the card needs no other library for it.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.bundle import Bundle
from regnet_deploy.errors import require
from regnet_deploy.evaluation.metrics import Float, Int

#: In the bundle; :data:`regnet_deploy.models.weights.ANSWERS` without PyTorch.
FILE = "answers.npz"
#: Mistakes that are kept, and the longer side of their pictures in pixels: 340 kB at most.
MISTAKES, SIDE = 18, 80
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Mistake:
    """A wrong answer.

    Attributes:
        name: of the image in its folder.
        label: its class, an output of the network.
        answer: the answer of the network.
        probability: of the answer.
        pixels: what the network saw, at most 80 pixels wide and high, ``(h, w, channels)``.
    """

    name: str
    label: int
    answer: int
    probability: float
    pixels: Pixels


@dataclass(frozen=True, eq=False)
class Answers:
    """Answers in short.

    Attributes:
        where: which images they are of, in words.
        variant: what gave them: ``model`` for the weights in PyTorch, or the name of a variant.
        images: number of images.
        confusion: class, answer and number of images, of all pairs that occur, ``(k, 3)``.
        mistakes: wrong answers with the highest probabilities, the worst first.
    """

    where: str
    variant: str
    images: int
    confusion: Int
    mistakes: tuple[Mistake, ...]

    def frequent(self, count: int) -> list[tuple[int, int, int]]:
        """Return class, answer and number of images of the most frequent confusions."""
        wrong = self.confusion[self.confusion[:, 0] != self.confusion[:, 1]]
        ranked = wrong[np.argsort(-wrong[:, 2], kind="stable")][:count]
        return [(int(label), int(answer), int(images)) for label, answer, images in ranked]

    def matrix(self, classes: int) -> Int:
        """Return the confusion as ``(classes, classes)`` images by class and by answer."""
        matrix = np.zeros((classes, classes), np.int64)
        matrix[self.confusion[:, 0], self.confusion[:, 1]] = self.confusion[:, 2]
        return matrix

    def to_json(self, labels: Sequence[str]) -> dict[str, Any]:
        """Return JSON data without the pictures; ``labels`` are the names of the classes."""
        return {
            "images_of": self.where,
            "variant": self.variant,
            "images": self.images,
            "confusion": [[labels[row], labels[column], count] for row, column, count in self.confusion.tolist()],
            "mistakes": [
                {
                    "image": each.name,
                    "class": labels[each.label],
                    "answer": labels[each.answer],
                    "probability": each.probability,
                }
                for each in self.mistakes
            ],
        }


def summarize_answers(
    labels: Int,
    probabilities: Float,
    name_of: Callable[[int], str],
    pixels_of: Callable[[list[int]], Iterable[Pixels | None]],
    *,
    where: str,
    variant: str,
) -> Answers:
    """Return answers in short.

    Args:
        labels: class of each image, ``(n,)``.
        probabilities: of each class, ``(n, classes)``.
        name_of: the name of the image of a row.
        pixels_of: the images of rows as the network saw them, ``(h, w, channels)``; None for one that is gone.
        where: which images they are of, in words.
        variant: what gave them.
    """
    answers, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(answers != labels)
    worst: list[int] = wrong[np.argsort(-confidence[wrong], kind="stable")][:MISTAKES].tolist()
    pairs, counts = np.unique(np.stack([labels, answers], axis=1), axis=0, return_counts=True)
    mistakes = tuple(
        Mistake(name_of(row), int(labels[row]), int(answers[row]), float(confidence[row]), _small(pixels))
        for row, pixels in zip(worst, pixels_of(worst), strict=True)
        if pixels is not None
    )
    confusion = np.concatenate([pairs, counts[:, None]], axis=1).astype(np.int64)
    return Answers(where, variant, len(labels), confusion, mistakes)


def answers_to_bytes(answers: Answers) -> bytes:
    """Return the content of the file of a bundle; equal answers give equal bytes."""
    facts = {
        "where": answers.where,
        "variant": answers.variant,
        "images": answers.images,
        "mistakes": [[each.name, each.label, each.answer, each.probability] for each in answers.mistakes],
    }
    arrays: dict[str, Any] = {
        "facts": np.frombuffer(json.dumps(facts).encode(), np.uint8),
        "confusion": answers.confusion.astype(np.int32),
        **{f"picture_{i}": each.pixels for i, each in enumerate(answers.mistakes)},
    }
    written = io.BytesIO()
    np.savez_compressed(written, **arrays)
    return written.getvalue()


def answers_of(bundle: Bundle) -> Answers | None:
    """Return the answers in a bundle; None if it has none, or none that this version can read.

    Raises:
        BundleError: the file is damaged.
    """
    if FILE not in bundle.files:
        return None
    classes = bundle.architecture.classes
    try:
        with np.load(io.BytesIO(bundle.read(FILE)), allow_pickle=False) as file:
            facts = json.loads(file["facts"].tobytes())
            confusion = file["confusion"].astype(np.int64)
            mistakes = tuple(
                Mistake(name, label, answer, probability, file[f"picture_{i}"])
                for i, (name, label, answer, probability) in enumerate(facts["mistakes"])
            )
            answers = Answers(facts["where"], facts["variant"], facts["images"], confusion, mistakes)
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    known = confusion.ndim == 2 and confusion.shape[1:] == (3,) and (confusion[:, :2] < classes).all()
    return answers if known and (confusion >= 0).all() else None


def _small(pixels: Pixels) -> Pixels:
    """Return an image that is at most 80 pixels wide and high."""
    height, width, channels = pixels.shape
    if max(height, width) <= SIDE:
        return pixels
    image = require("PIL.Image", "train").fromarray(pixels[:, :, 0] if channels == 1 else pixels)
    image.thumbnail((SIDE, SIDE))
    return np.asarray(image, np.uint8).reshape(image.size[1], image.size[0], channels)
