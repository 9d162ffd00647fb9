"""What is said of a dataset: classes, baseline, and files left out with each reason once."""

from pathlib import Path

from regnet_deploy.images.dataset import ImageDataset, LabelledImage
from regnet_deploy.images.dataset_summary import dataset_lines, left_out_lines
from regnet_deploy.images.image_source import FolderSource


def dataset(train: list[int], val: list[int], classes: list[str], **changes: object) -> ImageDataset:
    images = [LabelledImage(index, label, 4, 4) for index, label in enumerate(train + val)]
    source = FolderSource(Path("data"), tuple(map(str, range(len(images)))))
    parts = {"rejected": {}, "split": "val/ of the folder", "digest": ""}
    return ImageDataset(
        source, tuple(classes), tuple(images[: len(train)]), tuple(images[len(train) :]), **(parts | changes)
    )


def test_classes_counts_and_the_baseline_are_said() -> None:
    lines = dataset_lines(dataset([0, 0, 1], [0, 1, 1, 1], ["cat", "dog"], findings=("2 images are copies",)))
    assert lines == [
        "3 images to train on, 4 to validate with (val/ of the folder), 2 classes",
        "classes, with images to train on + to validate with: cat 2 + 1, dog 1 + 3",
        "a network that always answered dog would be right on 75.00% of the validation images",
        "2 images are copies",
    ]


def test_images_to_test_on_are_counted_too() -> None:
    given = dataset([0, 0, 1], [0, 1], ["cat", "dog"], test=(LabelledImage(0, 1, 4, 4),), test_split="test/")
    lines = dataset_lines(given)
    assert lines[0] == (
        "3 images to train on, 2 to validate with (val/ of the folder), 1 to test on (test/), 2 classes"
    )
    assert lines[1].endswith("validate with + to test on: cat 2 + 1 + 0, dog 1 + 1 + 1")
    assert lines[3] == "1 class has no test image: cat"


def test_of_many_classes_the_first_the_smallest_and_the_largest_are_named() -> None:
    classes = [f"c{number:03d}" for number in range(100)]
    labels = [*range(100), *range(100), 50, 50]
    labels.remove(70)
    line = dataset_lines(dataset(labels, [3], classes))[1]
    assert "c000 2 + 0, c001 2 + 0" in line
    assert line.endswith(", ...; the smallest is c070 1 + 0, the largest is c050 4 + 0")
    assert len(line) < 220


def test_each_reason_is_shown_once_and_broken_images_come_first() -> None:
    reasons = {f"cat/{number:03d}.xml": "not an image in a format that is read (JPEG, PNG)" for number in range(40)}
    reasons |= {f"dog/{number}.jpg": f"broken image ({number} bytes not processed)" for number in range(14)}
    reasons |= {"cat/large.png": "20000x20000 is more than 100,000,000 pixels"}
    assert left_out_lines("left out", reasons) == [
        "55 files left out:",
        "  14 like dog/0.jpg, dog/1.jpg, dog/2.jpg, ...: broken image (0 bytes not processed)",
        "  cat/large.png: 20000x20000 is more than 100,000,000 pixels",
        "  40 like cat/000.xml, cat/001.xml, cat/002.xml, ...: not an image in a format that is read (JPEG, PNG)",
    ]


def test_folders_are_called_folders_and_reasons_without_end_are_counted() -> None:
    assert left_out_lines("left out", {}) == []
    assert left_out_lines("left out", {"test/": "not used"})[0] == "1 folder left out:"
    assert left_out_lines("left out", {"test/": "not used", "a": "x"})[0] == "2 files and folders left out:"
    many = {f"{number}.png": "broken because " + chr(97 + number) for number in range(12)}
    assert left_out_lines("lost", many)[-1] == "  and 2 more for 2 other reasons"
