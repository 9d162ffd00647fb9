"""Class folders are matched with the outputs of a network by name, synset or number, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from regnet_deploy.errors import DataError
from regnet_deploy.evaluation.labeled_images import find_labeled_images
from regnet_deploy.images.imagenet import class_names, subsets_of_test_sets

LABELS = ("ant", "bee", "cat")


def folder(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(root / name / "a.png")
    return root


def test_folders_may_be_a_subset_in_any_order(tmp_path: Path) -> None:
    found = find_labeled_images(folder(tmp_path, "cat", "ant"), LABELS)
    assert dict(zip(found.source.names, found.labels.tolist(), strict=True)) == {"ant/a.png": 0, "cat/a.png": 2}
    assert found.split == ""
    assert "1 of the 3 classes of the network have no images here" in found.notes[0]


def test_names_in_another_form_of_unicode_are_the_same_class(tmp_path: Path) -> None:
    names = ("caf\u00e9", "tea")  # as Linux writes it, and below as macOS does
    found = find_labeled_images(folder(tmp_path, "cafe\u0301", "tea"), names)
    assert (found.labels.tolist(), found.split) == ([0, 1], "")


def test_the_split_is_test_then_val_then_the_folder(tmp_path: Path) -> None:
    folder(tmp_path, *(f"{split}/{name}" for split in ("train", "val") for name in LABELS))
    assert find_labeled_images(tmp_path, LABELS).split == "val"
    folder(tmp_path, *(f"testing/{name}" for name in LABELS))
    found = find_labeled_images(tmp_path, LABELS)
    assert (found.split, found.labels.tolist()) == ("testing", [0, 1, 2])
    assert find_labeled_images(tmp_path, LABELS, "train").split == "train"
    assert find_labeled_images(tmp_path / "val", LABELS).split == ""


def test_a_split_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    folder(tmp_path, "train/ant", "val/ant")
    with pytest.raises(DataError, match=r"has no folder of test images, such as .*: it has train, val"):
        find_labeled_images(tmp_path, LABELS, "test")


def test_imagenet_is_read_by_synset_and_by_number(tmp_path: Path) -> None:
    known = class_names(1000)
    labels = [name for _, name in known]
    found = find_labeled_images(folder(tmp_path / "s", known[7][0], known[3][0]), labels)
    assert found.labels.tolist() == [3, 7]
    assert "class folders are read as synsets of WordNet" in found.notes
    found = find_labeled_images(folder(tmp_path / "n", "999", "12"), labels)
    assert sorted(found.labels.tolist()) == [12, 999]
    both = find_labeled_images(folder(tmp_path / "b", known[7][0], known[3][1]), labels)
    assert sorted(both.labels.tolist()) == [3, 7]
    assert "class folders are read as synsets of WordNet and as names of classes" in both.notes
    for unknown in ("n00000000", "1000"):
        with pytest.raises(DataError, match=rf"1 of 2 class folders in .* are no classes of the network: {unknown};"):
            find_labeled_images(folder(tmp_path / unknown, known[7][0], unknown), labels)


@pytest.mark.parametrize("name", ["ImageNet-A", "ImageNet-R"])
def test_of_imagenet_a_and_r_only_their_classes_compete(tmp_path: Path, name: str) -> None:
    known = class_names(1000)
    labels = [each for _, each in known]
    synsets = sorted(subsets_of_test_sets()[name])
    found = find_labeled_images(folder(tmp_path / "whole", *synsets), labels)
    assert found.answers is not None
    assert [known[i][0] for i in found.answers] == synsets
    assert f"the class folders are the 200 of {name}: only these compete as answers" in found.notes[-1]
    part = find_labeled_images(folder(tmp_path / "part", *synsets[1:]), labels)
    assert part.answers is None
    assert "801 of the 1,000 classes of the network have no images here; all of them compete" in part.notes[-1]


def test_synsets_are_known_where_the_labels_have_synonyms(tmp_path: Path) -> None:
    known = class_names(1000)
    labels = [f"{name.title()}, or something like it ({i})" for i, (_, name) in enumerate(known)]  # as transformers has
    images = folder(tmp_path, known[7][0], known[3][0])
    assert find_labeled_images(images, labels).labels.tolist() == [3, 7]
    with pytest.raises(DataError, match="are no classes of the network"):
        find_labeled_images(images, [f"class {i}" for i in range(1000)])


def test_what_cannot_be_mapped_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    said = r"2 of 3 class folders in .*: aaa, kat; kat \(did you mean cat\?\); its classes are ant, bee, cat: rename"
    with pytest.raises(DataError, match=said):
        find_labeled_images(folder(tmp_path, "kat", "aaa", "ant"), LABELS)


def test_no_name_is_suggested_that_is_far_from_the_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cross, ring; its classes are circle, square, triangle: rename"):
        find_labeled_images(folder(tmp_path, "cross", "ring"), ["circle", "square", "triangle"])


def test_empty_folders_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "ant").mkdir()
    with pytest.raises(DataError, match="has class folders and no images in them"):
        find_labeled_images(tmp_path, LABELS)
