"""A step: SGD with Nesterov momentum by the formula, in either memory layout, on normalised pixels."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.bundle.training import Execution
from regnet_deploy.images.preprocessing import normalize
from regnet_deploy.models.anynet import AnyNet
from regnet_deploy.space.network import Network
from regnet_deploy.training.batch_augmentation import draw_mix
from regnet_deploy.training.data_loader import Batch
from regnet_deploy.training.recipe import Recipe
from regnet_deploy.training.trainer import Trainer, make_trainer


def batch_of(count: int = 8, seed: int = 0) -> Batch:
    draw = np.random.default_rng(seed)
    return Batch(
        torch.from_numpy(draw.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)),
        torch.from_numpy(draw.normal(0, 0.1, (count, 3)).astype(np.float32)),
        torch.from_numpy(draw.integers(0, 3, count)),
        [],
    )


@pytest.mark.parametrize("channels_last", [False, True])
def test_two_steps_are_the_formula(
    network: Network, recipe: Recipe, preprocessing: Preprocessing, channels_last: bool
) -> None:
    start = AnyNet(network, 3, seed=0)
    trainer = make_trainer(start, Execution("cpu", channels_last=channels_last), recipe, preprocessing)
    model, momentum = copy.deepcopy(start).train(), [torch.zeros_like(p) for p in start.parameters()]
    for rate, seed in ((0.1, 1), (0.05, 2)):
        batch = batch_of(seed=seed)
        loss, right, _ = trainer.step(batch, rate)
        inputs = torch.from_numpy(normalize(batch.pixels.numpy(), preprocessing)) + batch.shifts[:, :, None, None]
        logits = model(inputs)
        wanted = F.cross_entropy(logits, batch.labels)
        gradients = torch.autograd.grad(wanted, list(model.parameters()))
        with torch.no_grad():
            for p, m, g in zip(model.parameters(), momentum, gradients, strict=True):
                g = g + recipe.weight_decay * p
                m.mul_(0.9).add_(g)
                p.sub_(rate * (g + 0.9 * m))
        assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
        assert right.item() == (logits.argmax(1) == batch.labels).sum().item()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(trainer.model.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    for m, (name, value) in zip(momentum, trainer.optimizer_state().items(), strict=True):
        torch.testing.assert_close(value, m, rtol=1e-3, atol=1e-5, msg=name)


def test_adamw_is_that_of_pytorch_and_spares_norms_and_biases_if_told_so(
    network: Network, preprocessing: Preprocessing
) -> None:
    recipe = Recipe(batch_size=8, optimizer="adamw", lr=0.01, weight_decay=0.5, decay_norms=False, layer_decay=0.5)
    start = AnyNet(network, 3, seed=0)
    trainer = make_trainer(start, Execution("cpu"), recipe, preprocessing)
    model = copy.deepcopy(start).train()
    norms = {f"{name}." for name, module in model.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}
    shares = {"head": 1.0, "s2": 1.0, "s1": 0.5, "stem": 0.25}
    groups = [
        {
            "params": [parameter],
            "share": shares[name.partition(".")[0]],
            "weight_decay": 0.0 if name.endswith("bias") or name.startswith(tuple(norms)) else 0.5,
        }
        for name, parameter in model.named_parameters()
    ]
    assert {group["weight_decay"] for group in groups} == {0.0, 0.5}
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999))
    for rate, seed in ((0.01, 1), (0.005, 2), (0.002, 3)):
        batch = batch_of(seed=seed)
        trainer.step(batch, rate)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["share"]
        optimizer.zero_grad()
        inputs = torch.from_numpy(normalize(batch.pixels.numpy(), preprocessing)) + batch.shifts[:, :, None, None]
        F.cross_entropy(model(inputs), batch.labels).backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(trainer.model.state_dict()[name], value, rtol=1e-3, atol=1e-4)


def test_a_reset_forgets_the_state_of_adamw(network: Network, preprocessing: Preprocessing) -> None:
    recipe = Recipe(batch_size=8, optimizer="adamw", lr=0.01)
    start = AnyNet(network, 3, seed=0)
    once = make_trainer(start, Execution("cpu"), recipe, preprocessing)
    again = make_trainer(start, Execution("cpu"), recipe, preprocessing)
    again.step(batch_of(seed=5), 0.01)
    again.reset(start.state_dict())
    once.step(batch_of(), 0.01)
    again.step(batch_of(), 0.01)
    for name, value in once.optimizer_state().items():
        assert torch.equal(value, again.optimizer_state()[name]), name
    assert all(torch.equal(value, again.model.state_dict()[name]) for name, value in once.model.state_dict().items())


@pytest.mark.parametrize("values", [{"mixup": 0.4}, {"cutmix": 1.0}])
def test_mixed_images_have_the_loss_of_both_labels(
    network: Network, preprocessing: Preprocessing, values: dict[str, float]
) -> None:
    recipe = Recipe(batch_size=8, label_smoothing=0.1, **values)
    start, batch = AnyNet(network, 3, seed=0), batch_of()
    trainer = make_trainer(start, Execution("cpu"), recipe, preprocessing)
    mix = draw_mix(recipe, (1, 4), 16, 16)
    assert mix is not None
    loss, right, _ = trainer.step(batch, 0.1, (1, 4))
    logits = copy.deepcopy(start).train()(
        mix.images(make_trainer(start, Execution("cpu"), recipe, preprocessing).images(batch))
    )
    both = [F.one_hot(labels, 3).float() for labels in (batch.labels, batch.labels.roll(1))]
    targets = mix.share * both[0] + (1 - mix.share) * both[1]
    assert loss.item() == pytest.approx(F.cross_entropy(logits, targets, label_smoothing=0.1).item(), rel=1e-5)
    assert right.item() == (logits.argmax(1) == targets.argmax(1)).sum().item()


@pytest.mark.parametrize("mixed", [{}, {"mixup": 0.4}])
def test_class_weights_are_those_of_pytorch_also_of_mixed_labels(
    network: Network, preprocessing: Preprocessing, mixed: dict[str, float]
) -> None:
    recipe = Recipe(batch_size=8, class_weights="balanced", **mixed)
    start, batch = AnyNet(network, 3, seed=0), batch_of()
    trainer = make_trainer(start, Execution("cpu"), recipe, preprocessing, class_counts=(60, 30, 10))
    mix, images = draw_mix(recipe, (1, 4), 16, 16), trainer.images(batch)
    loss = trainer.step(batch, 0.1, (1, 4)).loss
    targets = F.one_hot(batch.labels, 3).float()
    if mix:
        images = mix.images(images)
        targets = mix.share * targets + (1 - mix.share) * targets.roll(1, 0)
    weights = torch.tensor([100 / 3 / 60, 100 / 3 / 30, 100 / 3 / 10])
    wanted = F.cross_entropy(copy.deepcopy(start).train()(images), targets, weight=weights)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_a_learner_has_weights_of_its_own(network: Network, recipe: Recipe, preprocessing: Preprocessing) -> None:
    start = AnyNet(network, 3, seed=0)
    before = copy.deepcopy(start.state_dict())
    make_trainer(start, Execution("cpu"), recipe, preprocessing).step(batch_of(), 0.1)
    assert all(torch.equal(value, before[name]) for name, value in start.state_dict().items())


def test_inputs_are_the_servers_plus_the_colour_shift(trainer: Trainer, preprocessing: Preprocessing) -> None:
    batch = batch_of()
    wanted = normalize(batch.pixels.numpy(), preprocessing) + batch.shifts.numpy()[:, :, None, None]
    assert (trainer.images(batch).numpy() == wanted).all()


@pytest.mark.parametrize("channels_last", [False, True])
def test_inputs_lie_in_memory_as_the_weights_do(
    network: Network, recipe: Recipe, preprocessing: Preprocessing, channels_last: bool
) -> None:
    execution = Execution("cpu", channels_last=channels_last)
    trainer = make_trainer(AnyNet(network, 3, seed=0), execution, recipe, preprocessing)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert trainer.images(batch_of()).is_contiguous(memory_format=layout)
    assert trainer.model.s1.b1.f.b.weight.is_contiguous(memory_format=layout)


def test_bf16_trains_weights_that_stay_fp32(network: Network, recipe: Recipe, preprocessing: Preprocessing) -> None:
    learners = [
        make_trainer(AnyNet(network, 3, seed=0), Execution("cpu", precision), recipe, preprocessing)
        for precision in ("fp32", "bf16")
    ]
    losses = [[trainer.step(batch_of(), 0.05)[0].item() for _ in range(8)] for trainer in learners]
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[0], losses[1], atol=0.1)
    assert losses[1][-1] < losses[1][0]
    assert {p.dtype for p in learners[1].model.parameters()} == {torch.float32}


def test_label_smoothing_is_in_the_loss(network: Network, preprocessing: Preprocessing) -> None:
    losses = [
        make_trainer(
            AnyNet(network, 3, seed=0), Execution("cpu"), Recipe(batch_size=8, label_smoothing=smoothing), preprocessing
        ).step(batch_of(), 0.1)[0]
        for smoothing in (0.0, 0.5)
    ]
    assert losses[0] != losses[1]


def test_rates_fall_by_layer_from_the_head_to_the_stem(network: Network, preprocessing: Preprocessing) -> None:
    recipe = Recipe(batch_size=8, weight_decay=0.0, body_lr=0.5, layer_decay=0.25)
    trainer = make_trainer(AnyNet(network, 3, seed=0), Execution("cpu"), recipe, preprocessing)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.step(batch_of(), 0.1)
    shares = {"head": 1.0, "s2": 0.5, "s1": 0.125, "stem": 0.03125}
    momentum = trainer.optimizer_state()
    for name, value in trainer.model.named_parameters():
        wanted = before[name] - 0.1 * shares[name.partition(".")[0]] * 1.9 * momentum[name]  # Nesterov's first step
        torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-7, msg=name)
    assert {round(group["lr"], 9) for group in trainer.optimizer.param_groups} == {0.1, 0.05, 0.0125, 0.003125}


def test_without_a_decay_all_layers_have_the_same_rate(trainer: Trainer) -> None:
    assert [group["share"] for group in trainer.optimizer.param_groups] == [1.0]


def test_parts_of_a_step_add_up_to_the_step_where_batch_norm_is_frozen(
    network: Network, preprocessing: Preprocessing
) -> None:
    recipe = Recipe(batch_size=7, fine_tune=True, frozen_bn=True, precise_bn_images=0, label_smoothing=0.1)
    start, batch = AnyNet(network, 3, seed=0), batch_of(7)
    whole, parts = (
        make_trainer(start, Execution("cpu", micro_batch=most), recipe, preprocessing) for most in (None, 4)
    )
    results = [trainer.step(batch, 0.1) for trainer in (whole, parts)]
    assert [len(part.labels) for part in parts.parts(batch)] == [4, 3]
    torch.testing.assert_close(results[0].loss, results[1].loss, rtol=1e-6, atol=0)
    assert results[0].right == results[1].right
    assert results[0].images == results[1].images == 7
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(parts.model.state_dict()[name], value, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(("batch", "most"), [(5, 4), (6, 4), (7, 4), (9, 4), (129, 32), (8, 8)])
def test_no_part_of_a_step_has_a_single_image(
    network: Network, preprocessing: Preprocessing, batch: int, most: int
) -> None:
    execution = Execution("cpu", micro_batch=most)
    trainer = make_trainer(AnyNet(network, 3, seed=0), execution, Recipe(batch_size=batch), preprocessing)
    sizes = [len(part.labels) for part in trainer.parts(batch_of(batch))]
    assert sum(sizes) == batch
    assert 2 <= min(sizes) <= max(sizes) <= most
