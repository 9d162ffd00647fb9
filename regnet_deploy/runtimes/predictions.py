"""From logits to labeled predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.bundle import Bundle
from regnet_deploy.errors import BundleError, UsageError


@dataclass(frozen=True)
class Prediction:
    """A class: its name, its index among the outputs, and its softmax probability."""

    label: str
    index: int
    probability: float

    def to_json(self) -> dict[str, Any]:
        """Return JSON data."""
        return {"label": self.label, "index": self.index, "probability": self.probability}


def labels_of(bundle: Bundle) -> tuple[str, ...]:
    """Return the class names in the order of the outputs; ``class 0``, ``class 1``, ... before training.

    Raises:
        BundleError: there are more or fewer names than outputs.
    """
    classes = bundle.architecture.classes
    labels = bundle.manifest.labels or tuple(f"class {i}" for i in range(classes))
    if len(labels) != classes:
        raise BundleError(
            f"{bundle.path} names {len(labels)} classes but its network has {classes}: run `regnet-deploy train --data "
            f"DIR{bundle.argument}` again"
        )
    return labels


def top_k(logits: NDArray[np.float32], labels: tuple[str, ...], k: int) -> list[list[Prediction]]:
    """Return the ``k`` most probable classes of each image, the most probable first; all classes if there are fewer.

    Args:
        logits: ``(n, classes)``, finite.
        labels: names in the order of the logits.
        k: 1 or more.

    Raises:
        UsageError: ``k`` is less than 1.
    """
    if k < 1:
        raise UsageError(f"k must be 1 or more, not {k}")
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities = shifted / shifted.sum(axis=1, keepdims=True)
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    return [
        [Prediction(labels[i], int(i), float(row[i])) for i in best]
        for row, best in zip(probabilities, order, strict=True)
    ]
