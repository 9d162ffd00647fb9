"""Writes the figures of an evaluation into the bundle."""

from __future__ import annotations

from regnet_deploy.bundle import Bundle, Manifest, update_bundle
from regnet_deploy.bundle.measurements import EvaluatedVariant, EvaluationRecord
from regnet_deploy.evaluation.evaluate import Evaluation, EvaluationResult
from regnet_deploy.profiling.machine import environment


def record_evaluation(bundle: Bundle, result: EvaluationResult) -> Bundle:
    """Write the figures into the bundle, in place of earlier ones, and return the new bundle.

    Raises:
        BundleError: it cannot be written, or its weights were changed meanwhile.
    """
    first = result.evaluations[0].metrics
    share, label = first.baseline
    record = EvaluationRecord(
        data=result.images.source.root.name,
        split=result.images.split,
        images=first.images,
        unreadable=len(result.unreadable),
        baseline=share,
        baseline_label=label,
        variants={each.variant: _variant(each) for each in result.evaluations},
    )
    parts = Manifest(evaluation=record, environment=environment("evaluate"))
    return update_bundle(bundle.path, parts, expect=bundle)


def _variant(each: Evaluation) -> EvaluatedVariant:
    top1, top5 = each.metrics.top1, each.metrics.top5
    return EvaluatedVariant(
        runtime=each.runtime,
        top1=top1.value,
        low=top1.low,
        high=top1.high,
        top5=None if top5 is None else top5.value,
        ece=each.metrics.ece,
        lost_points=None if each.lost is None else 100 * each.lost.value,
    )
