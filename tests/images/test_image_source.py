"""Sources of encoded images: bytes by index, and one reason where there are none."""

import os
import pickle
from pathlib import Path

import pytest

from regnet_deploy.images import image_source
from regnet_deploy.images.image_source import FolderSource, ImageError


@pytest.fixture
def source(tmp_path: Path) -> FolderSource:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(b"one")
    (tmp_path / "a" / "2.png").write_bytes(b"two")
    return FolderSource(tmp_path, ("a/1.png", "a/2.png"))


def test_images_are_read_by_index(source: FolderSource) -> None:
    assert [source.read(index) for index in (1, 0)] == [b"two", b"one"]


def test_a_stamp_changes_with_the_content(source: FolderSource) -> None:
    file = source.root / "a" / "1.png"
    os.utime(file, ns=(1, 12_345))
    assert source.stamp(0)[:2] == (3, 12_345)
    file.write_bytes(b"four")
    assert source.stamp(0).size == 4
    assert source.stamp(0).mtime_ns > 12_345


def test_a_pickled_source_reads_the_same_images(source: FolderSource) -> None:
    copy = pickle.loads(pickle.dumps(source))
    assert copy == source
    assert copy.read(0) == b"one"


def test_what_cannot_be_read_has_a_name_and_a_reason(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    source = FolderSource(tmp_path, ("gone.png", "folder.png", "pipe.png"))
    reasons = []
    for index in range(3):
        with pytest.raises(ImageError) as error:
            source.read(index)
        assert str(error.value) == f"{source.names[index]}: {error.value.reason}"
        reasons.append(error.value.reason)
    assert reasons == ["cannot be read: No such file or directory", "not a file", "not a file"]
    with pytest.raises(ImageError, match=r"gone\.png: cannot be read: No such file or directory"):
        source.stamp(0)


def test_an_image_that_is_too_large_is_not_read(source: FolderSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_source, "MAX_BYTES", 2**20)
    os.truncate(source.root / "a" / "1.png", 2**20 + 1)
    with pytest.raises(ImageError, match=r"a/1\.png: larger than 1 MiB"):
        source.read(0)


def test_an_error_can_be_sent_to_another_process() -> None:
    error = pickle.loads(pickle.dumps(ImageError("a.png", "empty file")))
    assert (error.name, error.reason, str(error)) == ("a.png", "empty file", "a.png: empty file")
