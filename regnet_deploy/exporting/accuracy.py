"""Accuracy of a variant on validation images, compared with the logits of the trained model on the same images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from regnet_deploy.bundle.variants import Accuracy
from regnet_deploy.cpu import available_cores
from regnet_deploy.errors import DataError, ProofError
from regnet_deploy.exporting.decoded_images import pixels_fingerprint
from regnet_deploy.exporting.validation import BATCH, ValidationSet
from regnet_deploy.images.preprocessing import normalize
from regnet_deploy.models.weights import inference_model
from regnet_deploy.progress import NoProgress, Progress
from regnet_deploy.runtimes.golden_set import cosines
from regnet_deploy.runtimes.runtime import Session, classify_pixels

#: Two-sided 95 % quantile of the normal distribution.
_Z = 1.959963984540054
_CHANGED = "validation images changed while they were used: run this command again"


@dataclass(frozen=True, eq=False)
class ReferenceLogits:
    """The logits of the trained model on validation images.

    Attributes:
        numbers: ``(n,)`` int64, rising: numbers of the images in the validation set.
        labels: ``(n,)`` int64.
        logits: ``(n, classes)`` float32.
        fingerprints: of the pixels of each image, so that none of them is used for calibration.
    """

    numbers: NDArray[np.int64]
    labels: NDArray[np.int64]
    logits: NDArray[np.float32]
    fingerprints: frozenset[bytes] = frozenset()

    @property
    def top1(self) -> float:
        """Share of correct answers."""
        return float((self.logits.argmax(axis=1) == self.labels).mean())

    def restricted_to(self, validation: ValidationSet) -> ReferenceLogits:
        """Return the logits of these images only."""
        rows = self.rows(np.intersect1d(validation.numbers, self.numbers))
        return replace(self, numbers=self.numbers[rows], labels=self.labels[rows], logits=self.logits[rows])

    def rows(self, numbers: NDArray[np.int64]) -> NDArray[np.intp]:
        """Return the rows of images by their numbers.

        Raises:
            DataError: an image has no row.
        """
        rows = np.minimum(np.searchsorted(self.numbers, numbers), len(self.numbers) - 1)
        if (self.numbers[rows] != numbers).any():
            raise DataError(_CHANGED)
        return rows


def reference_logits(
    model: nn.Module, validation: ValidationSet, progress: Progress | None = None, *, batch: int = BATCH
) -> ReferenceLogits:
    """Return the model's logits for all validation images, computed in FP32 on all CPU cores.

    Raises:
        DataError: more than a tenth of the images cannot be read.
        ProofError: a logit is not finite.
    """
    progress = progress or NoProgress()
    model = model.to("cpu", torch.float32).eval()
    numbers: list[NDArray[np.int64]] = []
    labels: list[NDArray[np.int64]] = []
    logits: list[NDArray[np.float32]] = []
    fingerprints: set[bytes] = set()
    done, threads = 0, torch.get_num_threads()
    torch.set_num_threads(available_cores())
    try:
        for images in validation.batches(batch):
            normal = normalize(images.pixels, validation.preprocessing)
            logits.append(inference_model(model, torch.from_numpy(normal)).numpy())
            numbers.append(images.numbers)  # not `images`, which would keep the pixels in memory
            labels.append(images.labels)
            fingerprints.update(pixels_fingerprint(image) for image in images.pixels)
            done += len(images.labels)
            progress.update(done, len(validation))
    finally:
        torch.set_num_threads(threads)
    validation.check_unreadable()
    reference = ReferenceLogits(
        np.concatenate(numbers), np.concatenate(labels), np.concatenate(logits), frozenset(fingerprints)
    )
    if not np.isfinite(reference.logits).all():
        raise ProofError("the model's own logits are not finite, so nothing can be proved: train again (a lower --lr)")
    return reference


def measure_accuracy(
    session: Session,
    validation: ValidationSet,
    reference: ReferenceLogits,
    progress: Progress | None = None,
    *,
    batch: int = BATCH,
) -> Accuracy:
    """Run a variant on validation images and compare its logits with the model's.

    Errors and cosine are None if a logit is not finite.

    Args:
        session: the variant, opened in the runtime that will serve it.
        validation: the images; may be a subset of those of the reference.
        reference: the model's logits.
        progress: receives the images done.
        batch: images per inference.

    Raises:
        DataError: an image that could be read for the reference cannot be read now, or the reverse.
        ProofError: the session cannot run the images, or its logits have another shape.
    """
    progress = progress or NoProgress()
    images, correct, reference_correct, lost, gained, same = 0, 0, 0, 0, 0, 0
    largest, total, cosine = 0.0, 0.0, 1.0
    for each in validation.batches(batch):
        expected = reference.logits[reference.rows(each.numbers)].astype(np.float64)
        logits = classify_pixels(session, each.pixels, validation.preprocessing).astype(np.float64)
        if logits.shape != expected.shape:
            raise ProofError(f"logits of shape {logits.shape} cannot be compared with a reference of {expected.shape}")
        finite = np.isfinite(logits).all(axis=1)
        first, reference_first = np.where(finite, logits.argmax(axis=1), -1), expected.argmax(axis=1)  # -1: no answer
        is_correct, was_correct = first == each.labels, reference_first == each.labels
        images += len(each.labels)
        correct, reference_correct = correct + int(is_correct.sum()), reference_correct + int(was_correct.sum())
        lost, gained = lost + int((was_correct & ~is_correct).sum()), gained + int((is_correct & ~was_correct).sum())
        same += int((first == reference_first).sum())
        if finite.all():
            error = np.abs(logits - expected)
            largest, total = max(largest, float(error.max())), total + float(error.sum())
            cosine = min(cosine, float(cosines(expected, logits).min()))  # keeps an earlier NaN
        else:
            largest, total, cosine = math.inf, math.inf, math.nan
        progress.update(images, len(validation))
    if images != np.isin(reference.numbers, validation.numbers).sum():
        raise DataError(_CHANGED)
    drop = paired_difference(lost, gained, images)
    return Accuracy(
        images=images,
        top1=correct / images,
        reference_top1=reference_correct / images,
        drop=100 * drop.value,
        low=100 * drop.low,
        high=100 * drop.high,
        agreement=same / images,
        max_abs_error=_finite(largest),
        mean_abs_error=_finite(total / (images * reference.logits.shape[1])),
        cosine=_finite(cosine),
        left_out=len(validation.unreadable),
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def undecided_drops(accuracies: Mapping[str, Accuracy], max_drop: float) -> str | None:
    """Return one line if the images are too few to decide whether a drop is within its limit, else None.

    Args:
        accuracies: name of a variant -> its accuracy.
        max_drop: points of top-1 that a variant may lose.
    """
    if not accuracies:
        return None
    name, widest = max(accuracies.items(), key=lambda one: one[1].high - one[1].low)
    if widest.high - widest.low <= 2 * max_drop:
        return None
    return (
        f"{widest.images:,} validation images are too few to measure a drop of {max_drop:g} points: {name} loses "
        f"{widest.drop:.2f} points, with a 95 % interval of {widest.low:.2f} to {widest.high:.2f}"
    )


@dataclass(frozen=True)
class PairedDifference:
    """A difference of two proportions, -1 to 1, and its 95 % interval."""

    value: float
    low: float
    high: float


def paired_difference(lost: int, gained: int, n: int) -> PairedDifference:
    """Return the first minus the second proportion of correct answers, of two classifiers on the same ``n`` images.

    The interval is T. Tango's ("Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design", Statistics in Medicine 17, 1998, 891-908): all differences that a score test does not reject;
    for a difference of 0 that test is McNemar's. Its coverage is close to 95 % for few images, too, and where no
    answer differs.

    Args:
        lost: images that only the first classifies correctly.
        gained: images that only the second classifies correctly.
        n: all images, 1 or more.
    """
    value = (lost - gained) / n
    low = -1.0 if value <= -1 else _root(lambda d: _score(lost, gained, n, d) > _Z, -1.0, value)
    high = 1.0 if value >= 1 else _root(lambda d: _score(lost, gained, n, d) >= -_Z, value, 1.0)
    return PairedDifference(value, low, high)


def _score(lost: int, gained: int, n: int, d: float) -> float:
    """Return the score statistic for a true difference of ``d``; it falls as ``d`` rises."""
    # Maximum likelihood estimate, given d, of the share of images that only the second classifies correctly.
    a, b, c = 2 * n, -lost - gained + (2 * n - lost + gained) * d, -gained * d * (1 - d)
    only_second = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = n * (2 * only_second + d * (1 - d))
    excess = lost - gained - n * d
    if variance <= 0:
        return 0.0 if excess == 0 else math.copysign(math.inf, excess)
    return excess / math.sqrt(variance)


def _root(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Return the float between ``low``, where ``holds`` is true, and ``high``, where it is false, where it changes."""
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if holds(middle) else (low, middle)
    return middle
