"""Writes profiles/classes: the classes of ImageNet-1k and of ImageNet-21k, their names, and in which subsets they are.

    python benchmarks/imagenet_classes.py

It needs timm (synsets, their order and lemmas, Apache-2.0; lemmas are those of WordNet 3.0) and torchvision (names of
the 1,000 classes, BSD-3). A class of ImageNet-21k has the first of its lemmas as its name.
"""

from __future__ import annotations

import csv
from importlib import resources
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "profiles" / "classes"
#: Letter of a subset -> timm's file of its synsets; those of ImageNet-21k are all sorted by synset.
OF_1K = {"A": "imagenet_a", "R": "imagenet_r"}
OF_21K = {"F": "imagenet22k", "T": "imagenet12k", "P": "imagenet21k_miil", "W": "imagenet21k_miil_w21"}


def main() -> None:
    from torchvision.models import ResNet18_Weights

    names = dict(line.split("\t", 1) for line in read("imagenet_synset_to_lemma"))
    own = zip(read("imagenet_synsets"), ResNet18_Weights.IMAGENET1K_V1.meta["categories"], strict=True)
    write("imagenet1k", list(own), OF_1K)
    write("imagenet21k", [(each, names[each].split(",")[0]) for each in read("imagenet21k_goog_synsets")], OF_21K)


def read(name: str) -> list[str]:
    return (resources.files("timm.data") / "_info" / f"{name}.txt").read_text(encoding="utf-8").splitlines()


def write(name: str, classes: list[tuple[str, str]], subsets: dict[str, str]) -> None:
    members = {subset: set(read(f"{file}_synsets")) for subset, file in subsets.items()}
    with open(FOLDER / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("synset", "name", "subsets"))
        for synset, text in classes:
            writer.writerow((synset, text, "".join(each for each in subsets if synset in members[each])))


if __name__ == "__main__":
    main()
