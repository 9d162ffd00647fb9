"""The pixel baseline: a logistic regression on small pixels, fitted before the first step of a run from random weights.

A network that is no better has learned nothing that needs a network. The same classifier tells whether images may be
mirrored: of letters or arrows it recognizes far fewer if they are mirrored, of photos about as many.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from regnet_deploy.bundle.training import PixelBaseline
from regnet_deploy.images.dataset import stratified_order
from regnet_deploy.training.data_loader import EvaluationDataset, number_batches
from regnet_deploy.training.linear_probe import LinearClassifier, fit_linear_classifier
from regnet_deploy.training.run import (
    TrainingCallbacks,
    TrainingRun,
    in_each_process,
    load_batches,
    nothing_left,
    record_unreadable,
    until_stopped,
)

#: Width and height to which images are averaged, in pixels.
SIDE = 8
#: Most multiplications of an evaluation of the loss, and most images: seconds on one core.
_MULTIPLICATIONS = 10_000_000
_IMAGES = 10_000
#: Fewest images of a class, on average, for which the classifier says something.
_IMAGES_OF_A_CLASS = 3
_BATCH = 64


def measure_pixel_baseline(run: TrainingRun, callbacks: TrainingCallbacks) -> None:
    """Fit the classifier and record what it reaches in the state of the run, unless there are too many classes for it.

    Raises:
        DataError: no training image, or no validation image, could be read.
        Interrupted: the callbacks said so; the checkpoint is of this moment.
    """
    begin = time.perf_counter()
    dataset = run.unaugmented
    if dataset is None:
        raise ValueError("the run has no images without augmentation")
    seed = run.trainer.recipe.seed
    labels = [image.label for image in dataset.subset.images]
    classes = max(labels) + 1
    width = SIDE * SIDE * run.preprocessing.channels
    count = min(len(labels), _IMAGES, _MULTIPLICATIONS // (width * classes))
    if count < min(len(labels), _IMAGES_OF_A_CLASS * classes):
        callbacks.pixels(None)
        return
    inputs, truth = _small(run, dataset, sorted(stratified_order(labels, seed)[:count]), callbacks)
    of_validation = stratified_order([image.label for image in run.validation.subset.images], seed)[:_IMAGES]
    tested, tested_truth = _small(run, run.validation, sorted(of_validation), callbacks)
    if not len(truth) or not len(tested_truth):
        raise nothing_left("training" if not len(truth) else "validation", run)

    if all(bool((images == images[:, :1]).all()) for images in (inputs, tested)):
        inputs, tested = inputs[:, :1], tested[:, :1]  # gray images, whatever the network takes

    def tests(look: Callable[[], None]) -> list[tuple[Tensor, Tensor]]:
        def fitted(images: Tensor, to: Tensor) -> LinearClassifier:
            return fit_linear_classifier(images.flatten(1), to, classes, seed, between=look)

        answers = [_right(fitted(inputs, truth), tested, tested_truth)]
        # Each half of the training images is tested by a fit to the other: few validation images decide nothing.
        order = torch.tensor(stratified_order(truth.tolist(), seed))
        for fit_to, held_out in ((order[::2], order[1::2]), (order[1::2], order[::2])):
            if len(fit_to) and len(held_out):
                half = fitted(inputs[fit_to], truth[fit_to])
                answers.append(_right(half, inputs[held_out], truth[held_out]))
        return answers

    answers = in_each_process(run, callbacks, tests)
    right, mirrored = (torch.cat([each[which] for each in answers]) for which in (0, 1))
    own = PixelBaseline(
        val_top1=answers[0][0].double().mean().item(),
        val_images=len(tested_truth),
        train_images=len(truth),
        side=SIDE,
        tested=len(right),
        right=int(right.sum()),
        mirrored_right=int(mirrored.sum()),
        right_once=int((right != mirrored).sum()),
        seconds=time.perf_counter() - begin,
    )
    run.state.pixels = run.group.first(lambda: own)  # the time of the others differs
    callbacks.pixels(run.state.pixels)
    callbacks.save()


def _small(
    run: TrainingRun, dataset: EvaluationDataset, numbers: list[int], callbacks: TrainingCallbacks
) -> tuple[Tensor, Tensor]:
    """Return images ``(n, 1 or channels, 8, 8)`` float32 from 0 to 1, with labels ``(n,)``."""
    batches = [[numbers[i] for i in batch] for batch in number_batches(len(numbers), _BATCH)]
    small, labels = [], []

    def counted() -> Iterator[Any]:
        done = 0
        for batch in until_stopped(load_batches(run, dataset, batches), callbacks):
            yield batch
            done += len(batch.labels) + len(batch.unreadable)
            callbacks.features(done, len(numbers))

    for batch in counted():
        record_unreadable(run, batch.unreadable)
        if len(batch.labels):
            pixels = batch.pixels.permute(0, 3, 1, 2).float() / 255
            small.append(F.adaptive_avg_pool2d(pixels, SIDE))
            labels.append(batch.labels)
    parts = [part for each in run.group.gather(list(zip(small, labels, strict=True))) for part in each]
    if not parts:
        return torch.empty(0, 1, SIDE, SIDE), torch.empty(0, dtype=torch.int64)
    return torch.cat([images for images, _ in parts]), torch.cat([truth for _, truth in parts])


def _right(classifier: LinearClassifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each image whether it is recognized, and whether its mirror image is."""

    def recognized(pixels: Tensor) -> Tensor:
        return F.linear(pixels.flatten(1), classifier.weight, classifier.bias).argmax(1) == labels

    return recognized(images), recognized(images.flip(3))
