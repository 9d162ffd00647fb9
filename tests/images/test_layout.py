"""Splits and classes by the names of folders: usual names are understood, what can be read in two ways is refused."""

from pathlib import Path

import pytest

from regnet_deploy.errors import DataError
from regnet_deploy.images.folder_files import entries
from regnet_deploy.images.layout import Layout, find_layout


def layout(root: Path, *files: str) -> Layout:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return find_layout(root, entries(root).folders)


@pytest.mark.parametrize(
    ("folders", "train", "val", "test", "unused"),
    [
        (["train", "val", "test"], "train", "val", "test", ()),
        (["Training", "Testing"], "Training", None, "Testing", ()),
        (["TRAIN", "Valid"], "TRAIN", "Valid", None, ()),
        (["train", "dev", "tst"], "train", "dev", "tst", ()),
        (["set_train", "set_val", "other_val"], "set_train", "set_val", None, ("other_val",)),
        (["seg_train", "seg_test", "seg_pred"], "seg_train", None, "seg_test", ("seg_pred",)),
        (["set_train", "set_val", "extra"], "set_train", "set_val", None, ("extra",)),
        (["train2017", "val2017", "annotations"], "train2017", "val2017", None, ("annotations",)),
        (["TrainSet", "ValSet", "TestSet"], "TrainSet", "ValSet", "TestSet", ()),
        (["train_images", "test_images"], "train_images", None, "test_images", ()),
        (["imagenet-train", "val"], "imagenet-train", "val", None, ()),
        (["train", "small_train", "val"], "train", "val", None, ("small_train",)),
        (["my_train"], "my_train", None, None, ()),
        (["TRAINING_SET", "Validate"], "TRAINING_SET", "Validate", None, ()),
        (["train", "holdout"], "train", "holdout", None, ()),
        (["train", "test", "test_hard"], "train", None, "test", ("test_hard",)),
        (["train", "test_a", "test_b"], "train", None, None, ("test_a", "test_b")),
        (["train", "unlabeled", "predictions"], "train", None, None, ("predictions", "unlabeled")),
    ],
)
def test_usual_names_are_splits(tmp_path: Path, folders, train, val, test, unused) -> None:
    found = layout(tmp_path, *(f"{folder}/{name}/x.png" for folder in folders for name in ("ant", "bee")))
    assert (found.train, found.val, found.test, found.unused) == (train, val, test, unused)


def test_class_folders_alone_are_classes(tmp_path: Path) -> None:
    assert layout(tmp_path / "a", "cat/x.png", "dog/x.png") == Layout("")
    assert layout(tmp_path / "b", "cat/indoor/x.png", "dog/outdoor/x.png") == Layout("")
    assert layout(
        tmp_path / "c", "cat/x.png", "cat/in/x.png", "cat/out/x.png", "dog/in/x.png", "dog/out/x.png"
    ) == Layout("")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            ["cats/1.png", "dogs/1.png", "extra/cats/1.png", "extra/dogs/1.png"],
            "extra has folders with the names of class",
        ),
        (["fold1/a/1.png", "fold1/b/1.png", "fold2/a/1.png", "fold2/b/1.png"], "they look like parts of a data set"),
        ([f"{part}/{name}/1.png" for part in ("entrenamiento", "prueba") for name in "ab"], "Name them train and val"),
    ],
)
def test_splits_of_any_name_are_refused_by_what_is_in_them(tmp_path: Path, files: list[str], said: str) -> None:
    with pytest.raises(DataError, match=said):
        layout(tmp_path, *files)


def test_a_split_is_nested_once(tmp_path: Path) -> None:
    files = [f"seg_{each}/seg_{each}/{name}/x.png" for each in ("train", "test", "val") for name in ("sea", "street")]
    found = layout(tmp_path, *files, "seg_pred/seg_pred/1.jpg")
    assert (found.train, found.val) == ("seg_train/seg_train", "seg_val/seg_val")
    assert (found.test, found.unused) == ("seg_test/seg_test", ("seg_pred",))


def test_a_class_in_train_may_have_any_name(tmp_path: Path) -> None:
    found = layout(tmp_path, *(f"train/{name}/x.png" for name in ("train", "test", "ship")))
    assert found == Layout("train")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ["cat/x", "dog/x", "test/x"],
            r"has test/ beside cat, dog: .* to test on.*if test is a class, move it there too",
        ),
        (["cat/x", "dog/x", "val/cat/x", "val/dog/x"], r"has val/ beside cat, dog: .* for validation.*Move the class"),
        (["cat/x", "dog/x", "Validation/x"], "has Validation/ beside"),
        (["cat/x", "dog/x", "unlabeled/x"], "has unlabeled/ beside"),
        (["cat/x", "dog/x", "my_test/cat/x"], "has my_test/ beside"),
        (["valid/x", "invalid/x"], "if valid is a class, move it there too"),
        (["cat/x", "dog/x", "train/cat/x", "train/dog/x"], "has the class folders cat, dog and .*/train has them too"),
        (["train/a/x", "Training/a/x"], "2 folders of training images, Training, train"),
        (["cats_train/x", "cats_test/x", "dogs_train/x", "dogs_test/x"], "2 folders of training images"),
        (["train/a/x", "val_1/a/x", "val_2/a/x"], "several folders of validation images, val_1, val_2"),
        (["train/a/x", "val/a/x", "validation/a/x"], "several folders of validation images, val, validation"),
        (["set_test/a/x", "set_val/a/x"], "no folder of training images"),
        (["test/a/x", "val/a/x"], "no folder of training images"),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(tmp_path: Path, files, message) -> None:
    with pytest.raises(DataError, match=message) as caught:
        layout(tmp_path, *files)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("folders", [("blood_test", "urine_test"), ("toy_train", "toy_car"), ("train_vs_test", "cat")])
def test_words_in_the_names_of_classes_are_no_splits(tmp_path: Path, folders) -> None:
    found = layout(tmp_path, *(f"{folder}/x.png" for folder in folders))
    assert (found.train, found.val) == ("", None)


def test_a_class_that_is_named_like_a_split_is_said_to_be_one(tmp_path: Path) -> None:
    assert layout(tmp_path, "ship/x", "train/x").notes == (
        "train/ is taken for a class like the others, not for images to train on",
    )
    assert (
        layout(tmp_path / "b", "blood_test/x", "urine_test/x").notes[0].startswith("blood_test/ is taken for a class")
    )
