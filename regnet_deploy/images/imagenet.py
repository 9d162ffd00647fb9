"""The classes of ImageNet: their synsets and names, in the order of a network's outputs."""

from __future__ import annotations

import csv
from collections import Counter
from functools import lru_cache

from regnet_deploy.space.published import data_folder

#: Number of outputs -> file of classes, and the letter of the subset in it; "" for all of them.
_CLASSES = {
    1000: ("imagenet1k", ""),
    10450: ("imagenet21k", "W"),  # ImageNet-21K-P of winter 2021
    11221: ("imagenet21k", "P"),  # ImageNet-21K-P (arXiv 2104.10972)
    11821: ("imagenet21k", "T"),  # ImageNet-12k of timm
    21841: ("imagenet21k", "F"),  # fall 2011, also called ImageNet-22k
    21843: ("imagenet21k", ""),  # with two classes of Google's
}
#: Name of a set of test images -> the letter of its classes among those of ImageNet-1k.
_TEST_SETS = {"ImageNet-A": "A", "ImageNet-R": "R"}


@lru_cache(maxsize=4)
def class_names(classes: int) -> tuple[tuple[str, str], ...]:
    """Return (WordNet synset, name) of the classes of ImageNet with so many classes, in the order of the outputs.

    Sources: the order of the synsets is that of timm 1.0.31 (Apache-2.0); names are those of torchvision 0.29 (BSD-3)
    for 1,000 classes, and else the first lemma of WordNet 3.0 in timm, with the synset where several classes have it.
    Empty for any other number.
    """
    if classes not in _CLASSES:
        return ()
    rows = _rows(*_CLASSES[classes])
    count = Counter(name for _, name in rows)
    return tuple((synset, f"{name} ({synset})" if count[name] > 1 else name) for synset, name in rows)


@lru_cache(maxsize=1)
def subsets_of_test_sets() -> dict[str, frozenset[str]]:
    """Return the name of a set of test images -> the synsets of its 200 classes, which are of ImageNet-1k."""
    return {name: frozenset(synset for synset, _ in _rows("imagenet1k", letter)) for name, letter in _TEST_SETS.items()}


def _rows(file: str, subset: str) -> list[tuple[str, str]]:
    with open(data_folder() / "classes" / f"{file}.csv", newline="", encoding="utf-8") as opened:
        return [(row["synset"], row["name"]) for row in csv.DictReader(opened) if subset in row["subsets"]]
