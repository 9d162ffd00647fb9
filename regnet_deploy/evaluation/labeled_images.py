"""The images of a folder with the classes of a network: mapped by the names of the class folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.bundle import Bundle
from regnet_deploy.errors import DataError, did_you_mean
from regnet_deploy.exporting.training_dataset import find_training_dataset, holds_out, load_training_dataset
from regnet_deploy.images.image_source import ImageSource, select_images
from regnet_deploy.images.imagenet import class_names, subsets_of_test_sets
from regnet_deploy.images.listing import ImageListing, list_split, own_splits, spelled_as
from regnet_deploy.images.names import shortened
from regnet_deploy.progress import NoProgress, Progress


@dataclass(frozen=True, eq=False)
class LabeledImages:
    """Images and their classes.

    Attributes:
        source: where the images are read from.
        labels: index of the class of each image among the outputs of the network, ``(n,)``.
        split: folder that they are in, relative to the root, or their split if they were held out; "" for the root.
        left_out: files that are not used -> reason.
        notes: how the folder was read, a sentence each.
        held_out: whether training held the images out of the folder.
        answers: outputs that compete as answers, sorted, ``(k,)``; None if all of them do.
    """

    source: ImageSource
    labels: NDArray[np.int64]
    split: str
    left_out: Mapping[str, str]
    notes: tuple[str, ...]
    held_out: bool = False
    answers: NDArray[np.int64] | None = None


def find_labeled_images(
    data: str | Path, labels: Sequence[str], split: str | None = None, progress: Progress | None = None
) -> LabeledImages:
    """Find the images of a folder or table whose classes are named as those of a network.

    The folders may be a subset of the classes, in any order. For networks of ImageNet, they may be named by synsets
    (``n01440764``), or all of them by the number of the output, as in ImageNet-V2. Where they are the 200 classes of
    ImageNet-A or -R, only these compete as answers, as in the programs of the authors of these sets.

    Args:
        data: the folder.
        labels: classes of the network, in the order of its outputs.
        split: ``test``, ``val`` or ``train``; None takes the first of ``test`` and ``val`` that exists, else the folder
            itself.
        progress: receives what takes long.

    Raises:
        DataError: the folder has no such split, no images, or class folders that are no classes of the network.
    """
    found = list_split(data, split, progress or NoProgress())
    listing = spelled_as(found, labels)
    index, notes = _mapping(listing, labels)
    test_set = _test_set(index, labels)
    of_file = {file: index[name] for name, files in listing.train.items() for file in files}
    numbers = np.array([of_file[name] for name in listing.source.names], np.int64)
    if not len(numbers):
        raise DataError(f"{listing.root} has class folders and no images in them: add images")
    missing = len(labels) - len({index[name] for name, files in listing.train.items() if files})
    answers = None
    if test_set is not None:
        answers = np.array(sorted(index.values()), np.int64)
        notes.append(
            f"the class folders are the 200 of {test_set}: only these compete as answers, as in its authors' evaluation"
        )
    elif missing:
        notes.append(
            f"{missing:,} of the {len(labels):,} classes of the network have no images here; all of them compete as "
            "answers"
        )
    in_split = found.folders["train"].split("/")[0]
    return LabeledImages(listing.source, numbers, in_split, listing.left_out, (*listing.notes, *notes), answers=answers)


def _alike(labels: Sequence[str], known: Sequence[tuple[str, str]]) -> bool:
    """Tell whether labels are those of ImageNet in its order, maybe with synonyms or synsets, as transformers has."""
    alike = sum(
        name.split(" (")[0].lower() in label.lower() or label == synset
        for label, (synset, name) in zip(labels, known, strict=True)
    )
    return alike > len(labels) / 2


def _test_set(index: Mapping[str, int], labels: Sequence[str]) -> str | None:
    """Return the name of the set of test images whose classes the folders are, None if they are no such set."""
    known = class_names(len(labels))
    if not known or len(index) != len(set(index.values())):
        return None
    synsets = {known[i][0] for i in index.values()}
    found = [name for name, subset in subsets_of_test_sets().items() if subset == synsets]
    return found[0] if found and _alike(labels, known) else None


def find_held_out_images(
    data: str | Path, bundle: Bundle, split: str | None = None, progress: Progress | None = None
) -> LabeledImages | None:
    """Return the images that training held out of a folder; None if there are none, or the folder has such of its own.

    Args:
        data: the folder that the network was trained with.
        bundle: the network.
        split: ``test`` or ``val``; None is ``test`` if the folder is that of training and such images were held out.
        progress: receives the files read.

    Raises:
        DataError: a split is given, images of it were held out, and the folder is not the one of training.
    """
    training, wanted = bundle.manifest.training, split or "test"
    if training is None or wanted == "train" or not holds_out(training, wanted):
        return None
    splits = own_splits(data, progress or NoProgress())
    if splits is None or wanted in splits:
        return None
    find = find_training_dataset if split is None else load_training_dataset
    dataset = find(data, bundle, progress)
    images = () if dataset is None else dataset.test if wanted == "test" else dataset.val
    if dataset is None or not images:
        return None
    source = select_images(dataset.source, map(dataset.name, images))
    labels = np.array([image.label for image in images], np.int64)
    what = "to test on" if wanted == "test" else "for validation"
    note = f"these are the {len(images):,} images that training held out {what}"
    return LabeledImages(source, labels, wanted, {}, (note,), held_out=True)


def _mapping(listing: ImageListing, labels: Sequence[str]) -> tuple[dict[str, int], list[str]]:
    """Return the output of each class."""
    folders, noun = sorted(listing.train), listing.classes_noun
    by_label = {name: i for i, name in enumerate(labels)}
    if all(name in by_label for name in folders):
        return {name: by_label[name] for name in folders}, []
    known = class_names(len(labels))
    if known and _alike(labels, known):
        by_synset = {synset: i for i, (synset, _) in enumerate(known)}
        if all(name in by_synset for name in folders):
            return {name: by_synset[name] for name in folders}, [f"{noun} are read as synsets of WordNet"]
        if all(name.isdecimal() and int(name) < len(labels) for name in folders):
            return {name: int(name) for name in folders}, [
                f"{noun} are read as numbers of the outputs, as in ImageNet-V2"
            ]
        if all(name in by_synset or name in by_label for name in folders):
            return {name: by_synset.get(name, by_label.get(name, 0)) for name in folders}, [
                f"{noun} are read as synsets of WordNet and as names of classes"
            ]
        by_label |= by_synset
    unknown = [name for name in folders if name not in by_label]
    near = {name: [label for label in labels if abs(len(label) - len(name)) <= 1 + len(name) // 4] for name in unknown}
    guesses = [(name, did_you_mean(name, near[name])) for name in unknown]
    guess = next((f"; {name}{nearest}" for name, nearest in guesses if nearest), "")
    raise DataError(
        f"{len(unknown)} of {len(folders)} {noun} in {listing.root} are no classes of the network: "
        f"{shortened(unknown)}{guess}; its classes are {shortened(labels)}: rename or remove these {noun.split()[-1]}"
    )
