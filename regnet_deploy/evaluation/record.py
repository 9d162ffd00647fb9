"""The figures of an evaluation in the bundle, and what is to be said of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from regnet_deploy.bundle import Bundle, Manifest, update_bundle
from regnet_deploy.bundle.measurements import EvaluatedVariant, EvaluationRecord
from regnet_deploy.evaluation.answers import FILE, Answers, answers_to_bytes, summarize_answers
from regnet_deploy.evaluation.metrics import Metrics
from regnet_deploy.images.layout import split_of
from regnet_deploy.profiling.machine import environment

if TYPE_CHECKING:  # the model card, which reads this record, needs no PyTorch
    from regnet_deploy.evaluation.evaluate import EvaluationResult

#: Name of the weights in PyTorch among the variants.
MODEL = "model"


def record_evaluation(bundle: Bundle, result: EvaluationResult) -> Bundle:
    """Write figures, confusion and worst mistakes into the bundle, in place of earlier ones, and return the new bundle.

    Raises:
        BundleError: it cannot be written, or its weights were changed meanwhile.
    """
    parts = Manifest(evaluation=evaluation_record(result), environment=environment("evaluate"))
    return update_bundle(bundle.path, parts, {FILE: answers_to_bytes(_answers(bundle, result))}, expect=bundle)


def _answers(bundle: Bundle, result: EvaluationResult) -> Answers:
    """Return the answers of the first variant, the weights, in short."""
    from regnet_deploy.exporting.decoded_images import decode_images
    from regnet_deploy.images.decode import ImageError

    first = result.evaluations[0]

    def pixels_of(rows: list[int]) -> Iterator[Any]:
        numbers = [int(result.rows[row]) for row in rows]
        for pixels in decode_images(result.images.source, numbers, bundle.preprocessing):
            yield None if isinstance(pixels, ImageError) else pixels

    where = f"the images of {evaluation_record(result).where}"
    return summarize_answers(
        result.labels, first.probabilities, result.image_name, pixels_of, where=where, variant=first.variant
    )


def evaluation_record(result: EvaluationResult) -> EvaluationRecord:
    """Return the figures as the manifest has them."""
    first = result.evaluations[0].metrics
    share, label = first.baseline
    return EvaluationRecord(
        data=result.images.source.root.name,
        split=result.images.split,
        images=first.images,
        unreadable=len(result.unreadable),
        baseline=share,
        baseline_label=label,
        variants={
            each.variant: evaluated_variant(each.runtime, each.metrics, None if each.lost is None else each.lost.value)
            for each in result.evaluations
        },
        held_out=result.images.held_out or None,
    )


def seen_in_training(bundle: Bundle, data: str, split: str) -> str | None:
    """Return a sentence if a choice saw evaluated images of the folder that the network was trained with.

    Args:
        bundle: the network.
        data: name of the folder of the evaluated images.
        split: folder in it that has them; "" is the folder itself.
    """
    training = bundle.manifest.training
    if training is None or data != training.data.folder:
        return None
    if split_of(split) == "test":
        return "; ".join(training.data.test.remarks) or None if training.data.test else None
    if split_of(split) == "val":
        return "the best epoch was chosen on the validation images, so accuracy on new images is slightly lower"
    return "the network was trained on these images or some of them, so accuracy on new images is lower"


def evaluated_variant(runtime: str, figures: Metrics, lost: float | None = None) -> EvaluatedVariant:
    """Return the record of a variant.

    Args:
        runtime: name and version of what ran it.
        figures: its metrics.
        lost: top-1 that it loses against the first variant, -1 to 1; None for the first one.
    """
    top1, top5 = figures.top1, figures.top5
    return EvaluatedVariant(
        runtime=runtime,
        top1=top1.value,
        low=top1.low,
        high=top1.high,
        top5=None if top5 is None else top5.value,
        ece=figures.ece,
        lost_points=None if lost is None else 100 * lost,
    )
