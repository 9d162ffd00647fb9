"""Ranges for a quantised precision: every method is tried, the one that answers best is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from regnet_deploy.errors import ProofError
from regnet_deploy.exporting.accuracy import ValidationSet, measure_accuracy
from regnet_deploy.exporting.accuracy_gate import AccuracyGate
from regnet_deploy.exporting.calibration import METHODS, ObservedActivations, activation_ranges
from regnet_deploy.exporting.calibration_images import CalibrationSet
from regnet_deploy.exporting.emulation import emulate
from regnet_deploy.exporting.model_source import ModelSource
from regnet_deploy.exporting.precision import Precision
from regnet_deploy.exporting.quantization import TensorRange
from regnet_deploy.runtimes.gates import Gate
from regnet_deploy.runtimes.golden_set import replay
from regnet_deploy.runtimes.runtime import Session, open_onnx

#: Validation images on which the methods are compared; the one that is kept is measured on all of them.
_COMPARED = 2000
_SEED = 0


@dataclass(frozen=True, eq=False)
class ChosenRanges:
    """Ranges of the method that was kept, and the part ``calibration`` of the variant."""

    ranges: Mapping[str, TensorRange]
    part: dict[str, Any]


def choose_ranges(
    source: ModelSource,
    precision: Precision,
    images: CalibrationSet,
    observed: ObservedActivations,
    judge: AccuracyGate,
    reduced: bool,
    step: Callable[[str], None],
) -> ChosenRanges:
    """Build the precision with each method's ranges and keep those that answer best.

    By top-1 on up to 2,000 validation images, or without them by the share of golden images with the model's first
    class; of equals by the smaller mean error of the logits. A method whose logits are not finite loses.

    Raises:
        ProofError: no method gives finite logits.
    """
    some = None if judge.validation is None else judge.validation.subset(_COMPARED, _SEED)
    tried: dict[str, dict[str, float]] = {}
    found: dict[str, Mapping[str, TensorRange]] = {}
    for method in METHODS:
        step(f"{precision.name}: ranges by {method}")
        found[method] = activation_ranges(observed, method)
        data = source.onnx(precision, found[method], reduced=reduced)
        session = open_onnx(emulate(data, precision), device="cpu", exact=precision.for_tensorrt)
        figures = _figures(session, judge, some)
        if figures is not None:
            tried[method] = figures
    if not tried:
        raise ProofError(f"{precision.name}: with no method's ranges ({', '.join(METHODS)}) are the logits finite")
    best = max(tried, key=lambda method: (tried[method]["top1"], -tried[method]["mean_abs_error"]))
    return ChosenRanges(found[best], {"method": best, "tried": tried, **images.part})


def _figures(session: Session, judge: AccuracyGate, some: ValidationSet | None) -> dict[str, float] | None:
    """Return ``top1`` and ``mean_abs_error``, or None where logits are not finite."""
    if some is None or judge.reference is None:
        agreement = replay(session, judge.golden, judge.preprocessing, Gate())
        top1, mean, finite = agreement.top1_agreement, agreement.mean_abs_error, agreement.passed
    else:
        accuracy = measure_accuracy(session, some, judge.reference.of(some))
        top1, mean, finite = accuracy.top1, accuracy.mean_abs_error, accuracy.finite
    return {"top1": top1, "mean_abs_error": mean} if finite else None
