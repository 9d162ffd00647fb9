"""Steps that are abandoned: whatever else the recipe and the execution do in a step, it leaves no trace."""

from __future__ import annotations

import itertools

import pytest
import torch

from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.bundle.training import Execution
from regnet_deploy.models.anynet import AnyNet, Residual
from regnet_deploy.space.network import Network
from regnet_deploy.training.data_loader import Batch
from regnet_deploy.training.recipe import Recipe
from regnet_deploy.training.slow_steps import SlowSteps
from regnet_deploy.training.trainer import StepAbandoned, Trainer, make_trainer

NETWORK = Network((1, 2), (16, 24), (8, 8), (1.0, 1.0), se_ratio=0.25, stem_stride=1, stem_width=8)
RECIPE = Recipe(batch_size=8, stochastic_depth=0.5, mixup=0.2, ema_decay=0.9, class_weights="balanced", seed=3)


def state_of(trainer: Trainer) -> list[torch.Tensor]:
    assert trainer.average
    scaling = trainer.scaling.state() if trainer.scaling else {}
    parts = trainer.model.state_dict(), trainer.optimizer_state(), trainer.average.state_dict(), scaling
    return [value.clone() for part in parts for value in part.values()]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_step_in_parts_with_stochastic_depth_is_abandoned_anywhere_and_done_again_to_the_same_bits(
    preprocessing: Preprocessing, precision: str
) -> None:
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (8, 16, 16, 3), generator=draw, dtype=torch.uint8)
    batch = Batch(pixels, torch.zeros(8, 3), torch.tensor([0, 0, 0, 0, 0, 1, 1, 2]), [])

    def run(ends_at: int | None) -> tuple[list[torch.Tensor], int]:
        execution = Execution("cpu", precision, channels_last=True, compiled=False, micro_batch=4)
        trainer = make_trainer(AnyNet(NETWORK, 3, seed=0), execution, RECIPE, preprocessing, class_counts=(5, 2, 1))
        trainer.step(batch, 0.1, (0, 0))
        trainer.follow()
        looks, before = itertools.count(), state_of(trainer)
        steps = SlowSteps(trainer, lambda: next(looks) == ends_at)
        if ends_at is not None:
            with pytest.raises(StepAbandoned):
                steps.step(batch, 0.1, (0, 1))
            assert all(map(torch.equal, before, state_of(trainer)))
            assert all(each.factor is None for each in trainer.model.modules() if isinstance(each, Residual))
        steps.step(batch, 0.1, (0, 1))
        trainer.follow()
        return state_of(trainer), next(looks)

    whole, looks = run(None)
    for ends_at in (0, looks // 3, looks // 2, looks - 2):
        assert all(map(torch.equal, whole, run(ends_at)[0]))
