"""Compilation: what its compilers cannot do is one line, and a compiled step is the same step."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch._inductor.exc import CppCompileError

from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.bundle.training import Execution
from regnet_deploy.models.anynet import AnyNet
from regnet_deploy.space.network import Network
from regnet_deploy.training import execution
from regnet_deploy.training.compilation import compile_error
from regnet_deploy.training.data_loader import Batch
from regnet_deploy.training.recipe import Recipe
from regnet_deploy.training.trainer import Trainer, make_trainer

PLAIN = Execution("cpu", "fp32", False)
BATCH = Batch(torch.zeros(4, 16, 16, 3, dtype=torch.uint8), torch.zeros(4, 3), torch.tensor([0, 1, 2, 0]), [])


@pytest.fixture
def make(network: Network, recipe: Recipe, preprocessing: Preprocessing) -> Callable[[Execution], Trainer]:
    return lambda way: make_trainer(AnyNet(network, 3, seed=0), way, recipe, preprocessing)


def test_a_compiler_that_fails_is_one_line(make: Callable[[Execution], Trainer]) -> None:
    def forward(images: torch.Tensor) -> torch.Tensor:
        raise CppCompileError(["c++", "x.cpp"], "no such header\nand a long log")

    error = compile_error(dataclasses.replace(make(PLAIN), forward=forward), BATCH)
    assert error
    assert "\n" not in error


def test_a_step_that_works_is_no_error(make: Callable[[Execution], Trainer]) -> None:
    assert compile_error(make(PLAIN), BATCH) is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what torch.compile warns of is PyTorch's
@pytest.mark.skipif(not execution.can_compile("cpu"), reason="needs a C++ compiler")
def test_a_compiled_step_is_the_same_step(make: Callable[[Execution], Trainer]) -> None:
    plain, compiled = make(PLAIN), make(PLAIN.replace(compiled=True))
    for _ in range(3):
        losses = [trainer.step(BATCH, 0.05)[0].item() for trainer in (plain, compiled)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)
