"""Bundles of a tiny network in several versions, requests to them, and the right answers, known beforehand."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from regnet_deploy.bundle import create_bundle, open_bundle, update_bundle
from regnet_deploy.bundle.manifest import Architecture, Preprocessing
from regnet_deploy.images.preprocessing import default_preprocessing, load_pixels, normalize
from regnet_deploy.runtimes.gates import gate_of
from regnet_deploy.runtimes.golden_set import GoldenSet, compare, golden_to_bytes
from regnet_deploy.runtimes.predictions import top_k
from regnet_deploy.runtimes.runtime import classify_pixels, open_variant

#: Networks that take turns; a version is of the seed ``version % SEEDS``.
SEEDS = 4
#: Images in the largest of the requests.
MOST = 4


@dataclass(frozen=True)
class Tensor:
    """A request to infer in all its forms.

    Attributes:
        images: ``(n, 3, h, w)`` float32.
        logits: right ones of each network.
    """

    images: np.ndarray
    logits: list[np.ndarray]
    binary: tuple[bytes, int]
    json: bytes
    packed: bytes


@dataclass(frozen=True)
class Picture:
    """An image file, the label that each network gives it, and the probability of that."""

    data: bytes
    right: list[tuple[str, float]]


@dataclass(frozen=True)
class World:
    """What is served, asked and answered.

    Attributes:
        bundles: a folder for each network.
        wrong: a folder whose network is not the one that its golden set is of.
    """

    bundles: list[Path]
    wrong: Path
    tensors: list[Tensor]
    pictures: list[Picture]


def make_world(folder: Path, tiny: Any) -> World:
    """Make bundles and requests; ``tiny`` is the module tests/conftest.py."""
    bundles = [_bundle(folder / f"network-{seed}", tiny, seed, seed) for seed in range(SEEDS)]
    wrong = _bundle(folder / "wrong", tiny, 98, 99)
    sessions = [open_variant(open_bundle(path), "onnx-fp32", device="cpu", threads=1) for path in bundles]
    preprocessing = Preprocessing.from_json(open_bundle(bundles[0]).parts["preprocessing"])
    draw = np.random.default_rng(5)
    tensors = []
    for count in (1, 1, 2, MOST):
        images = (draw.integers(-200, 200, (count, 3, 24, 24)) / 100).astype(np.float32)
        tensors.append(_tensor(images, [session.run(images) for session in sessions]))
    pictures = []
    for i, kind in enumerate(("JPEG", "PNG", "WEBP", "JPEG")):
        data = _file(tiny.tiny_pixels(1, 20 + i)[0], 120 + 90 * i, kind)
        pixels = load_pixels(data, preprocessing)[None]
        tops = [top_k(classify_pixels(one, pixels, preprocessing), tuple(tiny.LABELS), 1)[0][0] for one in sessions]
        pictures.append(Picture(data, [(top.label, top.probability) for top in tops]))
    return World(bundles, wrong, tensors, pictures)


def _bundle(folder: Path, tiny: Any, seed: int, golden_seed: int) -> Path:
    import onnxruntime

    preprocessing = default_preprocessing(tiny.RESOLUTION)
    parts = {
        "architecture": Architecture.of(
            tiny.tiny_network(), name=f"tiny-{seed}", classes=len(tiny.LABELS), resolution=tiny.RESOLUTION
        ),
        "preprocessing": preprocessing.to_json(),
        "labels": tiny.LABELS,
    }
    create_bundle(folder, parts)
    images = tiny.tiny_pixels(16)
    reference = onnxruntime.InferenceSession(tiny.tiny_onnx("float32", golden_seed), providers=["CPUExecutionProvider"])
    logits = reference.run(["logits"], {"images": normalize(images, preprocessing)})[0]
    variant = {
        "file": "onnx-fp32.onnx",
        "bytes": 0,
        "runtime": "onnxruntime",
        "precision": "fp32",
        "input": "float32",
        "opset": 18,
        "proof": {**compare(logits, logits, gate_of("fp32")).to_json(), "runtime": "onnxruntime", "device": "cpu"},
    }
    files = {
        "onnx-fp32.onnx": tiny.tiny_onnx("float32", seed),
        "golden.safetensors": golden_to_bytes(GoldenSet(images, logits)),
    }
    golden = {"images": 16, "source": "made by a test", "seed": None, "weights_sha256": None}
    update_bundle(folder, {"golden": golden, "variants": {"onnx-fp32": variant}}, files)
    return folder


def _tensor(images: np.ndarray, logits: list[np.ndarray]) -> Tensor:
    described: dict[str, Any] = {"name": "images", "shape": list(images.shape), "datatype": "FP32"}
    sized = {**described, "parameters": {"binary_data_size": images.nbytes}}
    head = json.dumps({"inputs": [sized], "parameters": {"binary_data_output": True}}).encode()
    text = json.dumps({"inputs": [{**described, "data": images.ravel().tolist()}]}).encode()
    return Tensor(images, logits, (head + images.tobytes(), len(head)), text, gzip.compress(text, 1))


def _file(pixels: np.ndarray, side: int, kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).resize((side, side + 17), Image.Resampling.BICUBIC).save(stream, kind, quality=92)
    return stream.getvalue()


def put_version(bundle: Path, folder: Path, *, slowly: bool) -> None:
    """Put a bundle where a version is to be: at once by a rename, or file by file in full view."""
    if slowly:
        shutil.copytree(bundle, folder)
        return
    hidden = folder.parent / f".{folder.name}"
    shutil.copytree(bundle, hidden)
    hidden.rename(folder)


def update_in_place(bundle: Path, folder: Path) -> None:
    """Have a served folder become another bundle, as ``update_bundle`` does: files first, then the manifest."""
    for path in bundle.iterdir():
        if path.name != "bundle.json":
            shutil.copy(path, folder / path.name)
    shutil.copy(bundle / "bundle.json", folder / ".bundle.json")
    os.replace(folder / ".bundle.json", folder / "bundle.json")
