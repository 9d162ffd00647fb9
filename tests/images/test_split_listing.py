"""Folders are listed as they are, whether or not a network can be trained on them."""

from pathlib import Path

import pytest

from regnet_deploy.errors import DataError
from regnet_deploy.images.split_listing import NO_CLASS, list_splits


def make(root: Path, *files: str) -> Path:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def test_splits_may_have_different_classes(tmp_path: Path) -> None:
    make(tmp_path, "train/cat/1.png", "train/dog/2.png", "val/cat/3.png", "val/eel/4.png", "test/Cat/5.png")
    found = list_splits(tmp_path)
    assert {split: dict(classes) for split, classes in found.splits.items()} == {
        "train": {"cat": ("train/cat/1.png",), "dog": ("train/dog/2.png",)},
        "val": {"cat": ("val/cat/3.png",), "eel": ("val/eel/4.png",)},
        "test": {"Cat": ("test/Cat/5.png",)},
    }
    assert found.source.names == tuple(
        name for classes in found.splits.values() for names in classes.values() for name in names
    )
    assert found.labels["test/Cat/5.png"] == "Cat"
    assert found.left_out == {}


def test_class_folders_alone_are_training_images(tmp_path: Path) -> None:
    found = list_splits(make(tmp_path, "cat/1.png", "dog/2.png", "read.me"))
    assert list(found.splits) == ["train"]
    assert found.folders == {"train": ""}


def test_a_class_in_another_form_of_unicode_is_the_same(tmp_path: Path) -> None:
    found = list_splits(make(tmp_path, "train/caf\u00e9/1.png", "train/dog/2.png", "val/cafe\u0301/3.png"))
    assert found.splits["val"] == {"caf\u00e9": ("val/cafe\u0301/3.png",)}


def test_images_to_test_on_need_no_class_folders(tmp_path: Path) -> None:
    found = list_splits(make(tmp_path, "train/cat/1.png", "train/dog/2.png", "test/3.png", "test/read.me"))
    assert found.splits["test"] == {NO_CLASS: ("test/3.png",)}
    assert "test/3.png" not in found.labels
    assert list(found.left_out) == ["test/read.me"]


def test_what_is_beside_the_splits_is_named(tmp_path: Path) -> None:
    found = list_splits(make(tmp_path, "train/cat/1.png", "train/dog/2.png", "more/3.png", "train/loose.png"))
    assert found.left_out == {
        "more/": "neither for training nor for validation",
        "train/loose.png": "not in a class folder",
    }


@pytest.mark.parametrize("folders", [(), ("cat", "dog")])
def test_a_folder_without_files_is_refused(tmp_path: Path, folders: tuple[str, ...]) -> None:
    for name in folders:
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match="class folders"):
        list_splits(tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        list_splits(tmp_path / "no")
