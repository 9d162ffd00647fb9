"""The dataset of a training run, split as the run split it.

No image is decoded. The bundle's part ``training`` records which files could not be used and how many images were held
out for validation and to test on. The number of held-out images determines which ones they were: with a larger share
the same or more images of every class are held out. The digest over the content of the files then confirms that they
are the same images.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from regnet_deploy.bundle import Bundle
from regnet_deploy.bundle.training import Training, TrainingData
from regnet_deploy.cpu import available_cores
from regnet_deploy.errors import DataError, did_you_mean
from regnet_deploy.images.dataset import ImageDataset, build_dataset
from regnet_deploy.images.dataset_summary import left_out_lines
from regnet_deploy.images.decode import ImageError
from regnet_deploy.images.hold_out import Shares
from regnet_deploy.images.image_check import ImageCheck
from regnet_deploy.images.image_source import ImageSource
from regnet_deploy.images.layout import split_of
from regnet_deploy.images.listing import FOLDER, ImageListing, list_images, spelled_as
from regnet_deploy.images.names import shortened
from regnet_deploy.progress import NoProgress, Progress


def load_training_dataset(source: str | Path, bundle: Bundle, progress: Progress | None = None) -> ImageDataset:
    """Return the images of a folder, split as training split them; their width and height are not known.

    A folder with its own validation images can be another one than the training folder, if its classes are the
    bundle's; none of its files is read. Where images were held out of the training folder, all files are read, to make
    sure that these images are known. A folder of images to test on is not read.

    Args:
        source: the folder.
        bundle: a trained bundle.
        progress: receives the files read, where they are read, and what was not yet said of the folder in training.

    Raises:
        DataError: the folder is not an image folder; its classes are not the bundle's labels; or it is not the training
            folder, so that the images that were held out of that are not known.
        MissingPart: the bundle is not trained.
    """
    progress = progress or NoProgress()
    listing = spelled_as(list_images(source, progress=progress), bundle.labels)
    _ensure_classes(listing, bundle.labels)
    training = bundle.manifest.training if listing.val else bundle.training
    dataset = None if training is None else _as_in_training(listing, training, progress)
    if dataset is None:
        if training and (listing.val is None or (holds_out(training, "test") and _same_name(listing, training.data))):
            raise DataError(_unknown_images(listing, training.data))
        dataset = build_dataset(listing, _unread(listing, training))
    for line in _news(dataset, listing, training.data if training else None):
        progress.message(line)
    return dataset


def find_training_dataset(source: str | Path, bundle: Bundle, progress: Progress | None = None) -> ImageDataset | None:
    """Return the images of the training folder as :func:`load_training_dataset`; None if it is another folder.

    Raises:
        DataError: the folder is not an image folder.
    """
    progress = progress or NoProgress()
    listing, training = spelled_as(list_images(source, progress=progress), bundle.labels), bundle.manifest.training
    if training is None or sorted(listing.train) != sorted(bundle.labels):
        return None
    return _as_in_training(listing, training, progress)


def holds_out(training: Training, split: str) -> bool:
    """Tell whether images of a split, ``val`` or ``test``, were held out of the training images."""
    if split == "test":
        return training.data.test is not None and training.data.test.held_out
    return "held out" in training.data.split


def _news(dataset: ImageDataset, listing: ImageListing, known: TrainingData | None) -> list[str]:
    """Return what is to be said of a folder that was not said, and recorded, when the network was trained."""
    said = (known.rejected, known.findings) if known else ({}, ())
    tested = known is not None and known.test is not None
    left_out = {
        name: reason
        for name, reason in listing.left_out.items()
        if name not in said[0] and not (tested and split_of(name.rstrip("/")) == "test")
    }
    return [each for each in dataset.findings if each not in said[1]] + left_out_lines("left out", left_out)


def is_training_dataset(dataset: ImageDataset, bundle: Bundle) -> bool:
    """Tell whether a dataset can be the one of the training run: it has as many images.

    For a folder without validation images :func:`load_training_dataset` has already compared the digest.
    """
    training = bundle.manifest.training
    if training is None:
        return False
    return (len(dataset.train), len(dataset.val)) == (training.data.train_images, training.data.val_images)


def _as_in_training(listing: ImageListing, training: Training, progress: Progress) -> ImageDataset | None:
    """Return the dataset with the images that training held out; None if the folder is not that of training."""
    data, checked = training.data, _unread(listing, training)
    held_val, held_test = holds_out(training, "val"), data.test if holds_out(training, "test") else None
    if held_val != (listing.val is None):
        return None
    if not held_val and held_test is None:  # no images are held out: the folder itself says what they are for
        return build_dataset(listing, checked)
    sizes = Counter(sum(not checked[path].reason for path in paths) for paths in listing.train.values())
    val, test = data.val_images if held_val else 0, held_test.images if held_test else 0
    shares = Shares()
    if val:
        shares = replace(shares, val=_smallest(lambda share: _count_held_out(sizes, Shares(share))[0] >= val))
    if test:
        of_val = shares.val
        shares = replace(shares, test=_smallest(lambda share: _count_held_out(sizes, Shares(of_val, share))[1] >= test))
    found = sum(size * classes for size, classes in sizes.items())
    if found != data.train_images + val + test or _count_held_out(sizes, shares) != (val, test):
        return None
    dataset = build_dataset(
        listing,
        _read(listing.source, checked, progress),
        val_split=shares.val,
        test_split=shares.test if held_test else None,
        seed=training.seed,
    )
    if dataset.digest != data.digest or (held_test and dataset.test_digest != held_test.digest):
        return None
    return replace(dataset, split=data.split, test_split=held_test.split if held_test else "")


def _unknown_images(listing: ImageListing, data: TrainingData) -> str:
    """Return why the images that training held out are not known."""
    if listing.val is None and "held out" not in data.split:
        return (
            f"{listing.root} has no validation folder, and the network was trained with one ({data.split}): "
            f"give the folder that was given to `train --data` (its name was {data.folder})"
        )
    held_val = data.val_images if listing.val is None else 0
    held_test = data.test.images if data.test and data.test.held_out else 0
    expected, held_out = data.train_images + held_val + held_test, held_val + held_test
    found = sum(path not in data.rejected for paths in listing.train.values() for path in paths)
    return (
        f"{listing.root} does not contain the {expected} images of the training run (it contains {found}, or different "
        f"ones), so the {held_out} held-out images are not known: give the folder as it was, or one with train/ and "
        "val/"
    )


def _same_name(listing: ImageListing, data: TrainingData) -> bool:
    return listing.root.resolve().name == data.folder


def _unread(listing: ImageListing, training: Training | None) -> dict[str, ImageCheck]:
    """Return what is known of the files without reading them: which of them training could not use."""
    unread = ImageCheck("", 0, 0, "", 0, 0, "")  # shared by all files: ImageNet has a million
    checked = dict.fromkeys(listing.source.names, unread)
    rejected = training.data.rejected if training else {}
    checked.update({path: replace(unread, reason=reason) for path, reason in rejected.items()})
    return checked


def _read(source: ImageSource, checked: Mapping[str, ImageCheck], progress: Progress) -> dict[str, ImageCheck]:
    """Return the images, the usable ones with size and sha256. Threads help, because hashing releases Python's lock."""

    def content(index: int) -> ImageCheck:
        known = checked[source.names[index]]
        if known.reason:
            return known
        try:
            data = source.read(index)
        except ImageError as error:
            raise DataError(f"{source.root}: {error}") from None
        return replace(known, size=len(data), sha256=hashlib.sha256(data).hexdigest())

    pool = ThreadPoolExecutor(max_workers=min(16, available_cores()))
    try:
        found: dict[str, ImageCheck] = {}
        for name, one in zip(source.names, pool.map(content, range(len(source.names))), strict=True):
            found[name] = one
            progress.update(len(found), len(source.names))
        return found
    finally:
        pool.shutdown(cancel_futures=True)


def _count_held_out(sizes: Mapping[int, int], shares: Shares) -> tuple[int, int]:
    """Return how many images :func:`regnet_deploy.images.hold_out.hold_out` holds out, for validation and to test on.

    Args:
        sizes: number of images in a class -> number of such classes.
        shares: of each class.
    """
    counts = [(shares.counts(size), classes) for size, classes in sizes.items()]
    return sum(each[0] * classes for each, classes in counts), sum(each[1] * classes for each, classes in counts)


def _smallest(is_enough: Callable[[float], bool]) -> float:
    """Return the smallest float in 0..1 that is enough; 1 if none is."""
    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2) < high:
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def _ensure_classes(listing: ImageListing, labels: Sequence[str]) -> None:
    found = sorted(listing.train)
    if found == sorted(labels):
        return
    unknown, missing = sorted(set(found) - set(labels)), sorted(set(labels) - set(found))
    problems = []
    if unknown:
        guess = did_you_mean(unknown[0], missing)
        problems.append(
            f"{len(unknown)} {listing.classes_noun} are not among the bundle's labels: {shortened(unknown)}{guess}"
        )
    if missing:
        lack = "no class folder" if listing.kind == FOLDER else "no images"
        problems.append(f"{len(missing)} of the bundle's {len(labels)} labels have {lack}: {shortened(missing)}")
    raise DataError(
        f"the classes of {listing.root} are not those of the bundle: {'; '.join(problems)}; give the training folder"
    )
