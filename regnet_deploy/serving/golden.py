"""The golden set: real images with the logits that the trained model gave, and how well a runtime agrees with them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.bundle import Bundle
from regnet_deploy.errors import BundleError, ProofError, require
from regnet_deploy.images.preprocess import Preprocessing
from regnet_deploy.serving.runtime import Session, classify_pixels

FILE = "golden.safetensors"


@dataclass(frozen=True, eq=False)
class Golden:
    """Pixels as the network sees them, ``(n, h, w, 3)`` uint8 RGB, and its logits, ``(n, classes)`` float32."""

    images: NDArray[np.uint8]
    logits: NDArray[np.float32]


@dataclass(frozen=True)
class Tolerance:
    """How far a logit may lie from its reference: atol + rtol * |reference|."""

    atol: float
    rtol: float


#: Precision of a variant -> what its logits are held to.
TOLERANCES = {"fp32": Tolerance(atol=1e-4, rtol=1e-3)}


def tolerance_of(precision: str) -> Tolerance:
    """Return what the logits of a variant of this precision are held to.

    Raises:
        BundleError: the precision is not known to this version.
    """
    if precision not in TOLERANCES:
        raise BundleError(f"precision {precision!r} is not known to this version: pip install --upgrade regnet-deploy")
    return TOLERANCES[precision]


#: Share of the logits' spread that an absolute error may have, and share of the largest logit that it may always have.
#: Logits of untrained networks differ by some 0.002 from image to image, so 1e-4 would pass a network that gets much of
#: an image wrong. What FP32 in another order of summation does is far below both: up to 3e-5 of the spread and 1e-6 of
#: the largest logit, measured on untrained networks of 0.4 and 4 GMACs and on trained ones.
_OF_SPREAD, _OF_LARGEST = 1e-2, 1e-5


def scaled(tolerance: Tolerance, reference: NDArray[np.float32]) -> Tolerance:
    """Return the tolerance to which logits are held: as asked, or tighter where the reference hardly varies.

    Args:
        tolerance: as asked for.
        reference: logits, ``(n, classes)``; a single image tells nothing of a spread.
    """
    if len(reference) < 2 or not np.isfinite(reference).all():
        return tolerance
    wanted = reference.astype(np.float64)
    spread = float(wanted.std(axis=0).mean())
    most = max(_OF_SPREAD * spread, _OF_LARGEST * float(np.abs(wanted).max()))
    return Tolerance(min(tolerance.atol, most), tolerance.rtol)


def is_standard(proof: Mapping[str, Any], precision: str) -> bool:
    """Tell whether a proof was held to this precision's tolerance or a tighter one; a looser one proves nothing.

    Raises:
        BundleError: the precision is not known to this version.
    """
    standard = tolerance_of(precision)
    return bool(proof["atol"] <= standard.atol and proof["rtol"] <= standard.rtol)


def tolerance_to_serve(variant: Mapping[str, Any]) -> Tolerance:
    """Return what a variant is held to when it is served: its precision's tolerance, or the looser one of its proof.

    Raises:
        BundleError: the precision is not known to this version.
    """
    proof, standard = variant.get("proof") or {}, tolerance_of(variant["precision"])
    return Tolerance(max(standard.atol, proof.get("atol", 0.0)), max(standard.rtol, proof.get("rtol", 0.0)))


@dataclass(frozen=True)
class Agreement:
    """How well logits agree with their reference.

    Attributes:
        images: images compared.
        max_abs_error: largest difference of a logit; infinite where a logit is not finite.
        mean_abs_error: mean difference of a logit.
        cosine: lowest cosine similarity of an image's logits with their reference.
        top1_agreement: share of images whose first class is the same.
        atol: tolerance applied, see :class:`Tolerance` and :func:`scaled`.
        rtol: tolerance applied.
        passed: every logit finite and inside the tolerance, and every first class the same.
    """

    images: int
    max_abs_error: float
    mean_abs_error: float
    cosine: float
    top1_agreement: float
    atol: float
    rtol: float
    passed: bool

    def to_json(self) -> dict[str, Any]:
        """Return JSON data; figures that are not finite become None."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in vars(self).items()
        }

    def __str__(self) -> str:
        return (
            f"max |error| {self.max_abs_error:.3g}, mean |error| {self.mean_abs_error:.3g}, cosine {self.cosine:.6f}, "
            f"top-1 {self.top1_agreement:.1%} the same on {self.images} images "
            f"(allowed: atol {self.atol:g}, rtol {self.rtol:g}, top-1 100.0%)"
        )


def golden_to_bytes(golden: Golden) -> bytes:
    """Serialise a golden set as safetensors; equal sets give equal bytes."""
    save = require("safetensors.numpy", "serve").save
    data: bytes = save(
        {
            "images": np.ascontiguousarray(golden.images, dtype=np.uint8),
            "logits": np.ascontiguousarray(golden.logits, dtype=np.float32),
        }
    )
    return data


def load_golden(bundle: Bundle) -> Golden:
    """Return the golden set of a bundle.

    Raises:
        MissingPart: it has none; the message names the command that makes it.
        BundleError: the file is damaged or is not a golden set.
    """
    data = bundle.read(FILE)
    safetensors = require("safetensors", "serve")
    load = require("safetensors.numpy", "serve").load
    wrong = BundleError(f"{bundle.stored_path(FILE)} is not a golden set: run `regnet-deploy export --onnx` again")
    try:
        tensors = load(data)
        images, logits = tensors["images"], tensors["logits"]
    except (safetensors.SafetensorError, KeyError):
        raise wrong from None
    shaped = images.ndim == 4 and images.shape[3] == 3 and logits.ndim == 2 and len(images) == len(logits) > 0
    if not shaped or images.dtype != np.uint8 or logits.dtype != np.float32:
        raise wrong
    return Golden(images, logits)


def compare(reference: NDArray[np.float32], logits: NDArray[np.float32], tolerance: Tolerance) -> Agreement:
    """Hold logits, ``(n, classes)``, against their reference of the same shape.

    Raises:
        ProofError: the shapes differ.
    """
    if reference.shape != logits.shape or reference.ndim != 2 or not len(reference):
        raise ProofError(f"logits of shape {logits.shape} cannot be compared with a reference of {reference.shape}")
    wanted, got = reference.astype(np.float64), logits.astype(np.float64)
    finite = bool(np.isfinite(got).all() and np.isfinite(wanted).all())
    top1 = float((wanted.argmax(axis=1) == got.argmax(axis=1)).mean())
    if not finite:
        return Agreement(len(wanted), math.inf, math.inf, math.nan, top1, tolerance.atol, tolerance.rtol, False)
    error = np.abs(got - wanted)
    inside = bool((error <= tolerance.atol + tolerance.rtol * np.abs(wanted)).all())
    return Agreement(
        images=len(wanted),
        max_abs_error=float(error.max()),
        mean_abs_error=float(error.mean()),
        cosine=float(_cosines(wanted, got).min()),
        top1_agreement=top1,
        atol=tolerance.atol,
        rtol=tolerance.rtol,
        passed=inside and top1 == 1.0,
    )


def replay(
    session: Session, golden: Golden, preprocessing: Preprocessing, tolerance: Tolerance, batch: int = 8
) -> Agreement:
    """Run every golden image through a session, once in batches and once alone, and compare both with the reference.

    A golden set of one image is run twice in a batch. The tolerance is :func:`scaled`.

    Args:
        session: an opened network.
        golden: images and reference logits.
        preprocessing: of the bundle.
        tolerance: as asked for.
        batch: images in a batch; 1 leaves batches out.

    Raises:
        ProofError: the session cannot run the images, or gives logits of another shape.
    """
    count = len(golden.images)
    alone = [classify_pixels(session, golden.images[i : i + 1], preprocessing) for i in range(count)]
    runs, reference = alone, [golden.logits]
    if batch > 1:
        repeats = 2 if count == 1 else 1
        images = np.repeat(golden.images, repeats, axis=0)
        size = min(batch, len(images))
        runs += [classify_pixels(session, images[i : i + size], preprocessing) for i in range(0, len(images), size)]
        reference.append(np.repeat(golden.logits, repeats, axis=0))
    agreement = compare(np.concatenate(reference), np.concatenate(runs), scaled(tolerance, golden.logits))
    return replace(agreement, images=count)


def _cosines(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cosine similarity of each row; rows of zeros are alike to each other and to nothing else."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    alike: NDArray[np.float64] = np.where(
        lengths > 0, (a * b).sum(axis=1) / np.where(lengths > 0, lengths, 1), (a == b).all(axis=1)
    )
    return alike
