"""What is wrong with usable images is said: copies, one image in two classes, images in which nothing is to be seen."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regnet_deploy.images.dataset import build_dataset
from regnet_deploy.images.findings import dataset_findings
from regnet_deploy.images.image_check import check_images
from regnet_deploy.images.listing import list_images


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def put(root: Path, name: str, pixels: np.ndarray) -> Path:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(root / name)
    return root / name


def findings(root: Path) -> tuple[str, ...]:
    listing = list_images(root)
    return build_dataset(listing, check_images(listing.source)).findings


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for number, name in enumerate(("cat", "dog")):
        for i in range(4):
            put(tmp_path, f"train/{name}/{i}.png", noise(10 * number + i))
        put(tmp_path, f"val/{name}/{i}.png", noise(10 * number + 9))
    return tmp_path


def copy(data: Path, one: str, other: str) -> None:
    shutil.copy(data / one, data / other)


def test_of_different_images_nothing_is_said(data: Path) -> None:
    assert findings(data) == ()


def test_copies_of_training_images_in_val_are_counted_and_named(data: Path) -> None:
    copy(data, "train/cat/0.png", "val/cat/a.png")
    copy(data, "train/dog/1.png", "val/dog/b.png")
    (said,) = findings(data)
    assert said.startswith("2 of 4 validation images are exact copies of training images, so the accuracy")
    assert said.endswith("train/cat/0.png = val/cat/a.png, train/dog/1.png = val/dog/b.png")


@pytest.mark.parametrize(
    ("one", "of", "why"),
    [
        ("train/cat/0.png", "training", "says nothing of new images"),
        ("val/cat/3.png", "validation", "is that of images by which the best epoch was chosen"),
    ],
)
def test_copies_among_test_images_are_counted_and_named(data: Path, one: str, of: str, why: str) -> None:
    put(data, "test/cat/8.png", noise(77))
    copy(data, one, "test/cat/a.png")
    listing = list_images(data, test=True)
    (said,) = build_dataset(listing, check_images(listing.source)).findings
    assert said == (
        f"1 of 2 test images are exact copies of {of} images, so the accuracy on them {why}: {one} = test/cat/a.png"
    )
    assert findings(data) == ()


@pytest.mark.parametrize(("one", "other"), [("train/cat/0.png", "train/dog/a.png"), ("val/cat/3.png", "val/dog/a.png")])
def test_an_image_in_two_classes_is_named(data: Path, one: str, other: str) -> None:
    copy(data, one, other)
    (said,) = findings(data)
    assert said == f"1 image is in two classes, of which one is wrong: {one} = {other}"


def test_copies_in_a_class_are_counted(data: Path) -> None:
    for i in range(5):
        copy(data, "train/cat/0.png", f"train/cat/copy{i}.png")
    (said,) = findings(data)
    assert said.startswith(
        "5 of 13 training images are exact copies of others: train/cat/0.png = train/cat/copy0.png, "
    )
    assert said.endswith(", ...")


def white_on_transparent(root: Path) -> None:
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[2:5, 2:5] = 255
    put(root, "train/cat/icon.png", pixels)


def white_on_transparent_gray(root: Path) -> None:
    pixels = np.full((8, 8, 2), 255, np.uint8)
    pixels[:4, :, 1] = 0
    put(root, "train/cat/icon.png", pixels)


@pytest.mark.parametrize("make", [white_on_transparent, white_on_transparent_gray])
def test_white_shapes_on_transparent_ground_are_seen(data: Path, make: Callable[[Path], None]) -> None:
    make(data)
    assert findings(data) == ()


def test_images_that_are_transparent_all_over_are_named(data: Path) -> None:
    put(data, "train/cat/icon.png", np.zeros((8, 8, 4), np.uint8))
    (said,) = findings(data)
    assert said.startswith("in 1 of 11 images the network sees one color, so it can learn nothing from them (1 are")
    assert said.endswith(": train/cat/icon.png")


def test_images_of_16_bits_with_levels_of_8_are_seen(data: Path) -> None:
    put(data, "train/cat/deep.png", np.linspace(0, 255, 64).astype(np.uint16).reshape(8, 8))
    assert findings(data) == ()


@pytest.mark.parametrize(("highest", "one_color"), [(1023, True), (4095, False)])
def test_images_of_16_bits_with_levels_of_fewer_are_named(data: Path, highest: int, one_color: bool) -> None:
    levels = np.linspace(0, highest, 64).astype(np.uint16).reshape(8, 8)
    put(data, "train/cat/deep.png", levels)
    said = findings(data)
    assert ["the network sees one color" in line for line in said] == [True, False][not one_color :]
    assert said[-1].startswith(f"images of 16 bits have no level above {highest:,} of 65,535 (1 image), so")


def test_dark_images_among_bright_ones_of_16_bits_are_as_they_are(data: Path) -> None:
    put(data, "train/cat/dark.png", np.linspace(0, 9000, 64).astype(np.uint16).reshape(8, 8))
    put(data, "train/cat/bright.png", np.linspace(0, 60_000, 64).astype(np.uint16).reshape(8, 8))
    assert findings(data) == ()


def test_colors_of_16_bits_with_levels_of_8_are_named(data: Path) -> None:
    header = b"P6\n8 8\n65535\n"
    levels = noise(1).astype(">u2")
    (data / "train" / "cat" / "deep.ppm").write_bytes(header + levels.tobytes())
    (said,) = findings(data)
    assert said.startswith("in 1 of 11 images the network sees one color")


def test_files_that_were_not_read_have_no_findings(data: Path) -> None:
    from regnet_deploy.images.image_check import ImageCheck

    listing = list_images(data)
    unread = ImageCheck("", 0, 0, "", 0, 0, "")
    assert build_dataset(listing, dict.fromkeys(listing.source.names, unread)).findings == ()


def test_images_that_were_saved_again_in_another_split_or_class_are_named(data: Path) -> None:
    for name, copy_name in (("train/cat/0.png", "val/cat/a.png"), ("train/dog/1.png", "train/cat/b.png")):
        Image.open(data / name).convert("L").save(data / copy_name)
    said = findings(data)
    assert said == (
        "1 of 3 validation images look nearly like training images: train/cat/0.png ~ val/cat/a.png",
        "1 image looks nearly like an image of another class: train/cat/b.png ~ train/dog/1.png",
    )


@pytest.mark.parametrize("with_val", [True, False])
def test_copies_are_said_to_be_on_both_sides_only_where_a_share_is_held_out(data: Path, with_val: bool) -> None:
    copy(data, "train/cat/0.png", "train/cat/copy.png")
    checked = check_images(list_images(data).source)
    subsets = [{name: one for name, one in checked.items() if name.startswith(each)} for each in ("train", "val")]
    labels = {name: name.split("/")[1] for name in checked}
    (finding,) = dataset_findings(subsets[0], subsets[1] if with_val else {}, labels)
    assert (finding.kind, finding.serious) == ("exact-copies", False)
    assert ("on both sides" in finding.advice) is not with_val
