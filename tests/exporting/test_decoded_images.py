"""Files come as the server would see them, in order; what cannot be used says why."""

import os

import numpy as np
import pytest

from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.errors import DataError
from regnet_deploy.exporting import decoded_images as module
from regnet_deploy.exporting.decoded_images import decode_images, load_network_input, pixels_fingerprint
from regnet_deploy.images.preprocessing import load_pixels

PREPROCESSING = Preprocessing(resize=10, crop=8)


def test_pixels_are_those_of_the_server_in_order(tmp_path, write_images, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 3)
    write_images(tmp_path / "a", 8)
    names = sorted(os.listdir(tmp_path / "a"), reverse=True)
    found = list(decode_images(tmp_path / "a", names, PREPROCESSING))
    wanted = [load_pixels((tmp_path / "a" / name).read_bytes(), PREPROCESSING) for name in names]
    np.testing.assert_array_equal(np.stack(found), np.stack(wanted))


def test_what_cannot_be_used_is_told_and_the_rest_goes_on(tmp_path, write_images):
    write_images(tmp_path, 2)
    (tmp_path / "broken.png").write_bytes(b"no")
    os.mkfifo(tmp_path / "pipe.png")
    found = list(decode_images(tmp_path, ["000.png", "broken.png", "pipe.png", "gone.png", "001.png"], PREPROCESSING))
    assert [isinstance(one, DataError) for one in found] == [False, True, True, True, False]
    assert str(found[1]).startswith(f"{tmp_path / 'broken.png'}: not an image")
    assert str(found[2]) == f"{tmp_path / 'pipe.png'}: not a file"
    assert str(found[3]) == f"{tmp_path / 'gone.png'}: cannot be read: No such file or directory"


def test_a_view_is_known_again_by_its_pixels():
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    wide = np.concatenate([pixels, pixels], axis=1)[:, :4]  # the same, otherwise in memory
    assert pixels_fingerprint(wide) == pixels_fingerprint(pixels)
    assert pixels_fingerprint(pixels[::-1]) != pixels_fingerprint(pixels)
    assert len(pixels_fingerprint(pixels)) == 32


def test_no_more_is_decoded_than_is_asked_for(tmp_path, write_images, monkeypatch):
    write_images(tmp_path, 1)
    opened = []
    monkeypatch.setattr(
        module,
        "load_network_input",
        lambda file, preprocessing: opened.append(file) or load_network_input(file, preprocessing),
    )
    stream = decode_images(tmp_path, ["000.png"] * 1000, PREPROCESSING)
    next(stream)
    stream.close()
    assert len(opened) <= 32


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 2**20)
    with open(tmp_path / "large.png", "wb") as file:
        file.truncate(2**20 + 1)
    with pytest.raises(DataError, match="larger than 1 MiB"):
        load_network_input(tmp_path / "large.png", PREPROCESSING)
