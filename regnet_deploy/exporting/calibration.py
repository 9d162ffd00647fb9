"""Calibration: images on which the ranges of activations are measured, and the choice of the method that sets them."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.bundle import Bundle
from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.bundle.variants import Calibration, CalibrationResult, Gate
from regnet_deploy.errors import DataError, ProofError, RegnetDeployError, UsageError
from regnet_deploy.exporting.accuracy import measure_accuracy
from regnet_deploy.exporting.accuracy_gate import AccuracyGate
from regnet_deploy.exporting.activation_ranges import (
    METHODS,
    ObservedActivations,
    compute_ranges,
    observe_activations,
)
from regnet_deploy.exporting.decoded_images import decode_images, pixels_fingerprint
from regnet_deploy.exporting.emulation import emulate
from regnet_deploy.exporting.model_source import ModelSource
from regnet_deploy.exporting.precision import PRECISIONS, Precision
from regnet_deploy.exporting.quantization import TensorRange
from regnet_deploy.exporting.training_dataset import holds_out, is_training_dataset, load_training_dataset
from regnet_deploy.exporting.validation import ValidationSet
from regnet_deploy.images.dataset import ImageDataset, stratified_order
from regnet_deploy.images.dataset_summary import left_out_lines
from regnet_deploy.images.decode import FORMATS, ImageError
from regnet_deploy.images.folder_files import FolderFiles, entries, image_files
from regnet_deploy.images.image_source import FolderSource, ImageSource
from regnet_deploy.images.listing import ImageListing, list_images
from regnet_deploy.images.open_table import open_table
from regnet_deploy.progress import NoProgress, Progress
from regnet_deploy.runtimes.golden_set import replay
from regnet_deploy.runtimes.runtime import Session, open_onnx

#: With fewer images than the first, values that a deployed network meets may be missing; more than the second do not
#: change the ranges.
ENOUGH_IMAGES, MAX_IMAGES = 300, 512

TRAINING, USER = "training images", "user images"
#: Number of validation images on which the methods are compared.
_COMPARED = 2000
_COMPARED_SEED = 0


@dataclass(frozen=True, eq=False)
class CalibrationSet:
    """Images for calibration.

    Attributes:
        pixels: ``(n, h, w, channels)`` uint8, all different.
        source: where they come from, in words; with the folder, if it may not be the training folder.
        folder: its name.
        seed: of the choice.
        digest: sha256 over the pixels and the preprocessing.
        unusable: path -> reason of chosen files that cannot be used.
    """

    pixels: NDArray[np.uint8]
    source: str
    folder: str
    seed: int
    digest: str
    unusable: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class CalibratedRanges:
    """The ranges of the best method, and the record of the calibration."""

    ranges: Mapping[str, TensorRange]
    calibration: Calibration


class Calibrator:
    """The calibration images and the activations observed on them; both are loaded when a precision first needs them.

    Args:
        load_images: returns the images; raises DataError or UsageError if there are not enough.
        source: the network.
        progress: receives the steps.
    """

    def __init__(self, load_images: Callable[[], CalibrationSet], source: ModelSource, progress: Progress) -> None:
        self._load_images, self._source, self._progress = load_images, source, progress

    @cached_property
    def _loaded(self) -> CalibrationSet | RegnetDeployError:
        self._progress.step("calibration images")
        try:
            return self._load_images()
        except RegnetDeployError as error:  # kept, so that the next precision does not search the folder again
            return error

    @property
    def images(self) -> CalibrationSet:
        """The calibration images."""
        if isinstance(self._loaded, RegnetDeployError):
            raise self._loaded
        return self._loaded

    @cached_property
    def observed(self) -> ObservedActivations:
        """The activations of the FP32 network on them."""
        pixels, source = self.images.pixels, self._source
        self._progress.step("activations of the calibration images")
        fp32 = source.onnx(PRECISIONS["fp32"])
        return observe_activations(fp32, source.activation_names(), pixels, source.preprocessing, self._progress)

    def choose_ranges(
        self, precision: Precision, gate: AccuracyGate, *, reduce_range: bool = False
    ) -> CalibratedRanges:
        """Build the precision with the ranges of each method and return the ranges of the most accurate one.

        The criterion is top-1 on up to 2,000 validation images, or without validation images the share of golden images
        with the same first class as the model. If that is equal, it is the smaller mean error of the logits.

        Args:
            precision: a quantized one.
            gate: has the golden set and the validation images.
            reduce_range: quantize weights to 7 bits.

        Raises:
            DataError: there are too few calibration images.
            ProofError: no method gives finite logits.
        """
        validation = None if gate.validation is None else gate.validation.subset(_COMPARED, _COMPARED_SEED)
        observed = self.observed
        tried: dict[str, CalibrationResult] = {}
        ranges: dict[str, Mapping[str, TensorRange]] = {}
        for method in METHODS:
            self._progress.step(f"{precision.name}: ranges by {method}")
            ranges[method] = compute_ranges(observed, method)
            data = self._source.onnx(precision, ranges[method], reduce_range=reduce_range)
            session = open_onnx(emulate(data, precision), device="cpu", exact=precision.tensorrt_only)
            figures = _figures(session, gate, validation)
            if figures is not None:
                tried[method] = figures
        if not tried:
            raise ProofError(
                f"{precision.name}: the logits are not finite with the ranges of any method ({', '.join(METHODS)})"
            )
        best = max(tried, key=lambda method: (tried[method].top1, -tried[method].mean_abs_error))
        images = self.images
        calibration = Calibration(
            method=best,
            tried=tried,
            images=len(images.pixels),
            source=images.source,
            folder=images.folder,
            seed=images.seed,
            digest=images.digest,
            left_out=images.unusable,
        )
        return CalibratedRanges(ranges[best], calibration)


def make_calibration_set(
    source: str | Path | ImageDataset,
    bundle: Bundle,
    preprocessing: Preprocessing,
    golden_images: NDArray[np.uint8],
    *,
    count: int = MAX_IMAGES,
    seed: int = 0,
    excluded: Collection[bytes] = frozenset(),
    progress: Progress | None = None,
) -> CalibrationSet:
    """Choose images and decode them; where an image cannot be used, the next one is chosen.

    Args:
        source: the folder that was given to ``train --data``, of which only training images are used, spread over the
            classes; its dataset; another folder with one folder for each class; or a folder of images.
        bundle: its labels and its part ``training`` say what was trained on.
        preprocessing: of the bundle.
        golden_images: ``(n, h, w, channels)`` uint8: none of these is used.
        count: number of images; fewer are used if there are not as many.
        seed: of the choice.
        excluded: fingerprints of validation images: none of these is used either.
        progress: receives the images found, and before that the files read, if the dataset has to be loaded; and
            messages on files that cannot be used and on too few images.

    Raises:
        UsageError: ``count`` is not 1 to 512.
        DataError: the folder does not exist, has no usable image, or is split into training and validation images with
            other classes than the bundle's; or the images that training held out are not known.
        MissingPart: the folder is split and the bundle is not trained.
    """
    if not 1 <= count <= MAX_IMAGES:
        raise UsageError(f"calibration takes 1 to {MAX_IMAGES} images, not {count}")
    progress = progress or NoProgress()
    images, ordered, description = _ordered(source, bundle, seed, progress)
    golden = {pixels_fingerprint(image) for image in golden_images}
    seen: set[bytes] = set()
    chosen: list[NDArray[np.uint8]] = []
    unusable: dict[str, str] = {}
    skipped = Counter[str]()
    for image in decode_images(images, ordered, preprocessing):
        if isinstance(image, ImageError):
            unusable[image.name] = image.reason
            continue
        fingerprint = pixels_fingerprint(image)
        reason = _skip_reason(fingerprint, golden, excluded, seen)
        if reason:
            skipped[reason] += 1
            continue
        seen.add(fingerprint)
        chosen.append(image)
        progress.update(len(chosen), count)
        if len(chosen) == count:
            break
    for line in left_out_lines("cannot be used for calibration", unusable):
        progress.message(line)
    if not chosen:
        found = _found(images.root, description, 0, skipped, unusable, len(ordered))
        raise DataError(f"calibration: {found}: add images, or give another folder of real ones")
    if len(chosen) < ENOUGH_IMAGES:
        found = _found(images.root, description, len(chosen), skipped, unusable, len(ordered))
        progress.message(
            f"calibration: {found}; with fewer than {ENOUGH_IMAGES} the ranges may miss values of other images: "
            "compare the accuracy on validation images (--data), or add images"
        )
    pixels = np.stack(chosen)
    digest = calibration_digest(pixels, preprocessing)
    return CalibrationSet(pixels, description, images.root.resolve().name, seed, digest, unusable)


def calibration_digest(pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> str:
    """Return the sha256 over the pixels, their shape and the preprocessing."""
    head = json.dumps([list(pixels.shape), preprocessing.to_json()], sort_keys=True)
    return hashlib.sha256(head.encode() + b"\n" + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def _ordered(
    source: str | Path | ImageDataset, bundle: Bundle, seed: int, progress: Progress
) -> tuple[ImageSource, list[int], str]:
    """Return the images, their indices in the order in which they are tried, and a description of them."""
    if not isinstance(source, ImageDataset):
        found = None if open_table(source, progress) else _images_without_classes(Path(source))
        if found is not None:
            for line in left_out_lines("left out of the calibration", found.left_out):
                progress.message(line)
            files = tuple(found.files)
            return FolderSource(Path(source), files), stratified_order([0] * len(files), seed), USER
        listing = list_images(source, progress=progress)
        if not _holds_images_out(listing, bundle):
            return _by_folder(listing, bundle, seed, progress)
        source = load_training_dataset(source, bundle, progress)
    train = source.train
    ordered = [train[i].index for i in stratified_order([file.label for file in train], seed)]
    if is_training_dataset(source, bundle):
        return source.source, ordered, TRAINING
    where = f"of {source.train_split} in" if source.train_split else "in"
    return source.source, ordered, f"images {where} {source.source.root.resolve().name}"


def _images_without_classes(root: Path) -> FolderFiles | None:
    """Return the images in a folder; None if it contains folders or does not exist."""
    if not os.path.isdir(root) or entries(root).folders:
        return None
    return image_files(root)


def _holds_images_out(listing: ImageListing, bundle: Bundle) -> bool:
    """Tell whether some of the images are for validation: in a folder of their own, or held out by training."""
    if listing.val is not None:
        return True
    training = bundle.manifest.training
    if training is None or not holds_out(training, "val"):
        return False
    data = training.data
    usable = sum(path not in data.rejected for paths in listing.train.values() for path in paths)
    return usable == data.train_images + data.val_images + (data.test.images if data.test and data.test.held_out else 0)


def _by_folder(
    listing: ImageListing, bundle: Bundle, seed: int, progress: Progress
) -> tuple[ImageSource, list[int], str]:
    """Return all images of a folder of folders, spread over these, as user images."""
    labels = bundle.manifest.labels
    for line in (*listing.notes, *left_out_lines("left out of the calibration", listing.left_out)):
        progress.message(line)
    others = sorted(set(listing.train) - set(labels)) if labels else []
    if others:
        progress.message(
            f"calibration: {len(others)} of {len(listing.train)} folders in {listing.root} are no classes of the "
            f"bundle, such as {others[0]}; their images are used all the same"
        )
    index = {name: number for number, name in enumerate(listing.source.names)}
    images = [(index[path], label) for label, paths in enumerate(listing.train.values()) for path in paths]
    order = stratified_order([label for _, label in images], seed)
    return listing.source, [images[i][0] for i in order], USER


def _skip_reason(
    fingerprint: bytes, golden: Collection[bytes], validation: Collection[bytes], seen: Collection[bytes]
) -> str | None:
    sets = {"in the golden set": golden, "among the validation images": validation, "equal to another image": seen}
    return next((name for name, fingerprints in sets.items() if fingerprint in fingerprints), None)


def _found(
    root: Path, description: str, usable: int, skipped: Mapping[str, int], unusable: dict[str, str], files: int
) -> str:
    """Return in words how many of the files in a folder are usable, and why not all."""
    what = f"images ({', '.join(FORMATS)})" if description == USER else description
    details = [f"{count} {'is' if count == 1 else 'are'} {reason}" for reason, count in skipped.items()]
    if unusable:
        path, reason = next(iter(unusable.items()))
        details.append(f"{len(unusable)} cannot be used, for example {path}: {reason}")
    explanation = f" ({'; '.join(details)})" if details else ""
    return f"{root} has {usable} usable images among {files} {what}{explanation}"


def _figures(session: Session, gate: AccuracyGate, validation: ValidationSet | None) -> CalibrationResult | None:
    """Return the figures of a method, or None if a logit is not finite."""
    if validation is None or gate.reference is None:
        agreement = replay(session, gate.golden, gate.preprocessing, Gate())
        return CalibrationResult(agreement.top1_agreement, agreement.mean_abs_error) if agreement.passed else None
    accuracy = measure_accuracy(session, validation, gate.reference.restricted_to(validation))
    return None if accuracy.mean_abs_error is None else CalibrationResult(accuracy.top1, accuracy.mean_abs_error)
