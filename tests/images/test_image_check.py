"""The check: every file is decoded once, and never again while it stays as it is."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from regnet_deploy.errors import DataError
from regnet_deploy.images import image_check
from regnet_deploy.images.image_check import cache_file, check_images
from regnet_deploy.images.image_source import MAX_BYTES, FolderSource, ImageSource


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for i in range(70):
        Image.fromarray(np.full((3, 2), i, np.uint8)).save(folder / f"{i:02d}.png")
    (folder / "note.txt").write_text("hello")
    return folder


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were opened, in no order."""
    names: list[str] = []
    one = image_check.check_image

    def spy(source: ImageSource, index: int) -> image_check.ImageCheck:
        names.append(source.names[index])
        return one(source, index)

    monkeypatch.setattr(image_check, "check_image", spy)
    return names


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def source(root: Path) -> FolderSource:
    return FolderSource(root, tuple(names(root)))


def test_every_file_is_known_after_the_check(root: Path) -> None:
    found = check_images(source(root))
    assert sorted(found) == names(root)
    assert (found["00.png"].width, found["00.png"].height, found["00.png"].reason) == (2, 3, "")
    assert found["note.txt"].reason.startswith("not an image")


def test_progress_ends_at_the_whole(root: Path, recorded_progress: Any) -> None:
    check_images(source(root), progress=recorded_progress)
    assert recorded_progress.steps == [("checking images", 71)]
    seen = [completed for _, completed, *_ in recorded_progress.updates]
    assert (seen[0], seen[-1]) == (0, 71)
    assert seen == sorted(seen)


def test_a_second_check_opens_nothing(root: Path, tmp_path: Path, opened: list[str]) -> None:
    cache = tmp_path / "cache.jsonl"
    first = check_images(source(root), cache)
    assert len(opened) == 71
    assert check_images(source(root), cache) == first
    assert len(opened) == 71


def test_a_changed_file_is_opened_again(root: Path, tmp_path: Path, opened: list[str]) -> None:
    cache = tmp_path / "cache.jsonl"
    check_images(source(root), cache)
    opened.clear()
    (root / "05.png").write_bytes(b"no image any more")
    os.utime(root / "06.png", (1, 1))
    found = check_images(source(root), cache)
    assert sorted(opened) == ["05.png", "06.png"]
    assert found["05.png"].reason.startswith("not an image")
    assert found["06.png"].reason == ""


@pytest.mark.parametrize("by", ["renaming", "copying"])
def test_two_files_of_equal_size_and_time_that_were_swapped_are_opened_again(
    root: Path, tmp_path: Path, opened: list[str], by: str
) -> None:
    for name in ("a.pgm", "b.pgm"):
        (root / name).write_bytes(b"P5\n2 2\n255\n" + name.encode()[:1] * 4)
        os.utime(root / name, (1e9, 1e9))
    cache = tmp_path / "cache.jsonl"
    before = check_images(source(root), cache)
    opened.clear()
    one, other = root / "a.pgm", root / "b.pgm"
    if by == "renaming":
        one.rename(root / "x")
        other.rename(one)
        (root / "x").rename(other)
    else:
        content, second = one.read_bytes(), other.read_bytes()
        one.write_bytes(second)
        other.write_bytes(content)
        for name in (one, other):
            os.utime(name, (1e9, 1e9))
    after = check_images(source(root), cache)
    assert sorted(opened) == ["a.pgm", "b.pgm"]
    assert after["a.pgm"].sha256 == before["b.pgm"].sha256 != after["b.pgm"].sha256


def test_a_cache_of_an_earlier_version_is_not_believed(root: Path, tmp_path: Path, opened: list[str]) -> None:
    cache = tmp_path / "cache.jsonl"
    check_images(source(root), cache)
    known = ("path", "size", "mtime_ns", "sha256", "width", "height", "reason")
    lines = [json.loads(line) for line in cache.read_text().splitlines()]
    cache.write_text("".join(json.dumps({name: line[name] for name in known}) + "\n" for line in lines))
    opened.clear()
    check_images(source(root), cache)
    assert len(opened) == 71


def test_a_file_that_could_not_be_read_is_tried_again(root: Path, tmp_path: Path, opened: list[str]) -> None:
    cache = tmp_path / "cache.jsonl"
    assert (
        check_images(FolderSource(root, ("missing.png",)), cache)["missing.png"].reason
        == "cannot be read: No such file or directory"
    )
    (root / "00.png").rename(root / "missing.png")
    assert check_images(FolderSource(root, ("missing.png",)), cache)["missing.png"].reason == ""


def test_a_line_cut_short_costs_that_file_only(root: Path, tmp_path: Path, opened: list[str]) -> None:
    cache = tmp_path / "cache.jsonl"
    first = check_images(source(root), cache)
    whole = cache.read_bytes()
    cache.write_bytes(whole[:-30])
    lost = json.loads(whole.splitlines()[-1])["path"]
    opened.clear()
    assert check_images(source(root), cache) == first
    assert opened == [lost]
    opened.clear()
    assert check_images(source(root), cache) == first
    assert opened == []


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[1]\n", b'{"path": 3}\n', b"{}\n"])
def test_a_cache_that_is_none_is_not_believed(root: Path, tmp_path: Path, content: bytes) -> None:
    cache = tmp_path / "cache.jsonl"
    cache.write_bytes(content)
    assert len(check_images(source(root), cache)) == 71


def test_a_cache_that_cannot_be_written_is_one_line(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot write"):
        check_images(source(root), tmp_path / "no" / "cache.jsonl")


def test_a_file_that_is_far_too_large_is_not_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (root / "large.png").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    assert check_images(FolderSource(root, ("large.png",)))["large.png"].reason == "larger than 512 MiB"


def test_each_image_folder_has_a_cache_of_its_own(tmp_path: Path) -> None:
    one, other = cache_file(tmp_path, Path("a")), cache_file(tmp_path, Path("b"))
    assert one != other
    assert one == cache_file(tmp_path, Path("a").resolve())
