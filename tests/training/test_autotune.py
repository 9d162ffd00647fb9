"""The trial: the fastest way is taken where it saves enough, and compilation never stands in the way."""

import dataclasses
import time
from collections.abc import Callable

import pytest
import torch
from torch._inductor.exc import CppCompileError

from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.bundle.training import Autotune, Execution
from regnet_deploy.errors import UsageError
from regnet_deploy.models.anynet import AnyNet
from regnet_deploy.space.network import Network
from regnet_deploy.training import autotune, execution
from regnet_deploy.training.autotune import autotune_execution
from regnet_deploy.training.data_loader import Batch
from regnet_deploy.training.execution import ExecutionRequest
from regnet_deploy.training.recipe import Recipe
from regnet_deploy.training.trainer import Trainer, make_trainer

PLAIN = Execution("cpu", "fp32", False)
LAST = Execution("cpu", "fp32", True)
BATCH = Batch(torch.zeros(4, 16, 16, 3, dtype=torch.uint8), torch.zeros(4, 3), torch.tensor([0, 1, 2, 0]), [])


@pytest.fixture
def make(network: Network, recipe: Recipe, preprocessing: Preprocessing) -> Callable[[Execution], Trainer]:
    return lambda way: make_trainer(AnyNet(network, 3, seed=0), way, recipe, preprocessing)


def paced(monkeypatch: pytest.MonkeyPatch, seconds: dict[Execution, float]) -> Callable[[Execution], Trainer]:
    """Learners whose steps take just so long, on a clock of their own."""
    now = [0.0]

    class Paced:
        def __init__(self, way: Execution) -> None:
            self.way = way

        def step(self, batch: Batch, rate: float) -> None:
            now[0] += seconds[self.way]

        def synchronize(self) -> None:
            pass

    monkeypatch.setattr(autotune.time, "perf_counter", lambda: now[0])
    return Paced


@pytest.mark.parametrize(("last_ms", "chosen"), [(50, LAST), (90, LAST), (96, PLAIN), (100, PLAIN), (150, PLAIN)])
def test_another_way_is_taken_where_it_saves_five_percent(
    monkeypatch: pytest.MonkeyPatch, last_ms: float, chosen: Execution
) -> None:
    make = paced(monkeypatch, {PLAIN: 0.1, LAST: last_ms / 1e3})
    found = autotune_execution(ExecutionRequest("cpu", "fp32"), make, BATCH, 100)
    assert found.execution == chosen
    assert found.step_ms == {str(PLAIN): 100.0, str(LAST): last_ms}


def test_what_was_asked_for_is_not_tried(make: Callable[[Execution], Trainer]) -> None:
    found = autotune_execution(ExecutionRequest("cpu", "fp32", "on", "off"), make, BATCH, 100)
    assert found == Autotune(execution=LAST, step_ms={}, reason="as asked")


def test_a_real_trial_measures_every_way_and_spends_no_step_of_the_run(make: Callable[[Execution], Trainer]) -> None:
    start = time.perf_counter()
    found = autotune_execution(ExecutionRequest("cpu"), make, BATCH, 100)
    ways = ExecutionRequest("cpu").candidates()
    assert set(found.step_ms) == {str(way) for way in ways}
    assert all(0 < value < (time.perf_counter() - start) * 1e3 for value in found.step_ms.values())
    assert found.execution in ways
    assert Autotune.from_json(found.to_json()) == found


def test_compilation_without_a_compiler_is_refused_where_asked_for_and_left_out_where_not(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[Execution], Trainer]
) -> None:
    monkeypatch.setattr(execution.shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match=r"--compile on: torch.compile finds no C compiler here"):
        autotune_execution(ExecutionRequest("cpu", "fp32", "off", "on"), make, BATCH, 100)
    assert autotune_execution(ExecutionRequest("cpu", "fp32", "off", "auto"), make, BATCH, 10**9).execution == PLAIN


def test_a_compiler_that_fails_is_one_line(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[Execution], Trainer]
) -> None:
    def failing(way: Execution) -> Trainer:
        def forward(images: torch.Tensor) -> torch.Tensor:
            raise CppCompileError(["c++", "x.cpp"], "no such header\nand a long log")

        return dataclasses.replace(make(way.replace(compiled=False)), forward=forward)

    monkeypatch.setattr(autotune, "can_compile", lambda device: True)
    with pytest.raises(UsageError, match=r"torch\.compile fails here \(.*\); leave it off") as caught:
        autotune_execution(ExecutionRequest("cpu", "fp32", "off", "on"), failing, BATCH, 100)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what torch.compile warns of is PyTorch's
@pytest.mark.skipif(not execution.can_compile("cpu"), reason="needs a C++ compiler")
def test_a_compiled_step_is_the_same_step(make: Callable[[Execution], Trainer]) -> None:
    plain, compiled = make(PLAIN), make(PLAIN.replace(compiled=True))
    for _ in range(3):
        losses = [trainer.step(BATCH, 0.05)[0].item() for trainer in (plain, compiled)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)
