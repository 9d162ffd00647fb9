"""The dataset of a training run, split into training and validation images as the run split it.

No image is decoded. The bundle's part ``training`` records which files could not be used and how many images were held
out for validation. The number of held-out images determines which ones they were: with a larger share the same or more
images of every class are held out. The digest over the content of the files then confirms that they are the same
images.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from regnet_deploy.bundle import Bundle
from regnet_deploy.bundle.training import TrainingData
from regnet_deploy.cpu import available_cores
from regnet_deploy.errors import DataError, did_you_mean
from regnet_deploy.images.dataset import ImageDataset, ImageListing, build_dataset, list_images, spelled_as
from regnet_deploy.images.dataset_summary import left_out_lines
from regnet_deploy.images.decode import ImageError
from regnet_deploy.images.image_check import ImageCheck
from regnet_deploy.images.image_source import ImageSource
from regnet_deploy.images.names import shortened
from regnet_deploy.progress import NoProgress, Progress


def load_training_dataset(source: str | Path, bundle: Bundle, progress: Progress | None = None) -> ImageDataset:
    """Return the images of a folder, split as training split them; their width and height are not known.

    A folder with its own validation images can be another one than the training folder, if its classes are the
    bundle's; none of its files is read. Without validation images all files are read, to make sure that the held-out
    images are known.

    Args:
        source: the folder.
        bundle: a trained bundle.
        progress: receives the files read, where they are read, and what was not yet said of the folder in training.

    Raises:
        DataError: the folder is not an image folder; its classes are not the bundle's labels; or it has no validation
            images and is not the training folder, so that the held-out images are not known.
        MissingPart: the bundle is not trained.
    """
    listing = spelled_as(list_images(source), bundle.labels)
    _ensure_classes(listing, bundle.labels)
    training = bundle.manifest.training if listing.val else bundle.training
    rejected = training.data.rejected if training else {}
    unread = ImageCheck("", 0, 0, "", 0, 0, "")  # shared by all files: ImageNet has a million
    checked = dict.fromkeys(listing.source.names, unread)
    checked.update({path: replace(unread, reason=reason) for path, reason in rejected.items()})
    progress = progress or NoProgress()
    if training is None or listing.val is not None:
        dataset = build_dataset(listing, checked)
    else:
        dataset = _held_out(listing, checked, training.data, training.seed, progress)
    for line in _news(dataset, listing, training.data if training else None):
        progress.message(line)
    return dataset


def _news(dataset: ImageDataset, listing: ImageListing, known: TrainingData | None) -> list[str]:
    """Return what is to be said of a folder that was not said, and recorded, when the network was trained."""
    said = (known.rejected, known.findings) if known else ({}, ())
    left_out = {name: reason for name, reason in listing.left_out.items() if name not in said[0]}
    return [each for each in dataset.findings if each not in said[1]] + left_out_lines("left out", left_out)


def is_training_dataset(dataset: ImageDataset, bundle: Bundle) -> bool:
    """Tell whether a dataset can be the one of the training run: it has as many images.

    For a folder without validation images :func:`load_training_dataset` has already compared the digest.
    """
    training = bundle.manifest.training
    if training is None:
        return False
    return (len(dataset.train), len(dataset.val)) == (training.data.train_images, training.data.val_images)


def _held_out(
    listing: ImageListing, checked: dict[str, ImageCheck], data: TrainingData, seed: int, progress: Progress
) -> ImageDataset:
    """Return the dataset with the validation images that training held out."""
    if "held out" not in data.split:
        raise DataError(
            f"{listing.root} has no validation folder, and the network was trained with one ({data.split}): "
            f"give the folder that was given to `train --data` (its name was {data.folder})"
        )
    sizes = Counter(sum(not checked[path].reason for path in paths) for paths in listing.train.values())
    share = _smallest(lambda share: _count_held_out(sizes, share) >= data.val_images)
    found = sum(size * classes for size, classes in sizes.items())
    expected = data.train_images + data.val_images
    if found == expected and _count_held_out(sizes, share) == data.val_images:
        dataset = build_dataset(listing, _read(listing.source, checked, progress), val_split=share, seed=seed)
        if dataset.digest == data.digest:
            return replace(dataset, split=data.split)
    raise DataError(
        f"{listing.root} does not contain the {expected} images of the training run (it contains {found}, or different "
        f"ones), so the {data.val_images} held-out images are not known: give the folder as it was, or one with "
        "train/ and val/"
    )


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


def _count_held_out(sizes: Mapping[int, int], share: float) -> int:
    """Return how many images ``images.dataset.build_dataset`` holds out.

    Args:
        sizes: number of images in a class -> number of such classes.
        share: of each class.
    """
    return sum(classes * max(0, min(size - 1, max(1, round(share * size)))) for size, classes in sizes.items())


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
        problems.append(f"{len(unknown)} class folders are not among the bundle's labels: {shortened(unknown)}{guess}")
    if missing:
        problems.append(
            f"{len(missing)} of the bundle's {len(labels)} labels have no class folder: {shortened(missing)}"
        )
    raise DataError(
        f"the classes of {listing.root} are not those of the bundle: {'; '.join(problems)}; give the training folder"
    )
