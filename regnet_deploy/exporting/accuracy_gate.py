"""The gate that every exported variant must pass: agreement on the golden set, and top-1 on validation images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from regnet_deploy.bundle import Bundle
from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.bundle.variants import Accuracy, Gate, Proof
from regnet_deploy.errors import DataError, ProofError
from regnet_deploy.exporting.accuracy import ReferenceLogits, measure_accuracy
from regnet_deploy.exporting.precision import Precision
from regnet_deploy.exporting.proof import prove
from regnet_deploy.exporting.validation import ValidationSet
from regnet_deploy.progress import Progress
from regnet_deploy.runtimes.golden_set import GoldenSet
from regnet_deploy.runtimes.runtime import Session


class GateResult(NamedTuple):
    """Figures of a variant that passed the gate; ``accuracy`` is None without validation images."""

    proof: Proof
    accuracy: Accuracy | None


@dataclass(frozen=True, eq=False)
class AccuracyGate:
    """What variants are compared with, and what they may lose.

    Attributes:
        golden: images and the model's logits.
        preprocessing: of the bundle.
        gates: name of a precision -> limits on the golden set.
        validation: labeled images, or None if none were given.
        reference: the model's logits for them.
        max_drop: percentage points of top-1 that a variant may lose on them.
    """

    golden: GoldenSet
    preprocessing: Preprocessing
    gates: Mapping[str, Gate]
    validation: ValidationSet | None
    reference: ReferenceLogits | None
    max_drop: float

    def evaluate(
        self, name: str, session: Session, precision: Precision, progress: Progress, *, validate: bool = True
    ) -> GateResult:
        """Return the figures of a variant on the golden set and, if there are any, on the validation images.

        Args:
            name: of the variant.
            session: runs it.
            precision: of the variant.
            progress: receives the validation images done.
            validate: also run the validation images, if there are any.

        Raises:
            ProofError: a limit is exceeded, or a logit is not finite; the message has the figures.
        """
        proof = prove(name, session, self.golden, self.preprocessing, self.gates[precision.name], precision.name)
        if not validate or self.validation is None:
            return GateResult(proof, None)
        return GateResult(proof, self.measure_accuracy(name, session, precision, progress))

    def measure_accuracy(self, name: str, session: Session, precision: Precision, progress: Progress) -> Accuracy:
        """Return the accuracy on the validation images, which must be given.

        Raises:
            ProofError: the variant loses too much, or a logit is not finite.
        """
        assert self.validation is not None
        assert self.reference is not None
        accuracy = measure_accuracy(session, self.validation, self.reference, progress)
        if accuracy.max_abs_error is None:
            raise ProofError(f"{name} gives logits that are not finite on validation images")
        # fp32 is the fallback: one answer that a different order of summation changes must not stop the export.
        if precision.name != "fp32" and accuracy.drop > self.max_drop:
            raise ProofError(
                f"{name} loses {accuracy.drop:.2f} points of top-1 on {accuracy.images:,} validation images "
                f"({accuracy.reference_top1:.2%} to {accuracy.top1:.2%}; 95 % interval of the loss {accuracy.low:.2f} "
                f"to {accuracy.high:.2f}) and may lose {self.max_drop:g} (--max-drop)"
            )
        return accuracy


def check_reference_accuracy(reference: ReferenceLogits, bundle: Bundle, data: Path, progress: Progress) -> None:
    """Check that the model classifies these validation images about as well as those of its training run.

    On images that the model does not know, a variant has nothing to lose, and its accuracy would mean nothing.

    Args:
        reference: the model's logits.
        bundle: its part ``training`` has the top-1 of the training run.
        data: the folder, for the message.
        progress: receives a message if the top-1 is clearly lower than in the training run.

    Raises:
        DataError: it is less than half of that.
    """
    training = bundle.manifest.training
    if training is None:
        return
    best = training.best
    expected, found, n = best.val_top1, reference.top1, len(reference.labels)
    line = (
        f"the model classifies {found:.2%} of the {n:,} validation images of {data} correctly, and {expected:.2%} in "
        "training"
    )
    if found < expected / 2:
        raise DataError(
            f"{line}: these are different images, or they are in wrong class folders; give the training folder"
        )
    # Three standard errors of the difference, and 2 points for images that differ a little.
    slack = 0.02 + 3 * math.sqrt(expected * (1 - expected) * (1 / n + 1 / best.val_images))
    if found < expected - slack:
        progress.message(f"{line}: if these are not the images of the training run, give its folder")
