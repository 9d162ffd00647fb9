"""The classes of ImageNet."""

import pytest

from regnet_deploy.images.imagenet import class_names, subsets_of_test_sets
from regnet_deploy.space.published import data_folder


@pytest.mark.parametrize(
    ("classes", "first"),
    [
        (1000, ("n01440764", "tench")),
        (10450, ("n00005787", "benthos (n00005787)")),
        (11221, ("n00005787", "benthos (n00005787)")),
        (11821, ("n00005787", "benthos (n00005787)")),
        (21841, ("n00004475", "organism")),
        (21843, ("n00004475", "organism")),
    ],
)
def test_the_classes_of_imagenet_have_unique_names_in_the_order_of_their_synsets(classes, first):
    names = class_names(classes)
    assert len(names) == len({name for _, name in names}) == classes
    assert names[0] == first
    assert [synset for synset, _ in names] == sorted(synset for synset, _ in names)


def test_other_numbers_of_classes_have_no_names():
    assert class_names(10) == ()


def test_imagenet_a_and_r_have_200_classes_of_imagenet_each():
    synsets = {synset for synset, _ in class_names(1000)}
    subsets = subsets_of_test_sets()
    assert {name: len(found) for name, found in subsets.items()} == {"ImageNet-A": 200, "ImageNet-R": 200}
    assert all(found < synsets for found in subsets.values())
    assert "n01498041" in subsets["ImageNet-A"]  # stingray, the first class of both programs of the authors
    assert "n01443537" in subsets["ImageNet-R"]  # goldfish


def test_the_license_of_wordnet_goes_with_its_words() -> None:
    text = (data_folder() / "classes" / "LICENSE-WordNet.txt").read_text(encoding="utf-8")
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in text
