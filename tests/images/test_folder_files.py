"""Files of a folder: links are followed, what systems and this program put there is left out, with its reason."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regnet_deploy.bundle import create_bundle
from regnet_deploy.errors import DataError
from regnet_deploy.images.folder_files import entries, files_below, image_files


def put(root: Path, name: str, kind: str = "PNG") -> Path:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(root / name, kind)
    return root / name


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("@eaDir", "thumbnails of a NAS"),
        ("__MACOSX", "made by macOS in archives, no images"),
        ("#recycle", "recycle bin of a NAS"),
        ("$RECYCLE.BIN", "recycle bin of Windows"),
    ],
)
def test_folders_of_systems_are_left_out_at_any_depth(tmp_path: Path, folder: str, reason: str) -> None:
    put(tmp_path, "a/x.png")
    put(tmp_path, f"{folder}/x.png")
    put(tmp_path, f"a/{folder}/x.png")
    found = files_below(tmp_path)
    assert found.files == ["a/x.png"]
    assert found.left_out == {f"{folder}/": reason, f"a/{folder}/": reason}


def test_hidden_images_are_named_and_other_files_of_systems_are_not(tmp_path: Path) -> None:
    put(tmp_path, "x.png")
    put(tmp_path, ".secret.png")
    put(tmp_path, ".thumbnails/x.png")
    for name in ("._x.png", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / name).touch()
    found = entries(tmp_path)
    assert found.files == ("x.png",)
    assert found.left_out == {".secret.png": "hidden: its name starts with a dot"}


def test_a_bundle_and_its_run_directory_are_left_out(tmp_path: Path) -> None:
    create_bundle(tmp_path / "b", {"labels": ["x"]})
    (tmp_path / "b.training").mkdir()
    (tmp_path / "b.training" / "checked-0123.jsonl").touch()
    put(tmp_path, "dog.training/x.png")
    put(tmp_path, "cat/x.png")
    (tmp_path / "cat" / "bundle.json").write_text('{"user": "file"}')
    found = entries(tmp_path)
    assert found.folders == ("cat", "dog.training")
    assert found.left_out == {
        "b/": "a bundle of regnet-deploy",
        "b.training/": "a run directory of regnet-deploy train",
    }


@pytest.mark.parametrize("target", ["..", "../..", "../../.."])
def test_a_link_to_a_folder_above_the_one_that_is_read_is_left_out(tmp_path: Path, target: str) -> None:
    for name in ("a", "b"):
        (tmp_path / "other" / "data" / "train" / name).mkdir(parents=True)
        (tmp_path / "other" / "data" / "train" / name / "x.png").touch()
    (tmp_path / "other" / "data" / "train" / "a" / "loop").symlink_to(target)
    found = files_below(tmp_path / "other" / "data", "train/a")
    assert found.files == ["train/a/x.png"]
    assert found.left_out == {"train/a/loop/": "a link to a folder that contains it"}


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    put(tmp_path, "elsewhere/x.png")
    put(tmp_path, "data/cat/y.png")
    (tmp_path / "data" / "cat" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "cat" / "up").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "cat" / "z.png").symlink_to(tmp_path / "elsewhere" / "x.png")
    found = files_below(tmp_path / "data")
    assert sorted(found.files) == ["cat/linked/x.png", "cat/y.png", "cat/z.png"]
    assert found.left_out == {"cat/up/": "a link to a folder that contains it"}


def test_images_are_known_by_suffix_or_content(tmp_path: Path) -> None:
    for name in ("a.jfif", "b.jpe", "c.jpg_large", "noext"):
        put(tmp_path, name, "JPEG")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "notes.xml").write_text("<annotation/>")
    os.mkfifo(tmp_path / "pipe")
    found = image_files(tmp_path)
    assert found.files == ["a.jfif", "b.jpe", "broken.jpg", "c.jpg_large", "noext"]
    assert found.left_out["pipe"] == "not a file"
    assert found.left_out["notes.xml"].startswith("not an image in a format that is read (JPEG, PNG")


def test_a_jpeg_with_much_before_its_pixels_is_an_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "x" * 60_000
    Image.new("RGB", (8, 8)).save(tmp_path / "noext", "JPEG", exif=exif)
    assert image_files(tmp_path).files == ["noext"]


@pytest.mark.skipif(os.geteuid() == 0, reason="needs a user other than root")
def test_a_folder_without_permission_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(DataError, match=r"cannot read .*closed: Permission denied"):
        files_below(tmp_path)
