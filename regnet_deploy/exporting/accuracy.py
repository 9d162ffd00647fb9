"""What a variant costs in accuracy: the validation images, the model's own answers to them, and the difference."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from regnet_deploy.bundle import Bundle
from regnet_deploy.cpu import available_cores
from regnet_deploy.errors import DataError, ProofError
from regnet_deploy.exporting.image_batches import image_batches, pixels_fingerprint
from regnet_deploy.exporting.paired_difference import paired_difference
from regnet_deploy.exporting.progress import Advance, quiet
from regnet_deploy.exporting.training_folder import training_folder
from regnet_deploy.images.dataset import ImageDataset
from regnet_deploy.images.preprocessing import Preprocessing, normalize
from regnet_deploy.images.stratified_order import stratified_order
from regnet_deploy.models.weights import inference_model
from regnet_deploy.runtimes.golden_set import cosines
from regnet_deploy.runtimes.runtime import Session, classify_pixels

#: Views are kept in memory where all of them take no more than this, bytes; else they are decoded in every pass.
MEMORY_BYTES = 512 * 2**20
BATCH = 16
#: Share of the files that may be unreadable: beyond it the rest says little of the set.
_UNREADABLE = 0.1


class ImageBatches(NamedTuple):
    """Some validation images: their numbers ``(n,)``, pixels ``(n, h, w, 3)`` uint8, labels ``(n,)`` int64."""

    numbers: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ValidationSet:
    """Labelled images as the network sees them, streamed.

    Attributes:
        root: the image folder.
        paths: files relative to it.
        labels: ``(n,)`` int64, places in the bundle's labels.
        numbers: ``(n,)`` int64, rising: place of each image in the whole set, the same in a subset.
        split: where the images come from, in words.
        preprocessing: of the bundle.
        kept: pixels ``(n, h, w, 3)`` where they are in memory.
        left_out: path -> reason of files that cannot be read; of a set that is not in memory it fills as they are met.
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

    def batches(self, size: int = BATCH) -> Iterator[ImageBatches]:
        """Yield all images that can be read, in order, so many at a time."""
        if self.kept is not None:
            for i in range(0, len(self), size):
                yield ImageBatches(self.numbers[i : i + size], self.kept[i : i + size], self.labels[i : i + size])
            return
        places: list[int] = []
        pixels: list[NDArray[np.uint8]] = []
        for place, view in enumerate(image_batches(self.root, self.paths, self.preprocessing)):
            if isinstance(view, DataError):
                self.left_out[self.paths[place]] = _reason(view, self.root / self.paths[place])
                continue
            places.append(place)
            pixels.append(view)
            if len(pixels) == size:
                yield ImageBatches(self.numbers[places], np.stack(pixels), self.labels[places])
                places, pixels = [], []
        if pixels:
            yield ImageBatches(self.numbers[places], np.stack(pixels), self.labels[places])

    def subset(self, n: int, seed: int = 0) -> ValidationSet:
        """Return ``n`` of the images, or all where there are no more: one of each class, then a second, and so on."""
        if n >= len(self):
            return self
        places = sorted(stratified_order(self.labels.tolist(), seed)[:n])
        return replace(
            self,
            paths=tuple(self.paths[place] for place in places),
            labels=self.labels[places],
            numbers=self.numbers[places],
            kept=None if self.kept is None else self.kept[places],
            left_out={},
        )

    def warning(self) -> str | None:
        """Return a line on files that cannot be read, once all were tried; None where all can.

        Raises:
            DataError: they are more than a tenth.
        """
        if not self.left_out:
            return None
        path, reason = next(iter(self.left_out.items()))
        files, lost = len({*self.paths, *self.left_out}), len(self.left_out)
        line = f"{lost:,} of {files:,} validation images in {self.root} cannot be read, for example {path}: {reason}"
        if lost > _UNREADABLE * files:
            raise DataError(f"{line}; no more than {_UNREADABLE:.0%} may be: mend those files, or remove them")
        return line


def validation_set(
    data: str | Path | ImageDataset, bundle: Bundle, preprocessing: Preprocessing, advance: Advance = quiet
) -> ValidationSet:
    """Return the images that validate: those in ``val/`` of a folder, or those that training held out.

    Args:
        data: the folder that ``train --data`` took, or another one with ``val/`` and the same classes; or what
            ``trained_folder`` made of it.
        bundle: a trained one.
        preprocessing: of the bundle.
        advance: called with the images decoded and all images, where they are kept in memory.

    Raises:
        DataError: no such folder, other classes than the bundle's, images of which the held-out share cannot be told,
            or, where they are kept in memory, more than a tenth that cannot be read.
        MissingPart: the bundle is not trained.
    """
    folder = data if isinstance(data, ImageDataset) else training_folder(data, bundle, advance)
    place = {name: i for i, name in enumerate(bundle.part("labels"))}
    labels = np.asarray([place[folder.classes[file.label]] for file in folder.val], np.int64)
    paths = tuple(file.path for file in folder.val)
    numbers = np.arange(len(paths))
    if len(paths) * preprocessing.crop**2 * 3 > MEMORY_BYTES:
        return ValidationSet(folder.root, paths, labels, numbers, folder.split, preprocessing, None, {})
    usable: list[int] = []
    pixels = np.empty((len(paths), preprocessing.crop, preprocessing.crop, 3), np.uint8)
    left_out: dict[str, str] = {}
    for number, view in enumerate(image_batches(folder.root, paths, preprocessing)):
        if isinstance(view, DataError):
            left_out[paths[number]] = _reason(view, folder.root / paths[number])
        else:
            pixels[len(usable)] = view
            usable.append(number)
        advance(number + 1, len(paths))
    found = ValidationSet(
        folder.root,
        tuple(paths[number] for number in usable),
        labels[usable],
        numbers[usable],
        folder.split,
        preprocessing,
        pixels[: len(usable)],
        left_out,
    )
    found.warning()  # for what it raises
    return found


def _reason(error: DataError, file: Path) -> str:
    return str(error).removeprefix(f"{file}: ")


@dataclass(frozen=True, eq=False)
class ReferenceLogits:
    """The model's own answers.

    Attributes:
        numbers: ``(n,)`` int64, rising: which images of the validation set.
        labels: ``(n,)`` int64.
        logits: ``(n, classes)`` float32.
        digests: fingerprint of the view of each image, so that none of them is calibrated with.
    """

    numbers: NDArray[np.int64]
    labels: NDArray[np.int64]
    logits: NDArray[np.float32]
    digests: frozenset[bytes] = frozenset()

    @property
    def top1(self) -> float:
        """Share of right answers."""
        return float((self.logits.argmax(axis=1) == self.labels).mean())

    def of(self, validation: ValidationSet) -> ReferenceLogits:
        """Return the answers to these images alone."""
        rows = self.rows(np.intersect1d(validation.numbers, self.numbers))
        return replace(self, numbers=self.numbers[rows], labels=self.labels[rows], logits=self.logits[rows])

    def rows(self, numbers: NDArray[np.int64]) -> NDArray[np.intp]:
        """Return the rows of images by their numbers.

        Raises:
            DataError: there is none of an image.
        """
        rows = np.minimum(np.searchsorted(self.numbers, numbers), len(self.numbers) - 1)
        if (self.numbers[rows] != numbers).any():
            raise DataError("validation images were changed while they were used: run this again")
        return rows


def reference_logits(
    model: nn.Module, validation: ValidationSet, advance: Advance = quiet, *, batch: int = BATCH
) -> ReferenceLogits:
    """Return the model's logits for all validation images, in FP32 on all cores of the CPU.

    Raises:
        DataError: more than a tenth of the images cannot be read.
        ProofError: a logit is not finite.
    """
    model = model.to("cpu", torch.float32).eval()
    numbers: list[NDArray[np.int64]] = []
    labels: list[NDArray[np.int64]] = []
    logits: list[NDArray[np.float32]] = []
    digests: set[bytes] = set()
    done, before = 0, torch.get_num_threads()
    torch.set_num_threads(available_cores())
    try:
        for each in validation.batches(batch):
            logits.append(
                inference_model(model, torch.from_numpy(normalize(each.pixels, validation.preprocessing))).numpy()
            )
            numbers.append(each.numbers)  # not `each`: the pixels would stay in memory
            labels.append(each.labels)
            digests.update(pixels_fingerprint(image) for image in each.pixels)
            done += len(each.labels)
            advance(done, len(validation))
    finally:
        torch.set_num_threads(before)
    validation.warning()  # for what it raises
    reference = ReferenceLogits(
        np.concatenate(numbers), np.concatenate(labels), np.concatenate(logits), digests=frozenset(digests)
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
        low: lower end of the 95 % interval of the drop, points; see
            :func:`regnet_deploy.exporting.paired_difference.paired_difference`.
        high: upper end, points.
        agreement: share of images whose first class is the same.
        max_abs_error: largest difference of a logit; infinite where one is not finite.
        mean_abs_error: mean difference of a logit; infinite where one is not finite.
        cosine: lowest cosine similarity of an image's logits with the model's; NaN where one is not finite.
        left_out: further files of the validation set, which cannot be read.
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
    left_out: int = 0

    @property
    def finite(self) -> bool:
        """Whether all logits were."""
        return math.isfinite(self.max_abs_error)

    def to_json(self) -> dict[str, Any]:
        """Return JSON data; figures that are not finite become None."""
        return {name: value if math.isfinite(value) else None for name, value in vars(self).items()}


def measure_accuracy(
    session: Session,
    validation: ValidationSet,
    reference: ReferenceLogits,
    advance: Advance = quiet,
    *,
    batch: int = BATCH,
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
            cosine = min(cosine, float(cosines(wanted, got).min()))  # a NaN from before stays
        else:
            largest, total, cosine = math.inf, math.inf, math.nan
        advance(images, len(validation))
    if images != np.isin(reference.numbers, validation.numbers).sum():
        raise DataError("validation images were changed while they were used: run this again")
    drop = paired_difference(lost, gained, images)
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
        left_out=len(validation.left_out),
    )


def undecided_drops(accuracies: Mapping[str, Mapping[str, Any]], max_drop: float) -> str | None:
    """Return a line where the images are too few to tell whether a loss is within its limit; None where they are not.

    Args:
        accuracies: by the name of the variant, as JSON data.
        max_drop: points that a variant may lose.
    """
    if not accuracies:
        return None
    name, widest = max(accuracies.items(), key=lambda one: float(one[1]["high"] - one[1]["low"]))
    if widest["high"] - widest["low"] <= 2 * max_drop:
        return None
    return (
        f"{widest['images']:,} validation images cannot tell {max_drop:g} points: the loss of {name} is "
        f"{widest['drop']:.2f} with a 95 % interval of {widest['low']:.2f} to {widest['high']:.2f}"
    )
