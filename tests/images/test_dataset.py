"""Image folders: both layouts, what is left out and why, splits that are the same every time."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from regnet_deploy.bundle import create_bundle
from regnet_deploy.errors import DataError
from regnet_deploy.images.dataset import ImageDataset, LabelledImage, build_dataset, stratified_order
from regnet_deploy.images.hold_out import Shares, hold_out
from regnet_deploy.images.image_check import check_images
from regnet_deploy.images.listing import ensure_several_classes, list_images


def put(root: Path, path: str, value: int = 0) -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 5), value, np.uint8)).save(file)
    return file


def put_class(root: Path, name: str, count: int) -> None:
    for i in range(count):
        put(root, f"{name}/{i:03d}.png", i)


def names(folder: ImageDataset, images: Sequence[LabelledImage]) -> list[str]:
    return [folder.name(image) for image in images]


def read(root: Path, *, test: bool = False, **options: object) -> ImageDataset:
    listing = list_images(root, test=test)
    return build_dataset(listing, check_images(listing.source), **options)


def test_train_and_val_with_sorted_classes(tmp_path: Path) -> None:
    for name, count in (("train/zebra", 3), ("train/ant", 2), ("val/zebra", 1), ("val/ant", 1)):
        put_class(tmp_path, name, count)
    folder = read(tmp_path)
    assert folder.classes == ("ant", "zebra")
    assert [(folder.name(image), image.label) for image in folder.train][:3] == [
        ("train/ant/000.png", 0),
        ("train/ant/001.png", 0),
        ("train/zebra/000.png", 1),
    ]
    assert names(folder, folder.val) == ["val/ant/000.png", "val/zebra/000.png"]
    assert (folder.train[0].width, folder.train[0].height) == (5, 4)
    assert folder.split == "val/ of the folder"
    assert folder.rejected == {}


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val"])
def test_other_words_for_validation(tmp_path: Path, name: str) -> None:
    put_class(tmp_path, "train/a", 2)
    put_class(tmp_path, f"{name}/a", 1)
    folder = read(tmp_path)
    assert names(folder, folder.val) == [f"{name}/a/000.png"]


@pytest.mark.parametrize("val", [True, False])
def test_a_test_folder_is_left_alone_and_said_to_be(tmp_path: Path, val: bool) -> None:
    for name in ("train/a", "test/a", *(["val/a"] if val else [])):
        put_class(tmp_path, name, 10)
    folder = read(tmp_path)
    assert not any("test/" in name for name in names(folder, (*folder.train, *folder.val)))
    assert folder.rejected == {"test/": "images to test on, which have no part in this"}
    assert folder.test == ()


def test_a_test_folder_that_is_asked_for_changes_nothing_else(tmp_path: Path) -> None:
    for name, count in (("train/a", 10), ("train/b", 10), ("val/a", 2), ("test/a", 3), ("test/b", 4)):
        put_class(tmp_path, name, count)
    without, folder = read(tmp_path), read(tmp_path, test=True)
    assert names(folder, folder.test) == [f"test/a/{i:03d}.png" for i in range(3)] + [
        f"test/b/{i:03d}.png" for i in range(4)
    ]
    assert [image.label for image in folder.test] == [0, 0, 0, 1, 1, 1, 1]
    assert (folder.test_split, folder.rejected) == ("test/ of the folder", {})
    assert (folder.train, folder.val, folder.digest) == (without.train, without.val, without.digest)
    put(tmp_path, "test/a/000.png", 200)
    changed = read(tmp_path, test=True)
    assert changed.test_digest != folder.test_digest
    assert changed.digest == folder.digest


@pytest.mark.parametrize("file", ["test/1.png", "test/unknown/1.png"])
def test_test_images_without_labels_are_left_out(tmp_path: Path, file: str) -> None:
    put_class(tmp_path, "train/a", 4)
    put(tmp_path, file)
    folder = read(tmp_path, test=True)
    assert folder.test == ()
    assert folder.rejected == {"test/": "images to test on, not in class folders, so no accuracy can be measured"}


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (["test/a", "test/bee"], r"test has 1 class that .*train has not: bee; both need the same"),
        (["test/a"], "test has class folders and no files in them: add images, or remove it"),
    ],
)
def test_a_test_folder_that_does_not_fit_is_one_line(tmp_path: Path, made: list[str], message: str) -> None:
    put_class(tmp_path, "train/a", 4)
    for name in made:
        (tmp_path / name).mkdir(parents=True)
        if len(made) > 1:
            put_class(tmp_path, name, 1)
    with pytest.raises(DataError, match=message):
        list_images(tmp_path, test=True)
    list_images(tmp_path)


def test_test_images_that_are_all_broken_are_one_line(tmp_path: Path) -> None:
    put_class(tmp_path, "train/a", 4)
    put_class(tmp_path, "test/a", 1)
    (tmp_path / "test" / "a" / "000.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"no usable image to test on \(test/ of the folder\): add images"):
        read(tmp_path, test=True)


def test_a_share_to_test_on_is_held_out_of_what_would_be_trained_on(tmp_path: Path) -> None:
    put_class(tmp_path, "a", 40)
    put_class(tmp_path, "b", 10)
    without, folder, again = read(tmp_path), read(tmp_path, test_split=0.2), read(tmp_path, test_split=0.2)
    assert Counter(image.label for image in folder.test) == {0: 8, 1: 2}
    assert folder == again
    assert folder.val == without.val
    assert {*folder.train, *folder.test} == {*without.train}
    assert len(folder.train) + len(folder.test) == len(without.train)
    assert folder.test_split == "20% of each class held out (seed 0)"
    assert read(tmp_path, test_split=0.2, val_split=0.3).test == folder.test
    assert read(tmp_path, test_split=0.2, seed=1).test != folder.test


def test_a_share_to_test_on_is_held_out_beside_a_folder_for_validation(tmp_path: Path) -> None:
    put_class(tmp_path, "train/a", 10)
    put_class(tmp_path, "val/a", 2)
    folder = read(tmp_path, test_split=0.3)
    assert [len(images) for images in (folder.train, folder.val, folder.test)] == [7, 2, 3]
    assert all(name.startswith("train/") for name in names(folder, folder.test))


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    val=st.floats(0.01, 0.99),
    test=st.floats(0, 0.99),
    seed=st.integers(0, 5),
)
def test_every_class_keeps_an_image_to_train_on(sizes: list[int], val: float, test: float, seed: int) -> None:
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    for_val, for_test = hold_out(labels, Shares(val, test), seed)
    assert not for_val & for_test
    assert hold_out(labels, Shares(val), seed) == (for_val, set())
    train = set(range(len(labels))) - for_val - for_test
    assert {labels[i] for i in train} == set(range(len(sizes)))
    assert {labels[i] for i in for_val} == {label for label, size in enumerate(sizes) if size > 1}
    if val < 0.5 and test:
        assert {labels[i] for i in for_test} == {label for label, size in enumerate(sizes) if size > 2}


def test_classes_of_two_images_leave_none_to_test_on(tmp_path: Path) -> None:
    put_class(tmp_path, "a", 2)
    with pytest.raises(DataError, match="has no usable image to test on"):
        read(tmp_path, test_split=0.1)


def test_validation_folders_without_files_are_one_line(tmp_path: Path) -> None:
    put_class(tmp_path, "train/a", 2)
    (tmp_path / "val" / "a").mkdir(parents=True)
    with pytest.raises(DataError, match="has class folders and no files in them"):
        list_images(tmp_path)


def test_a_class_name_that_is_not_utf_8_is_one_line(tmp_path: Path) -> None:
    put_class(tmp_path, "a", 2)
    os.mkdir(os.fsencode(tmp_path) + b"/\xff")
    with pytest.raises(DataError, match="has a name that is not UTF-8"):
        list_images(tmp_path)


def test_class_folders_alone_are_split_by_class(tmp_path: Path) -> None:
    put_class(tmp_path, "a", 40)
    put_class(tmp_path, "b", 10)
    folder = read(tmp_path, val_split=0.2)
    assert Counter(file.label for file in folder.train) == {0: 32, 1: 8}
    assert Counter(file.label for file in folder.val) == {0: 8, 1: 2}
    assert not {*names(folder, folder.train)} & {*names(folder, folder.val)}
    assert folder.split == "20% of each class held out (seed 0)"


def test_train_without_val_is_split_too(tmp_path: Path) -> None:
    put_class(tmp_path, "train/a", 10)
    put_class(tmp_path, "train/b", 10)
    assert len(read(tmp_path).val) == 2


def test_the_split_is_the_same_for_the_same_seed_only(tmp_path: Path) -> None:
    put_class(tmp_path, "a", 30)
    put_class(tmp_path, "b", 30)
    first, again, other = (read(tmp_path, val_split=0.5, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first.val != other.val
    assert first.digest != other.digest


def test_one_image_of_a_class_is_for_training_and_two_are_one_each(tmp_path: Path) -> None:
    put_class(tmp_path, "one", 1)
    put_class(tmp_path, "two", 2)
    folder = read(tmp_path)
    assert Counter(file.label for file in folder.train) == {0: 1, 1: 1}
    assert folder.classes_without(folder.val) == ["one"]


def test_a_class_called_train_is_a_class_among_others(tmp_path: Path) -> None:
    put_class(tmp_path, "train", 4)
    put_class(tmp_path, "ship", 4)
    assert read(tmp_path).classes == ("ship", "train")


def test_nested_files_are_found_and_hidden_ones_are_not(tmp_path: Path) -> None:
    put(tmp_path, "a/2020/may/x.png")
    put(tmp_path, "a/y.png")
    put(tmp_path, "a/.thumbnails/x.png")
    put(tmp_path, "a/.hidden.png")
    put(tmp_path, ".cache/z.png")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    listing = list_images(tmp_path)
    assert listing.train == {"a": ("a/2020/may/x.png", "a/y.png")}
    assert listing.left_out == {"a/.hidden.png": "hidden: its name starts with a dot"}


def test_what_cannot_be_used_is_named_with_its_reason(tmp_path: Path) -> None:
    put_class(tmp_path, "a", 4)
    (tmp_path / "a" / "notes.txt").write_text("hello")
    (tmp_path / "a" / "empty.jpg").write_bytes(b"")
    whole = put(tmp_path, "a/cut.png", 7).read_bytes()
    (tmp_path / "a" / "cut.png").write_bytes(whole[:-20])
    (tmp_path / "a" / "huge.ppm").write_bytes(b"P6 20000 20000 255\n")
    (tmp_path / "a" / "gone.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    (tmp_path / "readme.md").write_text("beside the class folders")
    folder = read(tmp_path)
    reasons = {path: reason.split(" (")[0] for path, reason in folder.rejected.items()}
    assert reasons == {
        "a/notes.txt": "not an image in a format that is read",
        "a/empty.jpg": "empty file",
        "a/cut.png": "broken image",
        "a/huge.ppm": "more than 100,000,000 pixels",
        "a/gone.png": "cannot be read: No such file or directory",
        "a/pipe.png": "not a file",
        "readme.md": "not in a class folder",
    }
    assert len(folder.train) + len(folder.val) == 4


@pytest.mark.skipif(os.geteuid() == 0, reason="needs a user other than root")
def test_a_file_without_permission_is_left_out(tmp_path: Path) -> None:
    put_class(tmp_path, "a", 3)
    (tmp_path / "a" / "000.png").chmod(0)
    assert read(tmp_path).rejected == {"a/000.png": "cannot be read: Permission denied"}


def test_the_digest_is_of_names_and_content_not_of_time_and_place(tmp_path: Path) -> None:
    for root in (tmp_path / "one", tmp_path / "two"):
        put_class(root, "a", 5)
    os.utime(tmp_path / "two" / "a" / "000.png", (1, 1))
    one = read(tmp_path / "one").digest
    assert read(tmp_path / "two").digest == one
    put(tmp_path / "two", "a/000.png", 99)
    assert read(tmp_path / "two").digest != one
    put(tmp_path / "two", "a/000.png", 0)
    assert read(tmp_path / "two").digest == one
    (tmp_path / "two" / "a" / "000.png").rename(tmp_path / "two" / "a" / "zzz.png")
    assert read(tmp_path / "two").digest != one


def test_a_name_that_is_not_unicode_is_a_file_like_others(tmp_path: Path) -> None:
    put_class(tmp_path, "a", 2)
    (tmp_path / "a" / "000.png").rename(os.fsdecode(os.fsencode(tmp_path / "a") + b"/\xff.png"))
    folder = read(tmp_path)
    assert len(folder.train) + len(folder.val) == 2
    assert len(folder.digest) == 64


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "does not exist"),
        (lambda root: root.write_bytes(b""), "is a file"),
        (lambda root: root.mkdir(), "has no class folders"),
        (lambda root: put(root, "x.png"), "has no class folders"),
        (lambda root: put(root, "train/x.png"), "has no class folders"),
        (lambda root: (put(root, "train/a/x.png"), put(root, "val/x.png")), "val has no class folders"),
        (lambda root: (put(root, "train/a/x.png"), put(root, "val/b/x.png")), r"has 1 class .*: b;"),
        (lambda root: ((root / "a").mkdir(parents=True), put_class(root, "b", 3)), "class a has no usable .*empty"),
        (lambda root: (put_class(root, "b", 3), (root / "a").mkdir(), (root / "a" / "x").touch()), "a/x: empty file"),
        (lambda root: put_class(root, "a", 1), "no usable image for validation"),
    ],
)
def test_what_is_no_data_set_is_said_in_one_line(tmp_path: Path, make, message: str) -> None:
    make(tmp_path / "data")
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path / "data")
    assert "\n" not in str(caught.value)


def test_systems_folders_and_bundles_are_no_classes_and_are_named(tmp_path: Path) -> None:
    put_class(tmp_path, "train/a", 3)
    put_class(tmp_path, "train/b", 3)
    put_class(tmp_path, "train/a/@eaDir", 3)
    put_class(tmp_path, "__MACOSX/train/a", 1)
    create_bundle(tmp_path / "train" / "my-bundle", {"labels": ["x"]})
    folder = read(tmp_path)
    assert folder.classes == ("a", "b")
    assert folder.rejected == {
        "__MACOSX/": "made by macOS in archives, no images",
        "train/a/@eaDir/": "thumbnails of a NAS",
        "train/my-bundle/": "a bundle of regnet-deploy",
    }


def test_class_names_in_two_forms_of_unicode_are_one_class_or_refused(tmp_path: Path) -> None:
    put_class(tmp_path, "train/caf\u00e9", 2)
    put_class(tmp_path, "train/tea", 2)
    put_class(tmp_path, "val/cafe\u0301", 1)
    folder = read(tmp_path)
    assert folder.classes == ("caf\u00e9", "tea")
    assert names(folder, folder.val) == ["val/cafe\u0301/000.png"]
    put_class(tmp_path, "train/cafe\u0301", 2)
    with pytest.raises(DataError, match=r"have the same name in two forms of Unicode") as caught:
        list_images(tmp_path)
    assert r"'cafe\u0301' and 'caf\xe9'" in str(caught.value)


def test_class_names_that_differ_in_case_alone_are_said(tmp_path: Path) -> None:
    put_class(tmp_path, "Cat", 2)
    put_class(tmp_path, "cat", 3)
    assert read(tmp_path).findings[0] == "the classes Cat and cat differ in case alone"


def test_splits_inside_of_class_folders_are_refused(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        put_class(tmp_path, f"{name}/train", 2)
        put_class(tmp_path, f"{name}/test", 2)
    with pytest.raises(
        DataError,
        match=r"folder cat in .* has the splits test, train in it: move them above the classes, as .*/test/cat and ",
    ):
        list_images(tmp_path)


def test_a_folder_of_images_beside_one_of_labels_is_suggested(tmp_path: Path) -> None:
    for name in ("images/train/cat", "images/val/cat", "labels/train"):
        put_class(tmp_path, name, 2)
    with pytest.raises(DataError, match=r"has the splits train, val in it, .*: did you mean --data .*/images\?"):
        list_images(tmp_path)


def test_images_beside_the_splits_are_named(tmp_path: Path) -> None:
    for name in ("set_train/set_train/a", "set_val/set_val/a"):
        put_class(tmp_path, name, 2)
    put(tmp_path, "x.png")
    put(tmp_path, "set_train/y.png")
    (tmp_path / "labels.csv").touch()
    assert read(tmp_path).rejected == {"set_train/y.png": "not in a class folder", "x.png": "not in a class folder"}


def test_of_the_folder_above_the_data_set_the_right_one_is_suggested(tmp_path: Path) -> None:
    for name in ("birds/train/a", "birds/test/a"):
        put_class(tmp_path, name, 2)
    with pytest.raises(DataError, match=r"did you mean --data .*/birds\?"):
        ensure_several_classes(list_images(tmp_path))


def test_one_class_is_refused_with_the_folder_that_may_be_meant(tmp_path: Path) -> None:
    put_class(tmp_path, "images/a", 2)
    put_class(tmp_path, "images/b", 2)
    with pytest.raises(DataError, match=r"one class folder, images: .*; did you mean --data .*/images\?$"):
        ensure_several_classes(list_images(tmp_path))
    ensure_several_classes(list_images(tmp_path / "images"))


LABELS = st.lists(st.integers(0, 5), max_size=60)


@given(LABELS, st.integers(0, 2**32), st.integers(0, 60))
def test_any_start_of_it_is_spread_as_evenly_as_the_classes_allow(labels, seed, count):
    order = stratified_order(labels, seed)
    assert sorted(order) == list(range(len(labels)))
    there, taken = Counter(labels), Counter(labels[place] for place in order[:count])
    most = max(taken.values(), default=0)
    assert all(taken[label] >= min(most - 1, there[label]) for label in there)


def test_the_seed_says_which():
    labels = [0, 1] * 20
    assert stratified_order(labels, 1) == stratified_order(labels, 1) != stratified_order(labels, 2)
