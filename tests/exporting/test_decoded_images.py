"""Files come as the server would see them, in order; what cannot be used says why."""

import os

import numpy as np

from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.exporting import decoded_images as module
from regnet_deploy.exporting.decoded_images import decode_images, pixels_fingerprint
from regnet_deploy.images.decode import ImageError
from regnet_deploy.images.image_source import FolderSource
from regnet_deploy.images.preprocessing import load_pixels

PREPROCESSING = Preprocessing(resize=10, crop=8)


def test_pixels_are_those_of_the_server_in_order(tmp_path, write_images, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 3)
    write_images(tmp_path / "a", 8)
    names = sorted(os.listdir(tmp_path / "a"), reverse=True)
    found = list(decode_images(FolderSource(tmp_path / "a", tuple(names)), range(8), PREPROCESSING))
    wanted = [load_pixels((tmp_path / "a" / name).read_bytes(), PREPROCESSING) for name in names]
    np.testing.assert_array_equal(np.stack(found), np.stack(wanted))


def test_what_cannot_be_used_is_told_and_the_rest_goes_on(tmp_path, write_images):
    write_images(tmp_path, 2)
    (tmp_path / "broken.png").write_bytes(b"no")
    os.mkfifo(tmp_path / "pipe.png")
    source = FolderSource(tmp_path, ("000.png", "broken.png", "pipe.png", "gone.png", "001.png"))
    found = list(decode_images(source, range(5), PREPROCESSING))
    assert [isinstance(one, ImageError) for one in found] == [False, True, True, True, False]
    assert str(found[1]).startswith("broken.png: not an image")
    assert str(found[2]) == "pipe.png: not a file"
    assert str(found[3]) == "gone.png: cannot be read: No such file or directory"


def test_a_view_is_known_again_by_its_pixels():
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    wide = np.concatenate([pixels, pixels], axis=1)[:, :4]  # the same, otherwise in memory
    assert pixels_fingerprint(wide) == pixels_fingerprint(pixels)
    assert pixels_fingerprint(pixels[::-1]) != pixels_fingerprint(pixels)
    assert len(pixels_fingerprint(pixels)) == 32


def test_no_more_is_decoded_than_is_asked_for(tmp_path, write_images, monkeypatch):
    write_images(tmp_path, 1)
    opened = []
    read = FolderSource.read
    monkeypatch.setattr(FolderSource, "read", lambda source, index: opened.append(index) or read(source, index))
    stream = decode_images(FolderSource(tmp_path, ("000.png",)), [0] * 1000, PREPROCESSING)
    next(stream)
    stream.close()
    assert len(opened) <= 32
