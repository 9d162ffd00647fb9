"""What a variant costs in accuracy: the validation images, the model's own answers to them, and the difference."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from regnet_deploy.bundle import Bundle
from regnet_deploy.cores import available_cores
from regnet_deploy.errors import DataError, ProofError
from regnet_deploy.exporting.paired import difference
from regnet_deploy.exporting.trained_folder import trained_folder
from regnet_deploy.exporting.views import views
from regnet_deploy.images.preprocess import Preprocessing, normalise
from regnet_deploy.images.spread import spread
from regnet_deploy.models.weights import inference
from regnet_deploy.serving.runtime import Session, classify_pixels

#: Views are kept in memory where all of them take no more than this, bytes; else they are decoded in every pass.
MEMORY_BYTES = 512 * 2**20
BATCH = 16

#: Called with images done and all images.
Advance = Callable[[int, int], None]


def _quiet(done: int, total: int) -> None:
    return None


class Views(NamedTuple):
    """Some validation images: their numbers ``(n,)``, pixels ``(n, h, w, 3)`` uint8, labels ``(n,)`` int64."""

    numbers: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Validation:
    """Labelled images as the network sees them, streamed.

    Attributes:
        root: the image folder.
        paths: files relative to it.
        labels: ``(n,)`` int64, places in the bundle's labels.
        numbers: ``(n,)`` int64, rising: place of each image in the whole set, the same in a subset.
        split: where the images come from, in words.
        preprocessing: of the bundle.
        kept: pixels ``(n, h, w, 3)`` where they are in memory.
        left_out: path -> reason of files that cannot be used, as far as known.
    """

    root: Path
    paths: tuple[str, ...]
    labels: NDArray[np.int64]
    numbers: NDArray[np.int64]
    split: str
    preprocessing: Preprocessing
    kept: NDArray[np.uint8] | None
    left_out: dict[str, str]

    def __len__(self) -> int:
        return len(self.paths)

    def batches(self, size: int = BATCH) -> Iterator[Views]:
        """Yield all images that can be read, in order, so many at a time."""
        if self.kept is not None:
            for i in range(0, len(self), size):
                yield Views(self.numbers[i : i + size], self.kept[i : i + size], self.labels[i : i + size])
            return
        places: list[int] = []
        pixels: list[NDArray[np.uint8]] = []
        for place, view in enumerate(views(self.root, self.paths, self.preprocessing)):
            if isinstance(view, DataError):
                continue
            places.append(place)
            pixels.append(view)
            if len(pixels) == size:
                yield Views(self.numbers[places], np.stack(pixels), self.labels[places])
                places, pixels = [], []
        if pixels:
            yield Views(self.numbers[places], np.stack(pixels), self.labels[places])

    def subset(self, n: int, seed: int = 0) -> Validation:
        """Return ``n`` of the images, or all where there are no more: one of each class, then a second, and so on."""
        places = sorted(spread(self.labels.tolist(), seed)[:n])
        return replace(
            self,
            paths=tuple(self.paths[place] for place in places),
            labels=self.labels[places],
            numbers=self.numbers[places],
            kept=None if self.kept is None else self.kept[places],
        )


def validation_of(
    data: str | Path, bundle: Bundle, preprocessing: Preprocessing, advance: Advance = _quiet
) -> Validation:
    """Return the images that validate: those in ``val/`` of a folder, or those that training held out.

    Args:
        data: the folder that ``train --data`` took, or another one with ``val/`` and the same classes.
        bundle: a trained one.
        preprocessing: of the bundle.
        advance: called with the images decoded and all images, where they are kept in memory.

    Raises:
        DataError: no such folder, other classes than the bundle's, images of which the held-out share cannot be told,
            or none that can be used.
        MissingPart: the bundle is not trained.
    """
    folder = trained_folder(data, bundle)
    place = {name: i for i, name in enumerate(bundle.part("labels"))}
    labels = np.asarray([place[folder.classes[file.label]] for file in folder.val], np.int64)
    paths = tuple(file.path for file in folder.val)
    numbers = np.arange(len(paths))
    if len(paths) * preprocessing.crop**2 * 3 > MEMORY_BYTES:
        return Validation(folder.root, paths, labels, numbers, folder.split, preprocessing, None, {})
    usable: list[int] = []
    pixels: list[NDArray[np.uint8]] = []
    left_out: dict[str, str] = {}
    for number, view in enumerate(views(folder.root, paths, preprocessing)):
        if isinstance(view, DataError):
            left_out[paths[number]] = str(view).removeprefix(f"{folder.root / paths[number]}: ")
        else:
            usable.append(number)
            pixels.append(view)
        advance(number + 1, len(paths))
    if not usable:
        path, reason = next(iter(left_out.items()))
        raise DataError(f"none of the {len(paths)} validation images in {data} can be read: {path}: {reason}")
    some = tuple(paths[number] for number in usable)
    return Validation(
        folder.root, some, labels[usable], numbers[usable], folder.split, preprocessing, np.stack(pixels), left_out
    )


@dataclass(frozen=True, eq=False)
class Reference:
    """The model's own answers.

    Attributes:
        numbers: ``(n,)`` int64, rising: which images of the validation set.
        labels: ``(n,)`` int64.
        logits: ``(n, classes)`` float32.
    """

    numbers: NDArray[np.int64]
    labels: NDArray[np.int64]
    logits: NDArray[np.float32]

    @property
    def top1(self) -> float:
        """Share of right answers."""
        return float((self.logits.argmax(axis=1) == self.labels).mean())

    def of(self, validation: Validation) -> Reference:
        """Return the answers to these images alone."""
        rows = self.rows(np.intersect1d(validation.numbers, self.numbers))
        return Reference(self.numbers[rows], self.labels[rows], self.logits[rows])

    def rows(self, numbers: NDArray[np.int64]) -> NDArray[np.intp]:
        """Return the rows of images by their numbers.

        Raises:
            DataError: there is none of an image.
        """
        rows = np.minimum(np.searchsorted(self.numbers, numbers), len(self.numbers) - 1)
        if (self.numbers[rows] != numbers).any():
            raise DataError("validation images were changed while they were used: run this again")
        return rows


def reference_of(
    model: nn.Module, validation: Validation, advance: Advance = _quiet, *, batch: int = BATCH
) -> Reference:
    """Return the model's logits for all validation images, in FP32 on all cores of the CPU.

    Raises:
        DataError: no image can be read.
        ProofError: a logit is not finite.
    """
    model = model.to("cpu", torch.float32).eval()
    found: list[Views] = []
    logits: list[NDArray[np.float32]] = []
    done, before = 0, torch.get_num_threads()
    torch.set_num_threads(available_cores())
    try:
        for each in validation.batches(batch):
            logits.append(inference(model, torch.from_numpy(normalise(each.pixels, validation.preprocessing))).numpy())
            found.append(each._replace(pixels=each.pixels[:0]))
            done += len(each.labels)
            advance(done, len(validation))
    finally:
        torch.set_num_threads(before)
    if not found:
        raise DataError(f"none of the {len(validation)} validation images in {validation.root} can be read")
    reference = Reference(
        np.concatenate([each.numbers for each in found]),
        np.concatenate([each.labels for each in found]),
        np.concatenate(logits),
    )
    if not np.isfinite(reference.logits).all():
        raise ProofError("the model's own logits are not finite, so nothing can be proved: train again (a lower --lr)")
    return reference


@dataclass(frozen=True)
class Accuracy:
    """How a variant answers, beside the model, on the same images.

    Attributes:
        images: images compared.
        top1: share of right answers of the variant.
        reference_top1: share of right answers of the model.
        drop: what the variant loses, points (percent of the images); below 0 where it gains.
        low: lower end of the 95 % interval of the drop, points; see :func:`regnet_deploy.exporting.paired.difference`.
        high: upper end, points.
        agreement: share of images whose first class is the same.
        max_abs_error: largest difference of a logit; infinite where one is not finite.
        mean_abs_error: mean difference of a logit; infinite where one is not finite.
        cosine: lowest cosine similarity of an image's logits with the model's; NaN where one is not finite.
    """

    images: int
    top1: float
    reference_top1: float
    drop: float
    low: float
    high: float
    agreement: float
    max_abs_error: float
    mean_abs_error: float
    cosine: float

    @property
    def finite(self) -> bool:
        """Whether all logits were."""
        return math.isfinite(self.max_abs_error)

    def to_json(self) -> dict[str, Any]:
        """Return JSON data; figures that are not finite become None."""
        return {name: value if math.isfinite(value) else None for name, value in vars(self).items()}

    def __str__(self) -> str:
        return (
            f"top-1 {self.top1:.2%} on {self.images} images, the model {self.reference_top1:.2%}: a drop of "
            f"{self.drop:.2f} points (95 % interval {self.low:.2f} to {self.high:.2f})"
        )


def measure_accuracy(
    session: Session, validation: Validation, reference: Reference, advance: Advance = _quiet, *, batch: int = BATCH
) -> Accuracy:
    """Run a variant on validation images and compare its answers with the model's.

    Args:
        session: the variant, opened by the runtime that will serve it.
        validation: images; a subset of those of the reference will do.
        reference: the model's answers.
        advance: called with the images done and all images.
        batch: images run at a time.

    Raises:
        DataError: an image could be read for the reference and cannot now, or the other way round.
        ProofError: the session cannot run the images, or gives logits of another shape.
    """
    images, right, right_before, lost, gained, same = 0, 0, 0, 0, 0, 0
    largest, total, cosine = 0.0, 0.0, 1.0
    for each in validation.batches(batch):
        wanted = reference.logits[reference.rows(each.numbers)].astype(np.float64)
        got = classify_pixels(session, each.pixels, validation.preprocessing).astype(np.float64)
        if got.shape != wanted.shape:
            raise ProofError(f"logits of shape {got.shape} cannot be compared with a reference of {wanted.shape}")
        finite = np.isfinite(got).all(axis=1)
        first, first_before = np.where(finite, got.argmax(axis=1), -1), wanted.argmax(axis=1)  # -1: no answer
        is_right, was_right = first == each.labels, first_before == each.labels
        images += len(each.labels)
        right, right_before = right + int(is_right.sum()), right_before + int(was_right.sum())
        lost, gained = lost + int((was_right & ~is_right).sum()), gained + int((is_right & ~was_right).sum())
        same += int((first == first_before).sum())
        if finite.all():
            error = np.abs(got - wanted)
            largest, total = max(largest, float(error.max())), total + float(error.sum())
            cosine = min(cosine, _lowest_cosine(wanted, got))  # a NaN from before stays
        else:
            largest, total, cosine = math.inf, math.inf, math.nan
        advance(images, len(validation))
    if images != np.isin(reference.numbers, validation.numbers).sum():
        raise DataError("validation images were changed while they were used: run this again")
    drop = difference(lost, gained, images)
    return Accuracy(
        images=images,
        top1=right / images,
        reference_top1=right_before / images,
        drop=100 * drop.value,
        low=100 * drop.low,
        high=100 * drop.high,
        agreement=same / images,
        max_abs_error=largest,
        mean_abs_error=total / (images * reference.logits.shape[1]),
        cosine=cosine,
    )


def _lowest_cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the lowest cosine of a row of both; rows of zeros are alike to each other and to nothing else."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    alike = np.where(lengths > 0, (a * b).sum(axis=1) / np.where(lengths > 0, lengths, 1), (a == b).all(axis=1))
    return float(alike.min())
