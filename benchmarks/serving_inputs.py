"""What the servers of `serving.py` and `serving_peers.py` are given: a bundle, photographs as JPEG files, tensors."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from regnet_deploy.bundle import open_bundle
from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.images.preprocessing import load_pixels, normalize
from regnet_deploy.runtimes.runtime import open_onnx

NETWORK, SIDE = "RegNetX-200MF", 224
WIDTH, HEIGHT, QUALITY, PHOTOS = 500, 375, 90, 16

#: Octaves of a picture: side of a cell in pixels, and how much its colors differ.
_OCTAVES = ((160, 55.0), (64, 40.0), (24, 22.0), (8, 12.0), (3, 8.0))


@dataclass(frozen=True)
class Given:
    """What is sent, as files.

    Attributes:
        bundle: of the network, untrained, with both variants.
        preprocessing: of the bundle.
        onnx: variant -> its ONNX file; ``onnx-fp32`` takes tensors, ``onnx-fp32-uint8`` pixels.
        photos: JPEG files.
        tensors: dtype -> bodies of infer requests, JSON and bytes.
        heads: dtype -> bytes of the JSON in those.
        names: of input and output tensor.
        logits: dtype -> those of the images by a bare session; the photographs' are those of ``uint8``.
    """

    bundle: Path
    preprocessing: Preprocessing
    onnx: dict[str, Path]
    photos: list[Path]
    tensors: dict[str, list[Path]]
    heads: dict[str, int]
    names: tuple[str, str]
    logits: dict[str, list[list[float]]]


def photograph(seed: int) -> bytes:
    """Return a JPEG file of the size and detail of a photograph: fields of color at five scales, edges and grain."""
    random = np.random.default_rng(seed)
    picture = np.full((HEIGHT, WIDTH, 3), 120.0)
    for cell, spread in _OCTAVES:
        field = random.normal(0, spread, (HEIGHT // cell + 2, WIDTH // cell + 2, 3))
        field += random.normal(0, spread, field.shape[:2])[..., None]  # light differs more than color
        planes = [
            np.asarray(
                Image.fromarray(field[..., i].astype(np.float32)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
            )
            for i in range(3)
        ]
        picture += np.stack(planes, axis=-1) / 2
    edge = random.uniform(0.2, 0.8) * WIDTH + np.linspace(-60, 60, HEIGHT)
    picture[np.arange(WIDTH) > edge[:, None]] *= 0.6
    picture += random.normal(0, 5.0, (HEIGHT, WIDTH, 1))
    file = io.BytesIO()
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def prepare(folder: Path, network: str = NETWORK) -> Given:
    """Write everything into a folder."""
    bundle = folder / "bundle"
    for arguments in (
        ["select", "--published", network, "-o", str(bundle)],
        ["export", str(bundle), "--onnx", "--uint8"],
    ):
        command = [sys.executable, "-m", "regnet_deploy", *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    opened = open_bundle(bundle)
    preprocessing = Preprocessing.from_json(opened.parts["preprocessing"])
    onnx = {}
    for name, variant in opened.parts["variants"].items():
        onnx[name] = folder / f"{name}.onnx"
        onnx[name].write_bytes(opened.read(variant["file"]))
    photos = []
    for seed in range(PHOTOS):
        photos.append(folder / f"{seed}.jpg")
        photos[-1].write_bytes(photograph(seed))
    pixels = np.stack([load_pixels(photo.read_bytes(), preprocessing) for photo in photos])
    session = open_onnx(onnx["onnx-fp32"].read_bytes(), threads=1)
    names = (session.input_name, session.output_name)
    tensors, heads, logits = {}, {}, {}
    for dtype, images in (("float32", normalize(pixels, preprocessing)), ("uint8", pixels)):
        tensors[dtype] = []
        variant = {"float32": "onnx-fp32", "uint8": "onnx-fp32-uint8"}[dtype]
        logits[dtype] = open_onnx(onnx[variant].read_bytes(), threads=1, device="cpu").run(images).tolist()
        for i, image in enumerate(images):
            head, body = infer_body(names, image[None])
            heads[dtype] = len(head)
            tensors[dtype].append(folder / f"{i}.{dtype}")
            tensors[dtype][-1].write_bytes(head + body)
    return Given(bundle, preprocessing, onnx, photos, tensors, heads, names, logits)


def infer_body(names: tuple[str, str], images: np.ndarray) -> tuple[bytes, bytes]:
    """Return JSON and bytes of an infer request with a binary tensor, the answer wanted as one."""
    datatype = {"float32": "FP32", "uint8": "UINT8"}[images.dtype.name]
    raw = np.ascontiguousarray(images).tobytes()
    tensor: dict[str, Any] = {"name": names[0], "shape": list(images.shape), "datatype": datatype}
    document = {
        "inputs": [{**tensor, "parameters": {"binary_data_size": len(raw)}}],
        "outputs": [{"name": names[1], "parameters": {"binary_data": True}}],
    }
    return json.dumps(document, separators=(",", ":")).encode("ascii"), raw
