"""The training loss: cross-entropy or binary cross-entropy, with label smoothing and mixed labels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from regnet_deploy.training.recipe import Recipe


def training_loss(logits: Tensor, labels: Tensor, recipe: Recipe) -> Tensor:
    """Return the mean loss of a batch.

    Binary cross-entropy is summed over the classes, so that a learning rate does not depend on their number; its
    smoothed targets are those of the cross-entropy.

    Args:
        logits: ``(n, classes)`` float32.
        labels: ``(n,)`` int64.
        recipe: names the loss and the label smoothing.
    """
    smoothing = recipe.label_smoothing
    if recipe.loss == "cross-entropy":
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)
    targets = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    targets = targets * (1 - smoothing) + smoothing / logits.shape[1]
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(labels)
