"""Evaluation: statistics that are true of the weights, and numbers that another program would get too."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.images.dataset import ImageDataset
from regnet_deploy.images.preprocessing import load_pixels, normalize
from regnet_deploy.training.data_loader import (
    EvaluationDataset,
    ImageSubset,
    TrainingDataset,
    epoch_batches,
    load,
    number_batches,
)
from regnet_deploy.training.evaluate import evaluate, evaluation_of, set_precise_statistics
from regnet_deploy.training.recipe import Recipe
from regnet_deploy.training.trainer import Trainer


def test_precise_statistics_are_the_mean_over_the_batches(
    trainer: Trainer, views: TrainingDataset, recipe: Recipe
) -> None:
    batches = list(load(views, epoch_batches(recipe, 0, views.labels), 0, pin=False))
    stem = [trainer.model.stem.conv(trainer.images(batch)).detach() for batch in batches]
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    set_precise_statistics(trainer, batches)
    norm = trainer.model.stem.bn
    torch.testing.assert_close(norm.running_mean, torch.stack([x.mean((0, 2, 3)) for x in stem]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([x.var((0, 2, 3)) for x in stem]).mean(0))
    assert norm.num_batches_tracked == len(batches)
    assert {module.momentum for module in trainer.model.modules() if isinstance(module, nn.BatchNorm2d)} == {0.1}
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.named_parameters())
    assert trainer.model.training


def test_the_figures_are_those_of_one_batch_of_all_images(
    trainer: Trainer, folder: ImageDataset, preprocessing: Preprocessing
) -> None:
    views = EvaluationDataset(ImageSubset(folder.source, folder.val), preprocessing)
    result = evaluate(trainer, load(views, number_batches(len(folder.val), 5), 0, pin=False), preprocessing)
    assert trainer.model.training
    pixels = np.stack(
        [load_pixels((folder.source.root / folder.name(file)).read_bytes(), preprocessing) for file in folder.val]
    )
    labels = torch.tensor([file.label for file in folder.val])
    trainer.model.eval()
    with torch.no_grad():
        logits = trainer.model(torch.from_numpy(normalize(pixels, preprocessing)))
    assert result.images == 12
    assert result.top1 == (logits.argmax(1) == labels).sum().item() / 12
    right = [int((logits[labels == each].argmax(1) == each).sum()) for each in range(3)]
    assert result.by_class == tuple((4, count) for count in right)
    assert result.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)


def test_each_class_counts_the_same_in_the_mean_over_classes() -> None:
    result = evaluation_of(3.0, ((8, 8), (2, 1), (0, 0)), ())
    assert (result.top1, result.images, result.class_top1) == (0.9, 10, 0.75)
    assert evaluation_of(3.0, ((5, 4), (5, 2)), ()).class_top1 is None  # it is top1
    assert evaluation_of(0.0, (), ()).images == 0


def test_an_image_that_is_gone_does_not_count(
    trainer: Trainer, folder: ImageDataset, preprocessing: Preprocessing
) -> None:
    (folder.source.root / folder.name(folder.val[0])).unlink()
    views = EvaluationDataset(ImageSubset(folder.source, folder.val), preprocessing)
    result = evaluate(trainer, load(views, number_batches(len(folder.val), 1), 0, pin=False), preprocessing)
    assert result.images == 11
    assert [each.name for each in result.unreadable] == [folder.name(folder.val[0])]
