"""What is sent, read again as the server reads it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.errors import DataError, UsageError
from regnet_deploy.images.preprocessing import load_pixels, normalize
from regnet_deploy.load_testing.payloads import (
    MAX_IMAGES,
    Interface,
    as_files,
    interface_of,
    pixels_of_files,
    read_images,
    tensor_requests,
)
from regnet_deploy.load_testing.target import Target

TARGET = Target("127.0.0.1", 8000)
METADATA = {
    "name": "m",
    "inputs": [{"name": "images", "datatype": "UINT8", "shape": [-1, 24, 24, 3]}],
    "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 6]}],
}


@settings(max_examples=60, deadline=None)
@given(
    crop=st.integers(8, 40),
    more=st.integers(0, 12),
    method=st.sampled_from(["bilinear", "bicubic"]),
    seed=st.integers(0, 99),
)
def test_the_server_sees_exactly_the_golden_pixels_of_the_files(crop, more, method, seed):
    preprocessing = Preprocessing(resize=crop + more, crop=crop, interpolation=method)
    pixels = np.random.default_rng(seed).integers(0, 256, (2, crop, crop, 3), np.uint8)
    for image, file in zip(pixels, as_files(pixels, preprocessing), strict=True):
        assert (load_pixels(file, preprocessing) == image).all()


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_tensors_are_what_the_model_takes(dtype):
    preprocessing = Preprocessing(resize=8, crop=8)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    shape = (8, 8, 3) if dtype == "uint8" else (3, 8, 8)
    wanted = pixels if dtype == "uint8" else normalize(pixels, preprocessing)
    requests = tensor_requests(TARGET, Interface("m", "in", dtype, shape, "out", 6), pixels, preprocessing)
    for request, image in zip(requests, wanted, strict=True):
        head, _, body = request.partition(b"\r\n\r\n")
        assert head.startswith(b"POST /v2/models/m/infer HTTP/1.1\r\n")
        (size,) = [int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"inference-header")]
        document = json.loads(body[:size])
        assert document["inputs"][0]["shape"] == [1, *shape]
        assert document["inputs"][0]["parameters"]["binary_data_size"] == len(body) - size
        assert (np.frombuffer(body[size:], dtype).reshape(shape) == image).all()


def test_a_model_of_other_images_is_one_line():
    pixels = np.zeros((1, 8, 8, 3), np.uint8)
    with pytest.raises(UsageError, match="takes images of"):
        tensor_requests(TARGET, interface_of("m", METADATA), pixels, Preprocessing(resize=8, crop=8))


def test_metadata_is_read():
    assert interface_of("m", METADATA) == Interface("m", "images", "uint8", (24, 24, 3), "logits", 6)


@pytest.mark.parametrize(
    "metadata", [None, {}, {**METADATA, "outputs": []}, {**METADATA, "inputs": [{"datatype": "BYTES"}]}]
)
def test_what_takes_no_images_is_one_line(metadata):
    with pytest.raises(UsageError, match="does not take images and give logits"):
        interface_of("m", metadata)


def test_images_of_a_folder_are_spread_over_its_names(tmp_path: Path):
    (tmp_path / "a").mkdir()
    for i in range(2 * MAX_IMAGES):
        Image.new("RGB", (9, 9), (i, 0, 0)).save(tmp_path / "a" / f"{i:03}.PNG")
    (tmp_path / "notes.txt").write_text("no image")
    files = read_images(tmp_path)
    reds = pixels_of_files(files, Preprocessing(resize=8, crop=8))[:, 0, 0, 0]
    assert reds.tolist() == list(range(0, 2 * MAX_IMAGES, 2))


def test_images_are_those_that_a_server_decodes_whatever_their_suffix(tmp_path: Path):
    Image.new("RGB", (9, 9)).save(tmp_path / "noext", "JPEG")
    Image.new("RGB", (9, 9)).save(tmp_path / "x.bmp")
    assert read_images(tmp_path) == [(tmp_path / "noext").read_bytes()]


def test_folders_without_images_are_one_line(tmp_path: Path):
    with pytest.raises(DataError, match="does not exist"):
        read_images(tmp_path / "nowhere")
    with pytest.raises(DataError, match="has no images"):
        read_images(tmp_path)
