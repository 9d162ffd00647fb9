"""What is wrong with a folder as a whole is found, and said with what to do."""

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regnet_deploy.checking.folder_findings import folder_findings
from regnet_deploy.images.findings import Finding
from regnet_deploy.images.image_check import check_images
from regnet_deploy.images.split_listing import list_splits


def put(root: Path, name: str, width: int = 12, height: int = 12, *, gray: bool = False) -> None:
    draw = np.random.default_rng(zlib.crc32(name.encode()))
    shape = (height, width) if gray else (height, width, 3)
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8)).save(root / name)


def found(root: Path) -> dict[str, Finding]:
    listing = list_splits(root)
    findings = folder_findings(listing, check_images(listing.source))
    assert all(finding.advice and not finding.text.endswith(".") for finding in findings)
    return {finding.kind: finding for finding in findings}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for label in ("cat", "dog"):
        for i in range(20):
            put(tmp_path, f"train/{label}/{i}.png")
        put(tmp_path, f"val/{label}/0.png")
    return tmp_path


def test_of_a_good_folder_nothing_is_said(data: Path) -> None:
    assert found(data) == {}


def case(data: Path) -> None:
    (data / "val/cat").rename(data / "val/Cat")


def extra(data: Path) -> None:
    put(data, "val/eel/0.png")


def missing(data: Path) -> None:
    (data / "val/cat/0.png").unlink()
    (data / "val/cat").rmdir()


def empty(data: Path) -> None:
    (data / "val/cat/0.png").write_bytes(b"")


def twins(data: Path) -> None:
    for i in range(20):
        put(data, f"train/Cat/{i}.png")
    put(data, "val/Cat/0.png")


def broken(data: Path) -> None:
    whole = (data / "train/cat/3.png").read_bytes()
    (data / "train/cat/3.png").write_bytes(whole[:100])


def text(data: Path) -> None:
    (data / "train/cat/read.me").write_text("x")


def unbalanced(data: Path) -> None:
    for i in range(20, 201):
        put(data, f"train/cat/{i}.png", 4, 4)


def few(data: Path) -> None:
    (data / "train/dog/0.png").unlink()


def tiny(data: Path) -> None:
    put(data, "train/dog/0.png", 3, 12)


def thumbnail(data: Path) -> None:
    for i in range(20):
        put(data, f"train/dog/{i}.png", 90, 90)
        put(data, f"train/cat/{i}.png", 90, 90)
    for label in ("cat", "dog"):
        put(data, f"val/{label}/0.png", 90, 90)
    put(data, "train/dog/0.png", 20, 20)


def long(data: Path) -> None:
    put(data, "train/dog/0.png", 12, 25)


def gray(data: Path) -> None:
    for i in range(20):
        put(data, f"train/dog/{i}.png", gray=True)


@pytest.mark.parametrize(
    ("damage", "kind", "serious", "said", "cases"),
    [
        (case, "class-case", True, "1 class of val/ differs from train/ in upper and lower case alone", ["val/Cat"]),
        (extra, "class-extra", True, "1 class of val/ is not in train/", ["eel"]),
        (missing, "class-missing", True, "1 of 2 classes of train/ is not in val/", ["cat"]),
        (empty, "class-empty", True, "1 class in val/ has no usable image", ["cat"]),
        (twins, "class-case", True, "1 class differs from another in upper and lower case alone", ["cat"]),
        (broken, "broken", False, "1 of 42 files are broken images", ["train/cat/3.png"]),
        (text, "no-image", False, "1 of 43 files are no images", ["train/cat/read.me"]),
        (unbalanced, "unbalanced", False, "the largest class has 10 times the training images of the smallest", []),
        (few, "few-images", False, "1 class has fewer than 20 training images", ["dog"]),
        (tiny, "tiny", False, "1 image has a side of fewer than 8 pixels", ["train/dog/0.png"]),
        (thumbnail, "tiny", False, "1 image has a side of fewer than 23 pixels", ["train/dog/0.png"]),
        (long, "long", False, "1 image is more than 2 times as long as wide", ["train/dog/0.png"]),
        (gray, "gray-classes", False, "1 class has gray images alone, others color ones", ["dog"]),
    ],
)
def test_each_fault_is_found(
    data: Path, damage: Callable[[Path], None], kind: str, serious: bool, said: str, cases: list[str]
) -> None:
    damage(data)
    finding = found(data)[kind]
    assert finding.text.startswith(said)
    assert finding.serious is serious
    assert [each.names[-1] for each in finding.examples] == cases


def test_one_class_is_serious(tmp_path: Path) -> None:
    put(tmp_path, "cat/0.png")
    finding = found(tmp_path)["one-class"]
    assert finding.serious
    assert finding.text == "there is one class, cat"


def test_a_folder_to_test_on_is_compared_too_unless_it_has_no_classes(data: Path) -> None:
    put(data, "test/0.png")
    assert found(data) == {}
    put(data, "test/eel/0.png")
    assert {"class-extra", "class-missing"} <= set(found(data))


def test_forms_of_unicode_are_no_differences(data: Path) -> None:
    for split, name in (("train", "caf\u00e9"), ("val", "cafe\u0301")):
        for i in range(20):
            put(data, f"{split}/{name}/{i}.png")
    assert found(data) == {}
