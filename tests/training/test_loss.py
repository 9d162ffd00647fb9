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


WEIGHTS = torch.tensor([0.5, 1.0, 4.0])


def test_class_weights_are_those_of_pytorch_with_the_number_of_images_as_divisor() -> None:
    loss = training_loss(LOGITS, LABELS, Recipe(), WEIGHTS)
    wanted = F.cross_entropy(LOGITS, LABELS, weight=WEIGHTS, reduction="sum") / 2
    torch.testing.assert_close(loss, wanted)
    # PyTorch's mean divides by the sum of the weights
    torch.testing.assert_close(loss * 2 / (0.5 + 4.0), F.cross_entropy(LOGITS, LABELS, weight=WEIGHTS))


@pytest.mark.parametrize("name", ["cross-entropy", "bce"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_an_image_of_weight_4_counts_as_four_images(name: str, smoothing: float) -> None:
    recipe = Recipe(loss=name, label_smoothing=smoothing)
    loss = training_loss(LOGITS, LABELS, recipe, torch.tensor([1.0, 1.0, 4.0]))
    again = torch.tensor([0, 1, 1, 1, 1])
    torch.testing.assert_close(loss, training_loss(LOGITS[again], LABELS[again], recipe) * 5 / 2)


@pytest.mark.parametrize("name", ["cross-entropy", "bce"])
def test_the_weighted_loss_of_a_batch_is_the_mean_of_those_of_its_parts(name: str) -> None:
    recipe = Recipe(loss=name)
    parts = [training_loss(LOGITS[i : i + 1], LABELS[i : i + 1], recipe, WEIGHTS) for i in (0, 1)]
    torch.testing.assert_close(training_loss(LOGITS, LABELS, recipe, WEIGHTS), torch.stack(parts).mean())
