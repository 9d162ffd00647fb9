"""Stochastic depth: by its definition, of seed, epoch, step and place in the batch alone, and gone after the step."""

import copy
import dataclasses
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from regnet_deploy.bundle import Bundle, create_bundle
from regnet_deploy.bundle.manifest import Architecture, Preprocessing
from regnet_deploy.bundle.training import Execution
from regnet_deploy.errors import UsageError
from regnet_deploy.models.anynet import AnyNet, Residual
from regnet_deploy.space.network import Network
from regnet_deploy.training.data_loader import Batch
from regnet_deploy.training.distributed import ProcessGroup
from regnet_deploy.training.recipe import Recipe
from regnet_deploy.training.stochastic_depth import StochasticDepth, depth_rates, stochastic_depth
from regnet_deploy.training.train import TrainOptions, train
from regnet_deploy.training.trainer import make_trainer

DEEP = Network((2, 3), (16, 24), (8, 8), (1.0, 1.0), se_ratio=0.25, stem_stride=1, stem_width=8)
RECIPE = Recipe(batch_size=8, stochastic_depth=0.5, seed=3)


def batch_of(count: int) -> Batch:
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 16, 16, 3), generator=draw, dtype=torch.uint8)
    return Batch(pixels, torch.zeros(count, 3), torch.randint(0, 3, (count,), generator=draw), [])


def depth_of(recipe: Recipe = RECIPE, group: ProcessGroup | None = None) -> StochasticDepth:
    depth = stochastic_depth(AnyNet(DEEP, 3, seed=0), recipe, *([group] if group else []))
    assert depth is not None
    return depth


def reference(x: Tensor, rate: float, kept: Tensor) -> Tensor:
    """Return what ``torchvision.ops.stochastic_depth(x, rate, "row", training=True)`` does, with its noise given."""
    survival = 1.0 - rate
    noise = kept.to(x.dtype).view(-1, *[1] * (x.ndim - 1))
    if survival > 0.0:
        noise = noise / survival
    return x * noise


class ReferenceResidual(nn.Module):
    """A block with its stochastic depth where torchvision and timm have it: before the addition."""

    def __init__(self, block: Residual, rate: float, kept: Tensor) -> None:
        super().__init__()
        self.block, self.rate, self.kept = block, rate, kept

    def forward(self, x: Tensor) -> Tensor:
        block = self.block
        shortcut = x if block.proj is None or block.bn is None else block.bn(block.proj(x))
        return F.relu(shortcut + reference(block.f(x), self.rate, self.kept))


def reference_network(model: AnyNet, rate: float, kept: Tensor) -> AnyNet:
    """Return the network with blocks by the reference; ``kept`` is ``(blocks, n)``."""
    model = copy.deepcopy(model)
    names = [name for name, module in model.named_modules() if isinstance(module, Residual)]
    for number, name in enumerate(names):
        parent, _, last = name.rpartition(".")
        share = rate * number / (len(names) - 1)
        setattr(model.get_submodule(parent), last, ReferenceResidual(model.get_submodule(name), share, kept[number]))
    return model.train()


def test_rates_rise_evenly_from_0_to_that_of_the_recipe_over_all_stages() -> None:
    np.testing.assert_allclose(depth_of().rates, [0, 0.125, 0.25, 0.375, 0.5])  # of 2 + 3 blocks
    np.testing.assert_allclose(depth_rates(0.2, 1), [0])


def test_a_step_is_that_of_a_network_with_torchvisions_formula_in_its_blocks(preprocessing: Preprocessing) -> None:
    start, batch, at = AnyNet(DEEP, 3, seed=0), batch_of(8), (2, 5)
    trainer = make_trainer(start, Execution("cpu"), RECIPE, preprocessing)
    factors = torch.from_numpy(depth_of().factors(at))
    assert 0 < (factors == 0).sum() < factors.numel() / 2
    model = reference_network(start, 0.5, factors > 0)
    inputs = trainer.images(batch)
    logits = model(inputs)
    loss = F.cross_entropy(logits, batch.labels)
    wanted = torch.autograd.grad(loss, list(model.parameters()))
    result = trainer.step(batch, 0.0, at)
    assert result.loss.item() == pytest.approx(loss.item(), rel=1e-6)
    for parameter, gradient in zip(trainer.model.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_what_a_block_adds_has_the_mean_of_the_whole_network() -> None:
    depth = depth_of(dataclasses.replace(RECIPE, batch_size=500))
    factors = np.concatenate([depth.factors((0, step)) for step in range(40)], axis=1)
    np.testing.assert_allclose((factors == 0).mean(axis=1), depth.rates, atol=0.02)
    np.testing.assert_allclose(factors.mean(axis=1), 1, atol=0.03)
    for each, rate in zip(factors, depth.rates, strict=True):
        assert set(np.unique(each)) <= {np.float32(0), np.float32(1 / (1 - rate))}
    # Blocks and images are independent of each other.
    dropped = factors[1:] == 0
    assert np.abs(np.corrcoef(dropped) - np.eye(4)).max() < 0.05


def test_what_is_left_out_is_a_function_of_seed_epoch_and_step() -> None:
    drawn = depth_of().factors((1, 2))
    assert (depth_of().factors((1, 2)) == drawn).all()
    others = [depth_of().factors((1, 3)), depth_of().factors((2, 2))]
    others.append(depth_of(dataclasses.replace(RECIPE, seed=4)).factors((1, 2)))
    assert all((other != drawn).any() for other in others)


@pytest.mark.parametrize("size", [2, 3])
def test_processes_leave_out_what_one_does(size: int) -> None:
    alone = depth_of().factors((1, 2))
    for rank in range(size):
        shared = depth_of(group=ProcessGroup(rank=rank, size=size)).factors((1, 2))
        assert (shared == alone[:, rank::size]).all()


def test_parts_of_a_step_leave_out_what_the_step_does(preprocessing: Preprocessing) -> None:
    recipe = dataclasses.replace(RECIPE, batch_size=7, fine_tune=True, frozen_bn=True, precise_bn_images=0)
    start, batch = AnyNet(DEEP, 3, seed=0), batch_of(7)
    whole, parts = (
        make_trainer(start, Execution("cpu", micro_batch=most), recipe, preprocessing) for most in (None, 4)
    )
    results = [trainer.step(batch, 0.1, (1, 1)) for trainer in (whole, parts)]
    torch.testing.assert_close(results[0].loss, results[1].loss, rtol=1e-6, atol=0)
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(parts.model.state_dict()[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_after_a_step_and_in_evaluation_no_block_is_left_out(preprocessing: Preprocessing) -> None:
    trainer = make_trainer(AnyNet(DEEP, 3, seed=0), Execution("cpu"), RECIPE, preprocessing)
    trainer.step(batch_of(8), 0.1)
    plain = AnyNet(DEEP, 3)
    plain.load_state_dict(trainer.model.state_dict())  # the same names
    inputs = trainer.images(batch_of(8))
    for mode in (False, True):  # in training mode: statistics for batch norm are those of the whole network
        assert torch.equal(trainer.model.train(mode)(inputs), plain.train(mode)(inputs))


def test_an_error_within_a_step_leaves_no_block_out_afterwards() -> None:
    depth = depth_of()
    with depth.applied((0, 0), 0, 8):
        assert all(block.factor is not None for block in depth.blocks)
    failing = depth.applied((0, 0), 0, 8)
    failing.__enter__()
    assert failing.__exit__(ValueError, ValueError("no memory"), None) is not True
    assert all(block.factor is None for block in depth.blocks)


def test_without_it_nothing_is_drawn(network: Network) -> None:
    assert stochastic_depth(AnyNet(network, 3), Recipe(batch_size=8)) is None


def test_in_bf16_what_a_block_adds_stays_bf16() -> None:
    depth = depth_of()
    block = depth.blocks[-1]
    kinds = []
    block.af.register_forward_hook(lambda _module, inputs, _output: kinds.append(inputs[0].dtype))
    with depth.applied((0, 0), 0, 8), torch.autocast("cpu", torch.bfloat16):
        block(torch.zeros(8, 24, 4, 4, dtype=torch.bfloat16))
    assert kinds == [torch.bfloat16]


def test_a_network_without_residual_blocks_is_refused(
    bundle: Bundle, data: Path, options: TrainOptions, tmp_path: Path
) -> None:
    plain = Network((1, 1), (16, 24), (16, 24), (1.0, 1.0), 0.0, stem_stride=1, stem_width=8, block="v")
    architecture = Architecture.of(plain, name="plain", classes=1000, resolution=16)
    path = create_bundle(tmp_path / "plain", {**bundle.parts, "architecture": architecture}).path
    with pytest.raises(UsageError, match=r"stochastic_depth 0.5 leaves out residual blocks.* set it to 0"):
        train(path, data, RECIPE, options)
    with pytest.raises(UsageError, match="leaves out residual blocks"):
        stochastic_depth(AnyNet(plain, 3), RECIPE)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what torch.compile warns of is PyTorch's
def test_a_compiled_step_leaves_the_same_blocks_out_and_is_compiled_once(preprocessing: Preprocessing) -> None:
    plain, compiled = (make_trainer(AnyNet(DEEP, 3, seed=0), Execution("cpu"), RECIPE, preprocessing) for _ in "12")
    compilations = CompileCounterWithBackend("aot_eager")
    compiled = dataclasses.replace(compiled, forward=torch.compile(compiled.model, backend=compilations))
    for step in range(4):
        losses = [trainer.step(batch_of(8), 0.05, (0, step)).loss.item() for trainer in (plain, compiled)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert compilations.frame_count == 1


STEP = """
import json, torch
from regnet_deploy.bundle.training import Execution
from regnet_deploy.images.preprocessing import default_preprocessing
from regnet_deploy.models.anynet import AnyNet
from regnet_deploy.space.network import Network
from regnet_deploy.training.data_loader import Batch
from regnet_deploy.training.distributed import process_group
from regnet_deploy.training.recipe import Recipe
from regnet_deploy.training.trainer import make_trainer

network = Network((2, 3), (16, 24), (8, 8), (1.0, 1.0), se_ratio=0.25, stem_stride=1, stem_width=8)
recipe = Recipe(batch_size=13, stochastic_depth=0.5)
draw = torch.Generator().manual_seed(0)
pixels = torch.randint(0, 256, (13, 16, 16, 3), generator=draw, dtype=torch.uint8)
labels = torch.randint(0, 3, (13,), generator=draw)
with process_group("cpu") as group:
    def batch(chosen):
        return Batch(pixels[chosen], torch.zeros(len(chosen), 3), labels[chosen], [])
    execution = Execution("cpu", processes=2, sync_bn=True)
    together = make_trainer(AnyNet(network, 3, seed=0), execution, recipe, default_preprocessing(16), group)
    ours = together.step(batch(group.share(list(range(13)))), 0.1, (1, 2))
    alone = make_trainer(AnyNet(network, 3, seed=0), Execution("cpu"), recipe, default_preprocessing(16))
    wanted = alone.step(batch(list(range(13))), 0.1, (1, 2))
    state, other = together.model.state_dict(), alone.model.state_dict()
    weights = max(float((state[name] - value).abs().max()) for name, value in other.items())
print(json.dumps([float(abs(ours.loss - wanted.loss)), weights]))
"""


def test_two_processes_train_as_one_does(
    run_processes: Callable[..., list[subprocess.CompletedProcess[str]]],
) -> None:
    done = run_processes(2, code=STEP)
    assert [each.returncode for each in done] == [0, 0], [each.stderr for each in done]
    loss, weights = json.loads(done[0].stdout)
    assert loss < 1e-6
    assert weights < 1e-5
