"""How good a network is on images that it has not seen, with batch norm statistics that are true of its weights."""

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
    """What the validation images said: mean loss, share of right answers, images that counted, and that did not."""

    loss: float
    top1: float
    images: int
    unreadable: tuple[UnreadableImage, ...]


def set_precise_statistics(learner: Trainer, batches: Iterable[Batch]) -> None:
    """Set every batch norm's mean and variance to the mean over these training batches, as pycls does.

    The running averages of training lag behind the weights; these are of the weights as they are. Batches of fewer than
    two images are left out.
    """
    norms = [module for module in learner.model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # PyTorch's word for the plain average
    with torch.no_grad():
        for batch in batches:
            if len(batch.labels) > 1:
                learner.model(learner.images(batch))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def evaluate(learner: Trainer, batches: Iterable[Batch], preprocessing: Preprocessing) -> Evaluation:
    """Evaluate in FP32, as the network will be exported, on the pixels that the server would make of the files."""
    loss_sum, right, images = 0.0, 0, 0
    unreadable: list[UnreadableImage] = []
    device = learner.execution.device
    layout = torch.channels_last if learner.execution.channels_last else torch.contiguous_format
    learner.model.eval()
    with torch.no_grad():
        for batch in batches:
            unreadable += batch.unreadable
            if not len(batch.labels):
                continue
            inputs = torch.from_numpy(normalize(batch.pixels.numpy(), preprocessing)).to(device, memory_format=layout)
            labels = batch.labels.to(device)
            logits = learner.model(inputs)
            loss_sum += F.cross_entropy(logits, labels, reduction="sum").item()
            right += int((logits.argmax(1) == labels).sum())
            images += len(labels)
    learner.model.train()
    return Evaluation(loss_sum / max(1, images), right / max(1, images), images, tuple(unreadable))
