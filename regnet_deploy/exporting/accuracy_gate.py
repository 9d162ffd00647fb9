"""Whether a variant is as good as the trained model: its gate on the golden set, its accuracy on validation images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regnet_deploy.bundle import Bundle
from regnet_deploy.errors import DataError, ProofError
from regnet_deploy.exporting.accuracy import ReferenceLogits, ValidationSet, measure_accuracy
from regnet_deploy.exporting.precision import Precision
from regnet_deploy.exporting.progress import Advance
from regnet_deploy.exporting.proof import prove
from regnet_deploy.images.preprocessing import Preprocessing
from regnet_deploy.runtimes.gates import Gate
from regnet_deploy.runtimes.golden_set import GoldenSet
from regnet_deploy.runtimes.runtime import Session


def ensure_same_images(reference: ReferenceLogits, bundle: Bundle, data: Path, note: Callable[[str], None]) -> None:
    """Find out whether the model knows these validation images: on others a variant has nothing to lose.

    Args:
        reference: the model's answers.
        bundle: its part ``training`` says how many of its own validation images the model answers right.
        data: the folder, for the message.
        note: is told where the share is plainly lower than that.

    Raises:
        DataError: less than half of what training found is right.
    """
    training = bundle.parts.get("training")
    best = (training or {}).get("best") or {}
    trained, here, n = best.get("val_top1"), reference.top1, len(reference.labels)
    if trained is None:
        return
    told = (
        f"the model answers {here:.2%} of the {n:,} validation images of {data} right, in training it was {trained:.2%}"
    )
    if here < trained / 2:
        raise DataError(
            f"{told}: these are other images, or in the wrong class folders; give the folder you trained on"
        )
    # Three standard errors of both shares, and something for images that are a little different.
    slack = 0.02 + 3 * math.sqrt(trained * (1 - trained) * (1 / n + 1 / best.get("val_images", n)))
    if here < trained - slack:
        note(f"{told}: if these are not the images you mean, give the folder you trained on")


@dataclass(frozen=True, eq=False)
class AccuracyGate:
    """What variants are held against.

    Attributes:
        golden: images and the model's logits.
        preprocessing: of the bundle.
        gates: by the name of the precision.
        validation: labelled images, or None where none were given.
        reference: the model's answers to them.
        max_drop: points of top-1 that a variant may lose on them.
    """

    golden: GoldenSet
    preprocessing: Preprocessing
    gates: Mapping[str, Gate]
    validation: ValidationSet | None
    reference: ReferenceLogits | None
    max_drop: float

    def judge(
        self, name: str, session: Session, precision: Precision, advance: Advance, *, whole: bool = True
    ) -> dict[str, Any]:
        """Return ``proof`` and, with validation images, ``accuracy`` as JSON data.

        Args:
            name: of the variant.
            session: that runs it.
            precision: what it computes in.
            advance: is told how much of the validation images is done.
            whole: also on the validation images, where there are some.

        Raises:
            ProofError: a gate is not passed, too many answers are lost, or one is not finite; the message has the
                figures.
        """
        gate = self.gates[precision.name]
        found = {"proof": prove(name, session, self.golden, self.preprocessing, gate, precision.name)}
        if not whole or self.validation is None:
            return found
        return {**found, "accuracy": self.accuracy(name, session, precision, advance)}

    def accuracy(self, name: str, session: Session, precision: Precision, advance: Advance) -> dict[str, Any]:
        """Return what a variant loses on the validation images, as JSON data.

        Raises:
            ProofError: too much, or an answer is not finite.
        """
        assert self.validation is not None  # who asks has given --data
        assert self.reference is not None
        accuracy = measure_accuracy(session, self.validation, self.reference, advance)
        if not accuracy.finite:
            raise ProofError(f"{name} gives logits that are not finite on validation images")
        # fp32 is what everything falls back to: an answer that another order of summation changes must not end all.
        if precision.name != "fp32" and accuracy.drop > self.max_drop:
            raise ProofError(
                f"{name} loses {accuracy.drop:.2f} points of top-1 on {accuracy.images:,} validation images "
                f"({accuracy.reference_top1:.2%} to {accuracy.top1:.2%}; 95 % interval of the loss {accuracy.low:.2f} "
                f"to {accuracy.high:.2f}) and may lose {self.max_drop:g} (--max-drop)"
            )
        return accuracy.to_json()
