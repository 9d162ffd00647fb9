"""The first head of a fine-tuning: a linear probe of the training images, or the head that the weights have."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from regnet_deploy.bundle.training import LinearProbe
from regnet_deploy.training.data_loader import number_batches
from regnet_deploy.training.distributed import ProcessGroup
from regnet_deploy.training.evaluate import Features, features_of
from regnet_deploy.training.linear_probe import LinearClassifier, fit_linear_classifier, probe_images
from regnet_deploy.training.run import (
    DivergenceError,
    TrainingCallbacks,
    TrainingRun,
    in_each_process,
    load_batches,
    nothing_left,
    record_unreadable,
    stoppable,
    until_stopped,
    validate,
    weights_of,
)

#: Images in a batch for the features of the linear probe.
PROBE_BATCH = 64


def set_initial_head(run: TrainingRun, callbacks: TrainingCallbacks) -> None:
    """Initialize the head by a linear probe of the training images, unless it fits already, and evaluate it.

    Raises:
        DataError: no training image, or no validation image, could be read.
        DivergenceError: the features are not finite.
        Interrupted: the callbacks said so; the checkpoint is of this moment.
    """
    begin = time.perf_counter()
    fitted = _fit_head(run, callbacks) if run.unaugmented else (0, None)
    if fitted is None:
        callbacks.probe(None)
        return
    result = validate(run, run.trainer, callbacks)
    mirrored = validate(run, run.trainer, callbacks, mirrored=True) if run.trainer.recipe.flip_probe else None
    images, l2 = fitted
    run.state.probe = LinearProbe(
        val_top1=result.top1,
        val_loss=result.loss,
        val_images=result.images,
        train_images=images,
        l2=l2,
        seconds=time.perf_counter() - begin,
        mirrored_top1=mirrored.top1 if mirrored else None,
    )
    run.best = weights_of(run.trainer.model)
    callbacks.probe(run.state.probe)
    callbacks.save()


def _fit_head(run: TrainingRun, callbacks: TrainingCallbacks) -> tuple[int, float | None] | None:
    """Return the number of images that the head is fitted to, and the regularization; None if it would take too long.

    Raises:
        DataError: no training image could be read.
        DivergenceError: the features are not finite.
    """
    dataset, trainer = run.unaugmented, run.trainer
    if dataset is None:
        raise ValueError("the run has no images to fit its head to")
    head = trainer.model.get_submodule("head.fc")
    if not isinstance(head, nn.Linear):
        raise TypeError("the head is not linear")
    labels = [image.label for image in dataset.subset.images]
    numbers = probe_images(labels, head.in_features, head.out_features, trainer.recipe.seed)
    if not numbers:
        return None
    batches = [[numbers[i] for i in batch] for batch in number_batches(len(numbers), PROBE_BATCH)]

    def counted() -> Iterator[Any]:
        done = 0
        for batch in until_stopped(load_batches(run, dataset, batches), callbacks):
            yield batch
            done += len(batch.labels) + len(batch.unreadable)
            callbacks.features(done, len(numbers))

    with stoppable(run, trainer.model, callbacks):
        features_here = features_of(trainer, counted(), run.preprocessing)
    features = _of_all(run.group, features_here)
    record_unreadable(run, features.unreadable)
    if not len(features.labels):
        raise nothing_left("training", run)
    if not features.values.isfinite().all():
        raise DivergenceError("the features of the bundle's weights are not finite: train with --from-scratch")

    def fit(look: Callable[[], None]) -> LinearClassifier:
        return fit_linear_classifier(
            features.values, features.labels, head.out_features, trainer.recipe.seed, between=look
        )

    fitted = in_each_process(run, callbacks, fit)
    with torch.no_grad():
        head.weight.copy_(fitted.weight)
        head.bias.copy_(fitted.bias)
    return len(features.labels), fitted.l2


def _of_all(group: ProcessGroup, own: Features) -> Features:
    """Return the features of the images of all processes."""
    if group.size == 1:
        return own
    all_parts = group.gather(own)
    unreadable = tuple(each for part in all_parts for each in part.unreadable)
    parts = [part for part in all_parts if len(part.labels)] or [own]  # without images the width is not known
    return Features(torch.cat([part.values for part in parts]), torch.cat([part.labels for part in parts]), unreadable)
