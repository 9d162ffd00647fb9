"""Whether a variant is as good as the trained model: its gate on the golden set, its accuracy on validation images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from regnet_deploy.errors import ProofError
from regnet_deploy.exporting.accuracy import Reference, Validation, measure_accuracy
from regnet_deploy.exporting.precision import Precision
from regnet_deploy.exporting.proof import prove
from regnet_deploy.images.preprocess import Preprocessing
from regnet_deploy.serving.gates import Gate
from regnet_deploy.serving.golden import Golden
from regnet_deploy.serving.runtime import Session

#: Called with what is done and what there is to do.
Advance = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Judge:
    """What variants are held against.

    Attributes:
        golden: images and the model's logits.
        preprocessing: of the bundle.
        gates: by the name of the precision.
        validation: labelled images, or None where none were given.
        reference: the model's answers to them.
        max_drop: points of top-1 that a variant may lose on them.
    """

    golden: Golden
    preprocessing: Preprocessing
    gates: Mapping[str, Gate]
    validation: Validation | None
    reference: Reference | None
    max_drop: float

    def judge(self, name: str, session: Session, precision: Precision, advance: Advance) -> dict[str, Any]:
        """Return ``proof`` and, with validation images, ``accuracy`` as JSON data.

        Raises:
            ProofError: a gate is not passed, or too many answers are lost; the message has the figures.
        """
        gate = self.gates[precision.name]
        found = {"proof": prove(name, session, self.golden, self.preprocessing, gate, precision.name)}
        if self.validation is None or self.reference is None:
            return found
        accuracy = measure_accuracy(session, self.validation, self.reference, advance)
        if accuracy.drop > self.max_drop:
            raise ProofError(
                f"{name} loses {accuracy.drop:.2f} points of top-1 on {accuracy.images:,} validation images "
                f"({accuracy.reference_top1:.2%} to {accuracy.top1:.2%}; 95 % interval of the loss {accuracy.low:.2f} "
                f"to {accuracy.high:.2f}) and may lose {self.max_drop:g} (--max-drop): it was not added"
            )
        return {**found, "accuracy": accuracy.to_json()}
