"""The model card: a bundle and the figures derived from it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from regnet_deploy.bundle import Bundle, Manifest
from regnet_deploy.bundle.manifest import Architecture
from regnet_deploy.bundle.training import BestEpoch
from regnet_deploy.evaluation.answers import Answers, answers_of
from regnet_deploy.evaluation.metrics import Share
from regnet_deploy.space.complexity import Cost, network_complexity


@dataclass(frozen=True)
class StageRow:
    """Blocks, widths and cost of one stage for one image; the stem and the head count as stages."""

    stage: str
    blocks: int
    width: int
    group_width: int | None
    macs: int
    parameters: int
    activations: int


@dataclass(frozen=True)
class ValidationTop1:
    """Top-1 on the validation images with its 95 % interval, as shares, and the epoch of the weights."""

    val_top1: float
    val_images: int
    low: float
    high: float
    epoch: int


@dataclass(frozen=True)
class Baseline:
    """What a network reaches that answers the largest class of the validation images for every image.

    Attributes:
        label: of that class.
        top1: share of the validation images that are of that class.
        verdict: in words, if the trained network is not better than that, or than a logistic regression on small
            pixels; empty if it is better than both.
    """

    label: str
    top1: float
    verdict: str = ""


@dataclass(frozen=True)
class ModelCard:
    """A bundle with figures derived from it.

    Attributes:
        bundle: the bundle.
        stages: cost by stage.
        accuracy: None before training.
        baseline: with which to compare the accuracy; None before training, and in bundles without counts by class.
        answers: confusion and worst mistakes; None before training, and in older bundles.
    """

    bundle: Bundle
    stages: tuple[StageRow, ...]
    accuracy: ValidationTop1 | None
    baseline: Baseline | None = None
    answers: Answers | None = None

    @property
    def manifest(self) -> Manifest:
        """The bundle's parts."""
        return self.bundle.manifest

    @property
    def architecture(self) -> Architecture:
        """The bundle's architecture."""
        return self.bundle.architecture

    def to_json(self) -> dict[str, Any]:
        """Return JSON data: the stored parts, None for parts that do not exist yet, and the derived figures."""
        parts = self.bundle.parts
        optional = (
            "selection",
            "preprocessing",
            "labels",
            "training",
            "profile",
            "golden",
            "choice",
            "imported",
            "evaluation",
        )
        return {
            "bundle": self.bundle.path.resolve().name,
            "manifest_sha256": self.bundle.digest,
            "architecture": parts["architecture"],
            "stages": [asdict(row) for row in self.stages],
            "accuracy": None if self.accuracy is None else asdict(self.accuracy),
            "baseline": None if self.baseline is None else asdict(self.baseline),
            **{name: parts.get(name) for name in optional},
            "answers": None if self.answers is None else self.answers.to_json(self.manifest.labels),
            "variants": parts.get("variants", {}),
            "files": {logical: vars(stored) for logical, stored in sorted(self.bundle.files.items())},
            "environment": parts.get("environment", {}),
        }


def model_card(bundle: Bundle) -> ModelCard:
    """Return the model card of a bundle.

    Raises:
        MissingPart: it has no architecture.
        BundleError: a file of it is damaged.
    """
    training = bundle.manifest.training
    measured = None if training is None else accuracy(training.best)
    answers = answers_of(bundle) if bundle.manifest.labels else None
    return ModelCard(bundle, _stages(bundle.architecture), measured, baseline(bundle), answers)


def accuracy(best: BestEpoch) -> ValidationTop1:
    """Return validation top-1 with its 95 % interval (Wilson's score interval)."""
    share = Share.of(round(best.val_top1 * best.val_images), best.val_images)
    return ValidationTop1(best.val_top1, best.val_images, share.low, share.high, best.epoch)


def baseline(bundle: Bundle) -> Baseline | None:
    """Return the baseline of a trained bundle; None before training, and in bundles without counts by class."""
    training, labels = bundle.manifest.training, bundle.manifest.labels
    if training is None or not sum(training.data.val_by_class) or len(training.data.val_by_class) != len(labels):
        return None
    counts = training.data.val_by_class
    largest = max(range(len(counts)), key=counts.__getitem__)
    share, measured = counts[largest] / sum(counts), accuracy(training.best)
    verdict = ""
    best = next((each for each in training.history if each.epoch == training.best.epoch), None)
    if best and best.val_class_top1 is not None and {"sampling", "class_weights"} & training.recipe.keys():
        # The recipe gives up right answers of large classes for those of small ones: the mean over the classes counts.
        if best.val_class_top1 <= 1 / sum(count > 0 for count in counts):
            verdict = "the network is no better than that in the mean over the classes"
    elif measured.val_top1 <= share:
        verdict = "the network is no better than that"
    elif measured.low <= share:
        verdict = (
            f"the network is not clearly better than that: {measured.val_images:,} images give a 95 % interval of "
            f"{measured.low * 100:.2f} to {measured.high * 100:.2f} %"
        )
    elif training.pixels and measured.val_top1 <= training.pixels.val_top1 and measured.val_top1 < 1:
        verdict = (
            f"a logistic regression on {training.pixels.side} x {training.pixels.side} pixels has "
            f"{training.pixels.val_top1 * 100:.2f} %: the network is no better than that"
        )
    return Baseline(labels[largest], share, verdict)


def _stages(architecture: Architecture) -> tuple[StageRow, ...]:
    network, classes = architecture.network, architecture.classes
    cost = network_complexity(network, architecture.resolution, classes)
    stages = zip(network.depths, network.widths, network.group_widths, cost.stages, strict=True)
    return (
        _row("stem", 1, network.stem_width, None, cost.stem),
        *(_row(f"s{i}", *stage) for i, stage in enumerate(stages, start=1)),
        _row("head", 1, classes, None, cost.head),
    )


def _row(name: str, blocks: int, width: int, group_width: int | None, cost: Cost) -> StageRow:
    return StageRow(name, blocks, width, group_width, int(cost.macs), int(cost.parameters), int(cost.activations))
