"""Where decoded images are stored, and which of them are shrunk."""

from pathlib import Path

import pytest

from regnet_deploy.errors import UsageError
from regnet_deploy.images.dataset import LabelledImage
from regnet_deploy.images.preprocessing import default_preprocessing
from regnet_deploy.training import stored_images
from regnet_deploy.training.stored_images import (
    ImageStore,
    fits_into_memory,
    image_store,
    packed_bytes,
    stored_side,
)

IMAGES = [LabelledImage(0, 0, 64, 128), LabelledImage(1, 0, 20, 10)]
SMALL = default_preprocessing(16)


def test_images_are_stored_in_memory_or_the_run_directory_or_nowhere_or_in_a_folder(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert image_store("auto", run, ()) == ImageStore(True, run)
    assert image_store("off", run, ()) == ImageStore(False, None)
    assert image_store(str(tmp_path / "new"), run, ()) == ImageStore(False, tmp_path / "new", required=True)


def test_a_folder_among_the_images_or_a_file_is_refused(tmp_path: Path) -> None:
    images, link = tmp_path / "images", tmp_path / "link"
    images.mkdir()
    link.symlink_to(images)
    (tmp_path / "file").write_text("")
    for cache in (images, images / "cache", link / "cache"):
        with pytest.raises(UsageError, match=r"--cache .* is in .*images: give a folder outside of it"):
            image_store(str(cache), tmp_path, (images,))
    for cache in (str(tmp_path / "file"), ""):
        with pytest.raises(UsageError, match=r"--cache .* is not a folder: give auto, off or a folder"):
            image_store(cache, tmp_path, ())


def test_larger_images_are_shrunk_to_twice_the_input_unless_they_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    assert packed_bytes(IMAGES, 32, SMALL) == 3 * (32 * 64 + 20 * 10)
    monkeypatch.setattr(stored_images, "PACKED_BYTES", 3 * (32 * 64 + 20 * 10))
    assert stored_side(IMAGES, SMALL) == 32
    monkeypatch.setattr(stored_images, "PACKED_BYTES", 3 * (32 * 64 + 20 * 10) - 1)
    assert stored_side(IMAGES, SMALL) is None
    assert stored_side(IMAGES, default_preprocessing(16, channels=1)) == 32


def test_pillow_has_four_bytes_for_a_pixel_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_images, "MEMORY_BYTES", 4 * (32 * 64 + 20 * 10))
    assert fits_into_memory(IMAGES, SMALL)
    monkeypatch.setattr(stored_images, "MEMORY_BYTES", 4 * (32 * 64 + 20 * 10) - 1)
    assert not fits_into_memory(IMAGES, SMALL)
    assert fits_into_memory(IMAGES, default_preprocessing(16, channels=1))
