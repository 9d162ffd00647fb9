"""Evaluation on validation images, and the batch norm statistics for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.images.preprocessing import normalize
from regnet_deploy.models.anynet import AnyNet
from regnet_deploy.training.data_loader import Batch, UnreadableImage
from regnet_deploy.training.distributed import ProcessGroup
from regnet_deploy.training.gradient_sum import running_statistics
from regnet_deploy.training.trainer import Trainer


@dataclass(frozen=True)
class Evaluation:
    """Mean loss, top-1 accuracy as a fraction, number of images, and those that cannot be read.

    Of each class, ``by_class`` has the number of images and of those that are right.
    """

    loss: float
    top1: float
    images: int
    unreadable: tuple[UnreadableImage, ...]
    by_class: tuple[tuple[int, int], ...] = ()

    @property
    def class_top1(self) -> float | None:
        """Mean over the classes of their top-1 accuracy; None if they have equally many images: it is ``top1`` then."""
        present = [(images, right) for images, right in self.by_class if images]
        if len({images for images, _ in present}) <= 1:
            return None
        return sum(right / images for images, right in present) / len(present)


@dataclass(frozen=True)
class Features:
    """Features ``(n, width)`` float32 with labels ``(n,)`` int64, on the CPU, and images that cannot be read."""

    values: Tensor
    labels: Tensor
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
            if trainer.can_use(batch):
                trainer.model(trainer.images(batch))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def average_statistics(trainer: Trainer, group: ProcessGroup) -> None:
    """Replace precise statistics by their means over the batches of all processes.

    Raises:
        ProcessLost: another process has ended.
    """
    statistics = running_statistics(trainer.model)
    if group.size == 1 or not statistics:
        return
    norm = next(module for module in trainer.model.modules() if isinstance(module, nn.BatchNorm2d))
    batches = 0 if norm.num_batches_tracked is None else int(norm.num_batches_tracked)
    values = torch.cat(statistics).double().cpu() * batches
    sums = torch.tensor(group.sum([*values.tolist(), batches]), dtype=torch.float64)
    means = sums[:-1] / sums[-1].clamp(min=1)
    for value, mean in zip(statistics, torch.split(means, [value.numel() for value in statistics]), strict=True):
        value.copy_(mean)


def features_of(trainer: Trainer, batches: Iterable[Batch], preprocessing: Preprocessing) -> Features:
    """Return the inputs of the linear classifier in FP32, for the pixels that the server makes of the images."""
    values, labels = [], []
    unreadable: list[UnreadableImage] = []
    trainer.model.eval()
    with torch.no_grad():
        for batch in batches:
            unreadable += batch.unreadable
            if len(batch.labels):
                inputs = _inputs(trainer, batch, preprocessing)
                values.append(cast(AnyNet, trainer.model).pooled_features(inputs).cpu())
                labels.append(batch.labels)
    trainer.train_mode()
    if not values:
        return Features(torch.empty(0, 0), torch.empty(0, dtype=torch.int64), tuple(unreadable))
    return Features(torch.cat(values), torch.cat(labels), tuple(unreadable))


def evaluate(trainer: Trainer, batches: Iterable[Batch], preprocessing: Preprocessing) -> Evaluation:
    """Evaluate in FP32, as the network is exported, on the pixels that the server makes of the images."""
    loss_sum, counts = 0.0, torch.zeros(2, 0, dtype=torch.int64)
    unreadable: list[UnreadableImage] = []
    device = trainer.execution.device
    trainer.model.eval()
    with torch.no_grad():
        for batch in batches:
            unreadable += batch.unreadable
            if not len(batch.labels):
                continue
            inputs = _inputs(trainer, batch, preprocessing)
            labels = batch.labels.to(device)
            logits = trainer.model(inputs)
            loss_sum += F.cross_entropy(logits, labels, reduction="sum").item()
            right = (logits.argmax(1) == labels).cpu()
            of_batch = [torch.bincount(each, minlength=logits.shape[1]) for each in (batch.labels, batch.labels[right])]
            counts = torch.stack(of_batch) + (counts if counts.numel() else 0)
    trainer.train_mode()
    by_class = tuple((int(images), int(right)) for images, right in counts.T)
    return evaluation_of(loss_sum, by_class, tuple(unreadable))


def evaluation_of(
    loss_sum: float, by_class: tuple[tuple[int, int], ...], unreadable: tuple[UnreadableImage, ...]
) -> Evaluation:
    """Return the result of a sum of losses, and of the images of each class and those of them that are right."""
    images, right = (sum(each) for each in zip(*by_class, strict=True)) if by_class else (0, 0)
    return Evaluation(loss_sum / max(1, images), right / max(1, images), images, unreadable, by_class)


def _inputs(trainer: Trainer, batch: Batch, preprocessing: Preprocessing) -> Tensor:
    layout = torch.channels_last if trainer.execution.channels_last else torch.contiguous_format
    pixels = torch.from_numpy(normalize(batch.pixels.numpy(), preprocessing))
    return pixels.to(trainer.execution.device, memory_format=layout)
