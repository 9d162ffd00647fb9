"""Evaluation on validation images, and the batch norm statistics for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.images.preprocessing import normalize
from regnet_deploy.training.data_loader import Batch, UnreadableImage
from regnet_deploy.training.trainer import Trainer


@dataclass(frozen=True)
class Evaluation:
    """Mean loss, top-1 accuracy as a fraction, number of images, and those that cannot be read."""

    loss: float
    top1: float
    images: int
    unreadable: tuple[UnreadableImage, ...]


def set_precise_statistics(trainer: Trainer, batches: Iterable[Batch]) -> None:
    """Set every batch norm's mean and variance to the mean over these training batches, as pycls does.

    The running averages of training lag behind the weights; these statistics are of the current weights. Batches of
    fewer than two images are skipped.
    """
    norms = [module for module in trainer.model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # makes PyTorch compute the plain average
    with torch.no_grad():
        for batch in batches:
            if len(batch.labels) > 1:
                trainer.model(trainer.images(batch))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def evaluate(trainer: Trainer, batches: Iterable[Batch], preprocessing: Preprocessing) -> Evaluation:
    """Evaluate in FP32, as the network is exported, on the pixels that the server makes of the images."""
    loss_sum, correct, images = 0.0, 0, 0
    unreadable: list[UnreadableImage] = []
    device = trainer.execution.device
    layout = torch.channels_last if trainer.execution.channels_last else torch.contiguous_format
    trainer.model.eval()
    with torch.no_grad():
        for batch in batches:
            unreadable += batch.unreadable
            if not len(batch.labels):
                continue
            inputs = torch.from_numpy(normalize(batch.pixels.numpy(), preprocessing)).to(device, memory_format=layout)
            labels = batch.labels.to(device)
            logits = trainer.model(inputs)
            loss_sum += F.cross_entropy(logits, labels, reduction="sum").item()
            correct += int((logits.argmax(1) == labels).sum())
            images += len(labels)
    trainer.model.train()
    return Evaluation(loss_sum / max(1, images), correct / max(1, images), images, tuple(unreadable))
