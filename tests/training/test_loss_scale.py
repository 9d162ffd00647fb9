"""Training in float16: PyTorch's scaling of the loss, in every process alike, and steps that are left out."""

import copy
import dataclasses
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from regnet_deploy.bundle import Bundle, create_bundle
from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.bundle.training import Execution
from regnet_deploy.errors import UsageError
from regnet_deploy.models.anynet import AnyNet
from regnet_deploy.models.weights import FILE
from regnet_deploy.space.network import Network
from regnet_deploy.training import execution, loss_scale, train
from regnet_deploy.training.data_loader import Batch
from regnet_deploy.training.execution import ExecutionRequest
from regnet_deploy.training.recipe import Recipe
from regnet_deploy.training.run import DivergenceError
from regnet_deploy.training.train import TrainOptions
from regnet_deploy.training.trainer import Trainer, make_trainer

FP16 = Execution("cpu", "fp16")
RECIPE = Recipe(batch_size=8, ema_decay=0.5)
#: With this, gradients of a network of the tests are beyond the range of float16.
TOO_LARGE = {"scale": torch.tensor(2.0**40), "steps": torch.tensor(7)}


def batch_of(count: int = 8) -> Batch:
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 16, 16, 3), generator=draw, dtype=torch.uint8)
    return Batch(pixels, torch.zeros(count, 3), torch.randint(0, 3, (count,), generator=draw), [])


@pytest.fixture
def trainer(network: Network, preprocessing: Preprocessing) -> Trainer:
    return make_trainer(AnyNet(network, 3, seed=0), FP16, RECIPE, preprocessing)


def test_steps_are_those_of_pytorchs_grad_scaler(trainer: Trainer) -> None:
    model, batch = copy.deepcopy(trainer.model), batch_of()
    scaler = torch.amp.GradScaler("cpu")
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9, nesterov=True, weight_decay=RECIPE.weight_decay)
    for rate in (0.1, 0.05, 0.02):
        result = trainer.step(batch, rate)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            logits = model(trainer.images(batch)).float()
        loss = F.cross_entropy(logits, batch.labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert result.loss.item() == pytest.approx(loss.item(), rel=1e-4)
        assert trainer.scaling is not None
        assert not trainer.scaling.skipped
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    for name, value in model.state_dict().items():
        torch.testing.assert_close(trainer.model.state_dict()[name], value, rtol=1e-3, atol=1e-5, msg=name)
    assert {name: value.item() for name, value in trainer.scaling.state().items()} == {"scale": 2.0**16, "steps": 3}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_other_precisions_have_no_scaling(network: Network, preprocessing: Preprocessing, precision: str) -> None:
    assert make_trainer(AnyNet(network, 3), Execution("cpu", precision), RECIPE, preprocessing).scaling is None


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_step_with_gradients_that_are_not_finite_is_left_out_until_the_scale_fits(
    network: Network, preprocessing: Preprocessing, optimizer: str
) -> None:
    recipe = dataclasses.replace(RECIPE, optimizer=optimizer, lr=0.01)
    trainer = make_trainer(AnyNet(network, 3, seed=0), FP16, recipe, preprocessing)
    scaling = trainer.scaling
    assert scaling is not None
    assert trainer.average is not None
    trainer.step(batch_of(), 0.01)
    trainer.follow()
    scaling.restore(TOO_LARGE)
    before = [value.clone() for value in (*trainer.model.parameters(), *trainer.optimizer_state().values())]
    averaged = {name: value.clone() for name, value in trainer.average.state_dict().items()}
    assert trainer.step(batch_of(), 0.01).loss.isfinite()
    trainer.follow()
    after = [*trainer.model.parameters(), *trainer.optimizer_state().values()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert all(torch.equal(value, averaged[name]) for name, value in trainer.average.state_dict().items())
    assert scaling.skipped
    assert {name: value.item() for name, value in scaling.state().items()} == {"scale": 2.0**39, "steps": 0}
    for _ in range(40):
        trainer.step(batch_of(), 0.01)
        trainer.follow()
        if not scaling.skipped:
            break
    assert not scaling.skipped
    assert not all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert int(trainer.average.n_averaged) == 2


def test_a_reset_begins_with_the_first_scale(trainer: Trainer) -> None:
    assert trainer.scaling is not None
    first = trainer.scaling.state()
    trainer.scaling.restore(TOO_LARGE)
    trainer.step(batch_of(), 0.1)
    trainer.reset(trainer.model.state_dict())
    assert trainer.scaling.state() == first


@pytest.mark.parametrize("steps", [1, 4])
def test_a_stopped_run_goes_on_with_its_scale_to_the_same_bits(
    bundle: Bundle,
    data: Path,
    recipe: Recipe,
    options: TrainOptions,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    steps: int,
) -> None:
    """The first steps are left out: a run that went on with the scale of the start would leave out more of them."""
    monkeypatch.setattr(loss_scale, "FIRST_SCALE", 2.0**20)
    options = dataclasses.replace(options, execution=ExecutionRequest("cpu", "fp16", threads=1), checkpoint_s=0)
    recipe = dataclasses.replace(recipe, ema_decay=0.9)
    whole = create_bundle(tmp_path / "whole", dict(bundle.parts))
    taken, skipped, step = [], [], Trainer.step

    def counted(self: Trainer, *arguments: object) -> object:
        if len(taken) == steps and interrupted:
            raise ZeroDivisionError
        result = step(self, *arguments)  # type: ignore[arg-type]
        taken.append(result)
        skipped.append(bool(self.scaling and self.scaling.skipped))
        return result

    interrupted = False
    monkeypatch.setattr(Trainer, "step", counted)
    wanted = train.train(whole.path, data, recipe, options)
    assert skipped[0]
    assert not all(skipped), skipped
    interrupted = True
    taken.clear()
    with pytest.raises(ZeroDivisionError):
        train.train(bundle.path, data, recipe, options)
    interrupted = False
    trained = train.train(bundle.path, data, recipe, options)
    assert len(taken) == len(skipped) / 2
    assert trained.files[FILE] == wanted.files[FILE]
    assert trained.training.execution.execution.precision == "fp16"


def test_gradients_that_are_never_finite_end_the_run(
    bundle: Bundle,
    data: Path,
    recipe: Recipe,
    options: TrainOptions,
    recorded_progress,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = dataclasses.replace(options, execution=ExecutionRequest("cpu", "fp16", threads=1))
    scaled = loss_scale.LossScale.scaled
    monkeypatch.setattr(
        loss_scale.LossScale,
        "scaled",
        lambda self, loss: scaled(self, loss) * (torch.nan if loss.requires_grad else 1),
    )
    monkeypatch.setattr(loss_scale, "FIRST_SCALE", 2.0**-15)
    with pytest.raises(DivergenceError, match=r"the gradients are not finite in fp16.* at epoch 2 step 3: .*--lr"):
        train.train(bundle.path, data, recipe, options)
    again = dataclasses.replace(options, restart=True)
    with pytest.raises(DivergenceError, match="the gradients are not finite in fp16"):
        train.train(bundle.path, data, dataclasses.replace(recipe, retries=1), again, recorded_progress)
    assert "the gradients were not finite in fp16: back to" in recorded_progress.text


def test_a_device_without_float16_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert execution.has_fp16("cpu")
    assert ExecutionRequest("cpu", "fp16").execution().precision == "fp16"

    def conv2d(*_arguments: object, **_options: object) -> None:
        raise RuntimeError("\"slow_conv2d_cpu\" not implemented for 'Half'")

    monkeypatch.setattr(torch.nn.functional, "conv2d", conv2d)
    with pytest.raises(
        UsageError, match=r"^--precision fp16: PyTorch .* no convolutions in float16.*--precision fp32$"
    ):
        ExecutionRequest("cpu", "fp16").execution()


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

network = Network((1, 1), (16, 24), (8, 8), (1.0, 1.0), se_ratio=0.25, stem_stride=1, stem_width=8)
draw = torch.Generator().manual_seed(0)
pixels = torch.randint(0, 256, (12, 16, 16, 3), generator=draw, dtype=torch.uint8)
labels = torch.randint(0, 3, (12,), generator=draw)
said = []
with process_group("cpu") as group:
    numbers = group.share(list(range(12)))
    batch = Batch(pixels[numbers], torch.zeros(6, 3), labels[numbers], [])
    execution = Execution("cpu", "fp16", processes=2)
    recipe = Recipe(batch_size=12)
    trainer = make_trainer(AnyNet(network, 3, seed=0), execution, recipe, default_preprocessing(16), group)
    weight = trainer.model.head.fc.weight
    for number in range(3):
        hook = weight.register_hook(lambda gradient: gradient * torch.inf) if (number, group.rank) == (1, 1) else None
        before = weight.detach().clone()
        trainer.step(batch, 0.1)
        if hook:
            hook.remove()
        scale = trainer.scaling.state()["scale"].item()
        said.append([bool(trainer.scaling.skipped), scale, torch.equal(weight, before), weight.double().sum().item()])
print(json.dumps(said))
"""


def test_what_is_not_finite_in_one_process_is_left_out_in_all(
    run_processes: Callable[..., list[subprocess.CompletedProcess[str]]],
) -> None:
    done = run_processes(2, code=STEP)
    assert [each.returncode for each in done] == [0, 0], [each.stderr for each in done]
    first, second = (json.loads(each.stdout) for each in done)
    assert first == second
    assert [each[:3] for each in first] == [[False, 2.0**16, False], [True, 2.0**15, True], [False, 2.0**15, False]]
