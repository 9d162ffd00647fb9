"""Runs a network and its exported variants on labeled images, and compares their answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.bundle import Bundle
from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.errors import DataError, ProofError
from regnet_deploy.evaluation.labeled_images import LabeledImages
from regnet_deploy.evaluation.metrics import Metrics, metrics, softmax
from regnet_deploy.exporting.accuracy import PairedDifference, paired_difference
from regnet_deploy.exporting.decoded_images import decode_images
from regnet_deploy.images.decode import ImageError
from regnet_deploy.images.image_source import MAX_UNREADABLE
from regnet_deploy.progress import Progress
from regnet_deploy.runtimes.runtime import Session, classify_pixels

#: Images in an inference.
_BATCH = 16


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The answers of one variant.

    Attributes:
        variant: its name, or ``model`` for the weights in PyTorch.
        runtime: name and version of what ran it.
        metrics: the figures.
        probabilities: of each class, ``(n, classes)``, in the order of ``rows`` of the result.
        lost: top-1 of the first variant minus that of this one, -1 to 1, on the same images; None for the first one.
    """

    variant: str
    runtime: str
    metrics: Metrics
    probabilities: NDArray[np.float64]
    lost: PairedDifference | None = None


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """The answers of several variants on the same images.

    Attributes:
        images: the images.
        rows: numbers of the images that could be read, ``(n,)``, indices into ``images``.
        labels: their classes, ``(n,)``.
        names: of the classes.
        unreadable: name of an image -> why it cannot be read.
        evaluations: one for each variant.
    """

    images: LabeledImages
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    unreadable: dict[str, str]
    evaluations: tuple[Evaluation, ...]

    def image_name(self, row: int) -> str:
        """Return the name of the image of a row of the probabilities."""
        return self.images.source.names[int(self.rows[row])]

    def to_json(self) -> dict[str, Any]:
        """Return JSON data; shares are 0 to 1, lost accuracy is in points of top-1."""
        return {
            "data": str(self.images.source.root),
            "split": self.images.split,
            "held_out": self.images.held_out,
            "competing_classes": len(self.names if self.images.answers is None else self.images.answers),
            "unreadable": self.unreadable,
            "variants": {
                each.variant: {
                    "runtime": each.runtime,
                    **each.metrics.to_json(),
                    "lost_points": None
                    if each.lost is None
                    else {name: 100 * value for name, value in vars(each.lost).items()},
                }
                for each in self.evaluations
            },
        }


def evaluate_sessions(
    sessions: Sequence[tuple[str, Session]], images: LabeledImages, bundle: Bundle, progress: Progress
) -> EvaluationResult:
    """Run variants on images, all of them on each image while it is in memory.

    Args:
        sessions: name and session of each variant; the others are compared with the first one.
        images: the images with their classes.
        bundle: whose variants they are.
        progress: receives the images done.

    Raises:
        DataError: more than a tenth of the images cannot be read.
        ProofError: a logit is not finite.
    """
    names = tuple(bundle.labels)
    total = len(images.labels)
    progress.step("evaluating", total)
    collected: list[list[NDArray[np.float64]]] = [[] for _ in sessions]
    rows: list[int] = []
    waiting: list[NDArray[np.uint8]] = []
    unreadable: dict[str, str] = {}

    def run() -> None:
        if waiting:
            pixels = np.stack(waiting)
            for answers, (name, session) in zip(collected, sessions, strict=True):
                answers.append(_probabilities(name, session, pixels, bundle.preprocessing, images.answers))
            waiting.clear()

    for number, image in enumerate(decode_images(images.source, range(total), bundle.preprocessing)):
        if isinstance(image, ImageError):
            unreadable[image.name] = image.reason
        else:
            rows.append(number)
            waiting.append(image)
        if len(waiting) == _BATCH:
            run()
        progress.update(number + 1)
    run()
    if not rows or len(unreadable) > MAX_UNREADABLE * total:
        example, reason = next(iter(unreadable.items()))
        raise DataError(
            f"{len(unreadable):,} of {total:,} images in {images.source.root} cannot be read, for example {example}: "
            f"{reason}; at most {MAX_UNREADABLE:.0%} may be unreadable: repair or remove those files"
        )
    labels = images.labels[rows]
    evaluations: list[Evaluation] = []
    for (name, session), parts in zip(sessions, collected, strict=True):
        probabilities = np.concatenate(parts)
        figures = metrics(labels, probabilities, names)
        lost = _lost(evaluations[0].probabilities, probabilities, labels) if evaluations else None
        evaluations.append(Evaluation(name, session.runtime, figures, probabilities, lost))
    return EvaluationResult(images, np.array(rows, np.int64), labels, names, unreadable, tuple(evaluations))


def _probabilities(
    name: str,
    session: Session,
    pixels: NDArray[np.uint8],
    preprocessing: Preprocessing,
    competing: NDArray[np.int64] | None,
) -> NDArray[np.float64]:
    """Return the probabilities of the classes; 0 for those that do not compete as answers."""
    logits = classify_pixels(session, pixels, preprocessing)
    if not np.isfinite(logits).all():
        raise ProofError(f"{name} gives logits that are not finite: evaluate another variant")
    if competing is None:
        return softmax(logits)
    probabilities = np.zeros(logits.shape)
    probabilities[:, competing] = softmax(logits[:, competing])
    return probabilities


def _lost(first: NDArray[np.float64], second: NDArray[np.float64], labels: NDArray[np.int64]) -> PairedDifference:
    before, after = (probabilities.argmax(axis=1) == labels for probabilities in (first, second))
    return paired_difference(int((before & ~after).sum()), int((after & ~before).sum()), len(labels))
