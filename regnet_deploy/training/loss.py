"""The training loss: cross-entropy or binary cross-entropy, with label smoothing, mixed labels and class weights."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from regnet_deploy.training.recipe import Recipe


def training_loss(logits: Tensor, labels: Tensor, recipe: Recipe, weights: Tensor | None = None) -> Tensor:
    """Return the mean loss of a batch.

    Binary cross-entropy is summed over the classes, so that a learning rate does not depend on their number; its
    smoothed targets are those of the cross-entropy.

    Args:
        logits: ``(n, classes)`` float32.
        labels: ``(n,)`` int64.
        recipe: names the loss and the label smoothing.
        weights: of the images of each class, ``(classes,)`` float32; None if all are 1. The weighted losses are divided
            by the number of images, not by the sum of their weights, so that the loss of a batch is the mean of those
            of its parts.
    """
    smoothing = recipe.label_smoothing
    if recipe.loss == "cross-entropy":
        if weights is None:
            return F.cross_entropy(logits, labels, label_smoothing=smoothing)
        losses = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
    else:
        targets = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
        targets = targets * (1 - smoothing) + smoothing / logits.shape[1]
        if weights is None:
            return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(labels)
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1)
    return (losses * weights[labels]).mean()
