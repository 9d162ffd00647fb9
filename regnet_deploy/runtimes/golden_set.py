"""The golden set: images with the logits of the trained model, and the comparison of a runtime with them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.bundle import Bundle
from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.bundle.variants import Gate
from regnet_deploy.errors import BundleError, ProofError, require
from regnet_deploy.runtimes.gates import logit_spread, scaled_gate
from regnet_deploy.runtimes.runtime import Session, classify_pixels
from regnet_deploy.space.network import INPUT_CHANNELS

FILE = "golden.safetensors"


@dataclass(frozen=True, eq=False)
class GoldenSet:
    """Pixels of the images, ``(n, h, w, channels)`` uint8, and the reference logits, ``(n, classes)`` float32."""

    images: NDArray[np.uint8]
    logits: NDArray[np.float32]


#: A changed first class counts only if the reference logits of the two classes differ by more than this share of the
#: spread of the logits, and by more than the mean error that the gate allows; otherwise the reference does not decide
#: between them.
_DECIDED = 1e-2


@dataclass(frozen=True)
class Agreement:
    """The result of a comparison of logits with their reference.

    Attributes:
        images: images compared.
        max_abs_error: largest absolute error of a logit; infinite if a logit is not finite.
        mean_abs_error: mean absolute error of a logit.
        relative_error: the mean error as a share of the reference's :func:`regnet_deploy.runtimes.gates.logit_spread`.
        cosine: lowest cosine similarity of an image's logits with their reference.
        top1_agreement: share of images whose first class is the same.
        top1_decided: the same, where images whose first class the reference does not decide (a difference of at most a
            hundredth of the spread, or of at most the gate's limit of the mean error) count as the same.
        worst_error: root mean square error over the classes of the image where it is largest, as a share of the spread,
            or of how far that image's logits are from the mean of all images where they are farther: the error of an
            image with large logits is larger, and turns no answer.
        gate: the limits that were applied, see :func:`regnet_deploy.runtimes.gates.scaled_gate`.
        failures: a phrase for each figure outside its limit: the figure, its value and the limit.
    """

    images: int
    max_abs_error: float
    mean_abs_error: float
    relative_error: float
    cosine: float
    top1_agreement: float
    top1_decided: float
    worst_error: float
    gate: Gate
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every logit is finite and every figure within its limit."""
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        """Return JSON data: figures, gate, and whether it was passed; figures that are not finite become None."""
        figures = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in vars(self).items()
            if name not in ("gate", "failures")
        }
        return {**figures, "gate": self.gate.to_json(), "passed": self.passed}

    def __str__(self) -> str:
        if not math.isfinite(self.max_abs_error):
            return f"{'; '.join(self.failures)}, of {self.images} images"
        failed = f"{'; '.join(self.failures)} - " if self.failures else ""
        return (
            f"{failed}max |error| {self.max_abs_error:.3g}, mean |error| {self.mean_abs_error:.3g} "
            f"({_of_spread(self.relative_error)}), worst image {_of_spread(self.worst_error)}, "
            f"cosine {self.cosine:.6f}, top-1 {self.top1_agreement:.1%} the same on {self.images} images "
            f"(allowed: {self.gate})"
        )


def golden_to_bytes(golden: GoldenSet) -> bytes:
    """Serialize a golden set as safetensors; equal sets give equal bytes."""
    save = require("safetensors.numpy", "serve").save
    data: bytes = save(
        {
            "images": np.ascontiguousarray(golden.images, dtype=np.uint8),
            "logits": np.ascontiguousarray(golden.logits, dtype=np.float32),
        }
    )
    return data


def load_golden(bundle: Bundle) -> GoldenSet:
    """Return the golden set of a bundle.

    Raises:
        MissingPart: it has none; the message names the command that makes it.
        BundleError: the file is damaged or is not a golden set.
    """
    data = bundle.read(FILE)
    safetensors = require("safetensors", "serve")
    load = require("safetensors.numpy", "serve").load
    wrong = BundleError(
        f"{bundle.stored_path(FILE)} is not a golden set: run `regnet-deploy export --onnx{bundle.argument}` again"
    )
    try:
        tensors = load(data)
        images, logits = tensors["images"], tensors["logits"]
    except (safetensors.SafetensorError, KeyError):
        raise wrong from None
    shaped = images.ndim == 4 and images.shape[3] in INPUT_CHANNELS and logits.ndim == 2
    shaped = shaped and len(images) == len(logits) > 0
    if not shaped or images.dtype != np.uint8 or logits.dtype != np.float32:
        raise wrong
    return GoldenSet(images, logits)


def compare(reference: NDArray[np.float32], logits: NDArray[np.float32], gate: Gate) -> Agreement:
    """Compare logits ``(n, classes)`` with a reference of the same shape.

    Raises:
        ProofError: the shapes differ.
    """
    if reference.shape != logits.shape or reference.ndim != 2 or not len(reference):
        raise ProofError(f"logits of shape {logits.shape} cannot be compared with a reference of {reference.shape}")
    expected, actual = reference.astype(np.float64), logits.astype(np.float64)
    first, now = expected.argmax(axis=1), actual.argmax(axis=1)
    top1 = float((first == now).mean())
    if not (np.isfinite(actual).all() and np.isfinite(expected).all()):
        infinite = (math.inf, math.inf, math.inf, math.nan)
        return Agreement(len(expected), *infinite, top1, top1, math.inf, gate, ("a logit is not finite",))
    error, varies = np.abs(actual - expected), logit_spread(expected)
    mean = float(error.mean())
    distance = np.sqrt(((expected - expected.mean(axis=0)) ** 2).mean(axis=1))
    errors = np.sqrt((error**2).mean(axis=1))
    decided = max(_DECIDED, gate.mean or 0.0)
    images = np.arange(len(expected))
    lead = expected[images, first] - expected[images, now]
    agreement = Agreement(
        images=len(expected),
        max_abs_error=float(error.max()),
        mean_abs_error=mean,
        relative_error=_share(mean, varies),
        cosine=float(cosines(expected, actual).min()),
        top1_agreement=top1,
        top1_decided=float((lead <= decided * varies).mean()),
        worst_error=max(map(_share, errors.tolist(), np.maximum(distance, varies).tolist())),
        gate=gate,
        failures=(),
    )
    return replace(agreement, failures=(*_far_logit(expected, error, gate), *_beyond(agreement)))


def replay(session: Session, golden: GoldenSet, preprocessing: Preprocessing, gate: Gate, batch: int = 8) -> Agreement:
    """Run the golden images in batches and one by one, and compare both with the reference.

    A golden set of one image is run twice in a batch. The limits are those of
    :func:`regnet_deploy.runtimes.gates.scaled_gate`.

    Args:
        session: runs the network.
        golden: images and reference logits.
        preprocessing: of the bundle.
        gate: the limits to apply.
        batch: images in a batch; 1 means no batches.

    Raises:
        ProofError: the session cannot run the images, or returns logits of another shape.
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
    agreement = compare(np.concatenate(reference), np.concatenate(runs), scaled_gate(gate, golden.logits))
    return replace(agreement, images=count)


def _share(error: float, spread: float) -> float:
    """Return an error as a share of the spread; infinity where all reference logits are equal and it is not 0."""
    return error / spread if spread > 0 else math.inf if error > 0 else 0.0


def _of_spread(share: float) -> str:
    return f"{share:.2%} of the spread" if math.isfinite(share) else "above a spread of 0"


def _far_logit(expected: NDArray[np.float64], error: NDArray[np.float64], gate: Gate) -> list[str]:
    """Return a phrase for the logit that exceeds its limit most, if one does."""
    allowed = gate.limit("atol") + gate.limit("rtol") * np.abs(expected)
    beyond = error - allowed
    worst = np.unravel_index(int(beyond.argmax()), error.shape)
    if not beyond[worst] > 0:
        return []
    return [f"|error| {error[worst]:.3g} of a logit of {expected[worst]:.3g} (at most {allowed[worst]:.3g})"]


def _beyond(agreement: Agreement) -> list[str]:
    """Return a phrase for each of the other figures that is outside its limit."""
    gate, failed = agreement.gate, []
    if gate.mean is not None and agreement.relative_error > gate.mean:
        failed.append(f"mean |error| {_of_spread(agreement.relative_error)} (at most {gate.mean:.2%})")
    if gate.worst is not None and agreement.worst_error > gate.worst:
        failed.append(f"error of one image {_of_spread(agreement.worst_error)} (at most {gate.worst:.2%})")
    if gate.cosine is not None and agreement.cosine < gate.cosine:
        failed.append(f"cosine {agreement.cosine:.6f} (at least {gate.cosine:g})")
    if gate.top1 is not None and agreement.top1_decided < gate.top1:
        failed.append(f"first class kept on {agreement.top1_decided:.1%} of images (at least {gate.top1:.1%})")
    return failed


def cosines(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cosine similarity of each row: 1 for two rows of zeros, 0 for one."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    alike: NDArray[np.float64] = np.where(
        lengths > 0, (a * b).sum(axis=1) / np.where(lengths > 0, lengths, 1), (a == b).all(axis=1)
    )
    return alike
