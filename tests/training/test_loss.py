"""The training loss by its definition."""

import pytest
import torch
import torch.nn.functional as F

from regnet_deploy.training.loss import training_loss
from regnet_deploy.training.recipe import Recipe

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]])
LABELS = torch.tensor([0, 2])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_that_of_pytorch(smoothing: float) -> None:
    loss = training_loss(LOGITS, LABELS, Recipe(label_smoothing=smoothing))
    assert torch.equal(loss, F.cross_entropy(LOGITS, LABELS, label_smoothing=smoothing))


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_binary_cross_entropy_is_the_sum_over_the_classes(smoothing: float) -> None:
    loss = training_loss(LOGITS, LABELS, Recipe(loss="bce", label_smoothing=smoothing))
    wanted = 0.0
    for row, label in zip(LOGITS.double(), LABELS.tolist(), strict=True):
        for index, logit in enumerate(row):
            target = smoothing / 3 + (1 - smoothing) * (index == label)
            share = torch.sigmoid(logit)
            wanted -= (target * share.log() + (1 - target) * (1 - share).log()).item() / 2
    assert loss.item() == pytest.approx(wanted, rel=1e-5)
