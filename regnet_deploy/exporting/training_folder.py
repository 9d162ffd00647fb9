"""The folder that ``train --data`` took, split as it was split: what was trained on, and what validates.

Nothing is decoded. Which files could not be used is written in the bundle's part ``training``, and so is how many
images were held out, which says which ones: of two shares one holds out as many of every class as the other, or more.
That they are the same images is then known from the digest over their content.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from regnet_deploy.bundle import Bundle
from regnet_deploy.cpu import available_cores
from regnet_deploy.errors import DataError, did_you_mean
from regnet_deploy.exporting.progress import Advance, quiet
from regnet_deploy.images.dataset import ImageDataset, ImageListing, build_dataset, list_images
from regnet_deploy.images.image_check import ImageCheck

#: Names that are told of classes that do not fit.
_NAMED = 5


def training_folder(source: str | Path, bundle: Bundle, advance: Advance = quiet) -> ImageDataset:
    """Return the images of ``source``, split as training did; the side lengths of the files are not known.

    A folder with images for validation of its own need not be the one that was trained on, if its classes are the
    bundle's: no file of it is read. Of another one all files are, to be sure that what was held out is known.

    Args:
        source: the folder.
        bundle: a trained one.
        advance: called with the files read and all files, where they are read.

    Raises:
        DataError: no image folder; class folders that are not the bundle's labels; no validation folder, and not the
            images that were trained on, so that what was held out cannot be told.
        MissingPart: the bundle is not trained.
    """
    listing = list_images(source)
    _ensure_classes(listing, bundle.part("labels"))
    training = bundle.parts.get("training", {}) if listing.val else bundle.part("training")
    rejected = training["data"]["rejected"] if training else {}
    unread = ImageCheck("", 0, 0, "", 0, 0, "")  # one for all: an ImageNet has a million files
    checked = dict.fromkeys(listing.paths, unread)
    checked.update({path: replace(unread, reason=reason) for path, reason in rejected.items()})
    if listing.val is not None:
        return build_dataset(listing, checked)
    return _held_out(listing, checked, training["data"], training["seed"], advance)


def is_training_folder(folder: ImageDataset, bundle: Bundle) -> bool:
    """Tell whether a folder can be the one that was trained on: it has as many images as that had.

    Of one without a validation folder more is known, or :func:`trained_folder` would have refused it.
    """
    data = bundle.parts.get("training", {}).get("data", {})
    return (len(folder.train), len(folder.val)) == (data.get("train_images"), data.get("val_images"))


def _held_out(
    listing: ImageListing, checked: dict[str, ImageCheck], data: Mapping[str, Any], seed: int, advance: Advance
) -> ImageDataset:
    """Return the folder with the images held out that training held out."""
    if "held out" not in data["split"]:
        raise DataError(
            f"{listing.root} has no folder for validation, and the network was trained with one ({data['split']}): "
            f"give the folder that `train --data` took (it was called {data['folder']})"
        )
    sizes = Counter(sum(not checked[path].reason for path in paths) for paths in listing.train.values())
    share = _least(lambda share: _count(sizes, share) >= data["val_images"])
    there = sum(size * classes for size, classes in sizes.items())
    if there == data["train_images"] + data["val_images"] and _count(sizes, share) == data["val_images"]:
        folder = build_dataset(listing, _read(listing.root, checked, advance), val_split=share, seed=seed)
        if folder.digest == data["digest"]:
            return replace(folder, split=data["split"])
    raise DataError(
        f"{listing.root} does not hold the {data['train_images'] + data['val_images']} images of the training (it has "
        f"{there}, or others), so the {data['val_images']} that were held out cannot be told: give the folder as it "
        "was, or one with train/ and val/"
    )


def _read(root: Path, checked: Mapping[str, ImageCheck], advance: Advance) -> dict[str, ImageCheck]:
    """Return the files, those that can be used with size and sha256; hashing releases Python's lock, so threads do."""

    def content(path: str) -> ImageCheck:
        if checked[path].reason:
            return checked[path]
        try:
            data = (root / path).read_bytes()
        except OSError as error:
            raise DataError(f"cannot read {root / path}: {error.strerror}") from None
        return replace(checked[path], size=len(data), sha256=hashlib.sha256(data).hexdigest())

    pool = ThreadPoolExecutor(max_workers=min(16, available_cores()))
    try:
        found: dict[str, ImageCheck] = {}
        for path, one in zip(checked, pool.map(content, checked), strict=True):
            found[path] = one
            advance(len(found), len(checked))
        return found
    finally:
        pool.shutdown(cancel_futures=True)


def _count(sizes: Mapping[int, int], share: float) -> int:
    """Return how many images ``images.folder.assemble`` holds out; ``sizes``: images in a class -> classes of them."""
    return sum(classes * max(0, min(size - 1, max(1, round(share * size)))) for size, classes in sizes.items())


def _least(enough: Callable[[float], bool]) -> float:
    """Return the least number of 0..1 that is enough, to the last bit; 1 where none is."""
    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2) < high:
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _ensure_classes(listing: ImageListing, labels: Sequence[str]) -> None:
    there = sorted(listing.train)
    if there == sorted(labels):
        return
    unknown, missing = sorted(set(there) - set(labels)), sorted(set(labels) - set(there))
    wrong = []
    if unknown:
        guess = did_you_mean(unknown[0], missing)
        wrong.append(f"{len(unknown)} of its class folders are none of the bundle's labels: {_some(unknown)}{guess}")
    if missing:
        wrong.append(f"{len(missing)} of the bundle's {len(labels)} labels have no class folder: {_some(missing)}")
    raise DataError(f"{listing.root} has another class layout: {'; '.join(wrong)}; give the folder that was trained on")


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''}"
