"""The requests of a load: golden images or the images of a folder, as tensors or as files."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.errors import DataError, UsageError
from regnet_deploy.images.decode import WEB_FORMATS
from regnet_deploy.images.folder_files import image_files
from regnet_deploy.images.image_source import read_image_file
from regnet_deploy.images.preprocessing import image_of, load_pixels, normalize
from regnet_deploy.load_testing.target import Target, post

#: ``tensor``: the input of the network as binary tensors of the Open Inference Protocol; ``image``: files that the
#: server decodes.
Kind = Literal["tensor", "image"]
KINDS: tuple[str, ...] = get_args(Kind)

#: Maximum number of images of a load: more would not fit into the caches of the CPU.
MAX_IMAGES = 32
_MAX_BYTES = 64 * 2**20
#: Datatypes of the protocol -> types of NumPy.
_DTYPES = {"FP32": "float32", "UINT8": "uint8"}


@dataclass(frozen=True)
class Interface:
    """The metadata of a model: names, type (``float32`` or ``uint8``) and shape of one image, and number of classes."""

    model: str
    input: str
    dtype: str
    image: tuple[int, ...]
    output: str
    classes: int


def interface_of(model: str, metadata: Any) -> Interface:
    """Parse a model metadata response of the Open Inference Protocol.

    Raises:
        UsageError: the model does not classify images.
    """
    try:
        (given,), (result,) = metadata["inputs"], metadata["outputs"]
        dtype, shape = _DTYPES[given["datatype"]], tuple(map(int, given["shape"][1:]))
        return Interface(model, str(given["name"]), dtype, shape, str(result["name"]), int(result["shape"][1]))
    except (KeyError, TypeError, ValueError, IndexError):
        raise UsageError(
            f"model {model} does not take images and give logits: its metadata is {json.dumps(metadata)[:200]}"
        ) from None


def tensor_requests(
    target: Target, interface: Interface, pixels: NDArray[np.uint8], preprocessing: Preprocessing
) -> list[bytes]:
    """Return an infer request for each image of ``(n, h, w, channels)``.

    Raises:
        UsageError: the model takes images of another size.
    """
    images: NDArray[Any] = pixels if interface.dtype == "uint8" else normalize(pixels, preprocessing)
    if images.shape[1:] != interface.image:
        raise UsageError(
            f"model {interface.model} at {target.url} takes images of {interface.image}, those of the bundle are "
            f"{images.shape[1:]}: give the bundle that is served there"
        )
    datatype = next(name for name, dtype in _DTYPES.items() if dtype == interface.dtype)
    return [_infer(target, interface, datatype, image) for image in images]


def file_requests(target: Target, files: Sequence[bytes]) -> list[bytes]:
    """Return a classify request for each image file."""
    headers = {"content-type": "application/octet-stream"}
    return [post(target, "/classify?k=5", data, headers) for data in files]


def as_files(pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> list[bytes]:
    """Return PNG files from which resizing and cropping gives exactly these pixels.

    Each is a square of the size to which images are resized, with the pixels in its center and the edges repeated.

    Args:
        pixels: ``(n, crop, crop, channels)``.
        preprocessing: of the bundle.
    """
    before = (preprocessing.resize - preprocessing.crop) // 2
    after = preprocessing.resize - preprocessing.crop - before
    files = []
    for image in pixels:
        framed = np.pad(image, ((before, after), (before, after), (0, 0)), mode="edge")
        file = io.BytesIO()
        image_of(framed).save(file, "PNG", compress_level=1)
        files.append(file.getvalue())
    return files


def read_images(folder: str | Path) -> list[bytes]:
    """Return at most :data:`MAX_IMAGES` image files of a folder and its subfolders, evenly spaced by name.

    Raises:
        DataError: there is no such folder, it has no images, or one cannot be read.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"no image folder at {root}: it {'is a file' if root.exists() else 'does not exist'}")
    found = [root / name for name in image_files(root, WEB_FORMATS).files]
    if not found:
        raise DataError(f"{root} has no images ({', '.join(WEB_FORMATS)})")
    picked = [found[i * len(found) // min(MAX_IMAGES, len(found))] for i in range(min(MAX_IMAGES, len(found)))]
    files = [read_image_file(path) for path in picked]
    if sum(map(len, files)) > _MAX_BYTES:
        raise DataError(f"{len(files)} images of {root} are more than {_MAX_BYTES // 2**20} MiB: give smaller ones")
    return files


def pixels_of_files(files: Sequence[bytes], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Return the pixels of image files after preprocessing, ``(n, crop, crop, channels)``.

    Raises:
        DataError: one cannot be decoded.
    """
    return np.stack([load_pixels(data, preprocessing, f"image {i + 1}") for i, data in enumerate(files)])


def _infer(target: Target, interface: Interface, datatype: str, image: NDArray[Any]) -> bytes:
    raw = np.ascontiguousarray(image).tobytes()
    tensor = {"name": interface.input, "datatype": datatype, "shape": [1, *image.shape]}
    document = {
        "inputs": [{**tensor, "parameters": {"binary_data_size": len(raw)}}],
        "outputs": [{"name": interface.output, "parameters": {"binary_data": True}}],
    }
    head = json.dumps(document, separators=(",", ":")).encode("ascii")
    headers = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(head))}
    return post(target, f"/v2/models/{interface.model}/infer", head + raw, headers)
