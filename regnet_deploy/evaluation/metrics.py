"""Accuracy, calibration and confusion of answers on labeled images."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Int = NDArray[np.int64]

#: Bins of the expected calibration error.
BINS = 15
#: Two-sided 95 % quantile of the normal distribution.
_Z = 1.959963984540054


@dataclass(frozen=True)
class Share:
    """A share of images, 0 to 1, and its 95 % interval (E. B. Wilson, JASA 22, 1927)."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, count: int, n: int) -> Share:
        """Return the share of ``count`` among ``n`` images, 1 or more."""
        share = count / n
        center = (share + _Z * _Z / (2 * n)) / (1 + _Z * _Z / n)
        half = _Z / (1 + _Z * _Z / n) * math.sqrt(share * (1 - share) / n + _Z * _Z / (4 * n * n))
        return cls(share, min(share, max(0.0, center - half)), max(share, min(1.0, center + half)))  # after rounding


@dataclass(frozen=True)
class ClassFigures:
    """The answers for one class.

    Attributes:
        label: its name.
        support: images of the class.
        answers: images that were classified as it.
        precision: share of these answers that are right; None without answers.
        recall: share of its images that are right; None without images.
    """

    label: str
    support: int
    answers: int
    precision: float | None
    recall: float | None


@dataclass(frozen=True, eq=False)
class Metrics:
    """The answers on a set of images.

    Attributes:
        images: number of images.
        top1: share of images whose class is the first answer.
        top5: share of images whose class is among the first five; None with fewer than six classes.
        baseline: share of the largest class, which a constant answer reaches, and its name.
        ece: expected calibration error of the first answer, 0 to 1 (arXiv 1706.04599, equation 3, 15 bins).
        classes: figures of every class of the network, in the order of its outputs.
        confusion: ``(classes, classes)`` images by class and by answer.
    """

    images: int
    top1: Share
    top5: Share | None
    baseline: tuple[float, str]
    ece: float
    classes: tuple[ClassFigures, ...]
    confusion: Int

    def to_json(self) -> dict[str, Any]:
        """Return JSON data; shares are 0 to 1. The confusion matrix has its entries above 0: class, answer, images."""
        rows, columns = np.nonzero(self.confusion)
        names = [each.label for each in self.classes]
        entries = zip(rows.tolist(), columns.tolist(), self.confusion[rows, columns].tolist(), strict=True)
        return {
            "images": self.images,
            "top1": asdict(self.top1),
            "top5": None if self.top5 is None else asdict(self.top5),
            "baseline": {"label": self.baseline[1], "share": self.baseline[0]},
            "ece": self.ece,
            "classes": [asdict(each) for each in self.classes],
            "confusion": [[names[row], names[column], count] for row, column, count in entries],
        }


def metrics(labels: Int, probabilities: Float, names: tuple[str, ...]) -> Metrics:
    """Return the metrics of answers.

    Args:
        labels: class of each image, ``(n,)``, n 1 or more.
        probabilities: of each class, ``(n, classes)``.
        names: of the classes.
    """
    n, count = probabilities.shape
    answers = probabilities.argmax(axis=1)
    right = answers == labels
    confusion = np.zeros((count, count), np.int64)
    np.add.at(confusion, (labels, answers), 1)
    support, answered = confusion.sum(axis=1), confusion.sum(axis=0)
    hits = confusion.diagonal()
    figures = tuple(
        ClassFigures(
            name,
            int(support[i]),
            int(answered[i]),
            float(hits[i] / answered[i]) if answered[i] else None,
            float(hits[i] / support[i]) if support[i] else None,
        )
        for i, name in enumerate(names)
    )
    largest = int(support.argmax())
    top5 = None
    if count > 5:
        of_label = probabilities[np.arange(n), labels]
        # Equal probabilities count as argmax does: the class with the lower number comes first.
        before = (probabilities > of_label[:, None]).sum(axis=1)
        before += ((probabilities == of_label[:, None]) & (np.arange(count) < labels[:, None])).sum(axis=1)
        top5 = Share.of(int((before < 5).sum()), n)
    return Metrics(
        n,
        Share.of(int(right.sum()), n),
        top5,
        (float(support[largest] / n), names[largest]),
        expected_calibration_error(probabilities.max(axis=1), right),
        figures,
        confusion,
    )


def expected_calibration_error(confidence: Float, right: NDArray[np.bool_]) -> float:
    """Return the mean difference of confidence and accuracy over 15 bins of equal width, weighted by their images.

    Args:
        confidence: probability of the first answer, ``(n,)``.
        right: whether it is right, ``(n,)``.
    """
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    total = 0.0
    for each in np.unique(bins):
        inside = bins == each
        total += inside.sum() * abs(right[inside].mean() - confidence[inside].mean())
    return float(total / len(confidence))


def softmax(logits: NDArray[np.floating[Any]]) -> Float:
    """Return probabilities, ``(n, classes)``, of logits."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    probabilities: Float = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities
