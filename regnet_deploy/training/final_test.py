"""The accuracy of the chosen weights on the images that no choice saw: measured once, at the end of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.bundle.measurements import EvaluationRecord
from regnet_deploy.bundle.training import UnseenAccuracy, UnseenImages
from regnet_deploy.errors import DataError
from regnet_deploy.evaluation.metrics import metrics, softmax
from regnet_deploy.evaluation.record import MODEL, evaluated_variant
from regnet_deploy.images.dataset import ImageDataset, build_dataset
from regnet_deploy.images.image_check import cache_file, check_images
from regnet_deploy.images.image_source import MAX_UNREADABLE
from regnet_deploy.images.listing import list_images
from regnet_deploy.progress import Progress
from regnet_deploy.training.checkpoint import Checkpoint, RunDescription
from regnet_deploy.training.chosen_weights import classify
from regnet_deploy.training.data_loader import EvaluationDataset, ImageSubset


@dataclass(frozen=True, eq=False)
class FinalTest:
    """What is measured on the images to test on.

    Attributes:
        accuracy: top-1.
        evaluation: the same as `evaluate` writes it.
        unreadable: name -> reason, of images that cannot be read any more.
    """

    accuracy: UnseenAccuracy
    evaluation: EvaluationRecord
    unreadable: Mapping[str, str]


def unseen_images(dataset: ImageDataset, remarks: tuple[str, ...] = ()) -> UnseenImages | None:
    """Return the record of the images to test on; None if there are none."""
    if not dataset.test:
        return None
    return UnseenImages(
        images=len(dataset.test),
        split=dataset.test_split,
        held_out=dataset.holds_test_out,
        digest=dataset.test_digest,
        by_class=dataset.counts(dataset.test),
        remarks=remarks,
    )


def final_test(
    checkpoint: Checkpoint,
    dataset: ImageDataset,
    device: str,
    progress: Progress,
    stopping: Callable[[], bool] = lambda: False,
) -> FinalTest:
    """Measure the best weights of a run on the images to test on, in FP32 on the pixels that the server makes of them.

    Args:
        checkpoint: of the run.
        dataset: its images.
        device: ``cpu`` or ``cuda``.
        progress: receives the images done.
        stopping: whether to end now, for example after a signal.

    Raises:
        DataError: more than a tenth of the images cannot be read.
        Interrupted: ``stopping`` said so.
    """
    preprocessing = Preprocessing.from_json(checkpoint.identity["preprocessing"])
    total = len(dataset.test)
    progress.step("testing the chosen weights", total)
    images = EvaluationDataset(ImageSubset(dataset.source, dataset.test), preprocessing)
    found = classify(checkpoint, images, device, progress, stopping)
    unreadable = found.unreadable
    if len(unreadable) > MAX_UNREADABLE * total:
        name, reason = next(iter(unreadable.items()))
        raise DataError(
            f"{len(unreadable):,} of {total:,} test images can be read no more ({name}: {reason}): does "
            f"{dataset.source.root} still exist? Repeat the command when they are there again; --finish does without "
            "them"
        )
    figures = metrics(found.labels, softmax(found.logits), checkpoint.description.labels)
    top1, (share, label) = figures.top1, figures.baseline
    evaluation = EvaluationRecord(
        data=checkpoint.description.data.folder,
        split="test" if dataset.holds_test_out else dataset.name(dataset.test[0]).split("/")[0],
        images=figures.images,
        unreadable=len(unreadable),
        baseline=share,
        baseline_label=label,
        variants={MODEL: evaluated_variant(f"torch {torch.__version__}", figures)},
        held_out=dataset.holds_test_out or None,
    )
    accuracy = UnseenAccuracy(top1=top1.value, low=top1.low, high=top1.high, images=figures.images)
    return FinalTest(accuracy, evaluation, unreadable)


def find_test_images(
    run: RunDescription, seed: int, data: str | Path | None, directory: Path, progress: Progress
) -> ImageDataset:
    """Return the images of a run that is not continued, if those to test on are the same.

    Args:
        run: the run.
        seed: of its recipe.
        data: the folder of images; None is where it was.
        directory: run directory, which has the results of the image check.
        progress: receives the images checked.

    Raises:
        DataError: the folder cannot be read, or has other images to test on.
    """
    listing = list_images(data or run.root, test=True, progress=progress)
    checked = check_images(listing.source, cache_file(directory, listing.root), progress)
    dataset = build_dataset(listing, checked, val_split=run.val_split, test_split=run.test_split, seed=seed)
    if run.data.test is None or dataset.test_digest != run.data.test.digest:
        raise DataError(f"{listing.root} has other images to test on than the run began with")
    return dataset
