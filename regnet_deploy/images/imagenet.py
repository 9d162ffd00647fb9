"""The classes of ImageNet: their synsets and names, in the order of a network's outputs."""

from __future__ import annotations

import csv

from regnet_deploy.space.published import data_folder

#: Number of outputs -> file of class names.
_CLASS_NAMES = {1000: "imagenet1k", 11821: "imagenet12k"}


def class_names(classes: int) -> list[tuple[str, str]]:
    """Return (WordNet synset, name) of the classes of ImageNet with so many classes, in the order of the outputs.

    Sources: the order of the synsets is that of timm 1.0.31 (Apache-2.0); names are those of torchvision 0.29 (BSD-3)
    for 1,000 classes, and the first lemma of WordNet 3.0 in timm for 11,821. Empty for any other number.
    """
    name = _CLASS_NAMES.get(classes)
    if name is None:
        return []
    with open(data_folder() / "classes" / f"{name}.csv", newline="", encoding="utf-8") as opened:
        return [(row["synset"], row["name"]) for row in csv.DictReader(opened)]
