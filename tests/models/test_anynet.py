"""The modules: exactly the network that the numbers describe, initialised and named as in pycls."""

import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from regnet_deploy.models.anynet import (
    AnyNet,
    Block,
    PlainBlock,
    PlainResidualBlock,
    Projection,
    SqueezeExcitation,
    initialize,
    start_as_identity,
)
from regnet_deploy.space.complexity import network_complexity, stage_resolutions
from regnet_deploy.space.network import Network
from regnet_deploy.space.regnet import RegNet, fit_groups

REGNET_Y = RegNet(d=13, w_0=24, w_a=36.44, w_m=2.49, g=8, family="y").network()
TINY = Network((1, 2), (16, 24), (8, 8), (1.0, 1.0), se_ratio=0.25, stem_width=16)


@st.composite
def networks(draw: st.DrawFn) -> Network:
    """AnyNets of one to four small stages: X and Y with bottlenecks, V and VR."""
    stages = draw(st.integers(1, 4))
    block = draw(st.sampled_from(["bottleneck", "bottleneck", "v", "vr"]))
    if block != "bottleneck":
        plain = tuple(8 * draw(st.integers(1, 6)) for _ in range(stages))
        blocks = tuple(draw(st.integers(1, 3)) for _ in range(stages))
        stem = draw(st.sampled_from([1, 2])), draw(st.sampled_from([8, 32]))
        return Network(blocks, plain, plain, (1.0,) * stages, 0.0, *stem, block=block)
    depths, widths, groups, bottlenecks = [], [], [], []
    for _ in range(stages):
        group = draw(st.sampled_from([1, 2, 4, 8]))
        ratio = draw(st.sampled_from([0.5, 1.0, 2.0, 4.0]))
        inner = 16 * draw(st.integers(1, 3))  # a multiple of any group width, and never squeezed to nothing
        bottlenecks.append(ratio)
        widths.append(int(inner * ratio))
        groups.append(group)
        depths.append(draw(st.integers(1, 3)))
    return Network(
        tuple(depths),
        tuple(widths),
        tuple(groups),
        tuple(bottlenecks),
        se_ratio=draw(st.sampled_from([0.0, 0.25])),
        stem_stride=draw(st.sampled_from([1, 2])),
        stem_width=draw(st.sampled_from([8, 32])),
    )


@settings(max_examples=60, deadline=None)
@given(networks(), st.integers(1, 20))
def test_parameters_are_those_of_the_closed_form(network: Network, classes: int) -> None:
    model = AnyNet(network, classes, seed=0)
    assert sum(p.numel() for p in model.parameters()) == int(network_complexity(network, 32, classes).total.parameters)


@settings(max_examples=25, deadline=None)
@given(networks(), st.integers(1, 7), st.integers(17, 48))
def test_the_output_is_one_logit_a_class_and_stages_halve_the_side(
    network: Network, classes: int, resolution: int
) -> None:
    model = AnyNet(network, classes, seed=0).eval()
    x = torch.zeros(2, 3, resolution, resolution)
    sides = []
    with torch.no_grad():
        for name, part in model.named_children():
            x = part(x)
            if name != "head":
                assert x.shape[2] == x.shape[3]
                sides.append(x.shape[2])
    assert x.shape == (2, classes)
    assert sides == stage_resolutions(resolution, network.stem_stride, len(network.depths))


def test_names_are_those_of_pycls() -> None:
    names = list(AnyNet(TINY, 5, seed=0).state_dict())
    block = [
        *(f"f.{conv}{rest}" for conv in ("a", "b") for rest in (".weight", "_bn.weight", "_bn.bias")),
        *(f"f.se.f_ex.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")),
        *(f"f.c{rest}" for rest in (".weight", "_bn.weight", "_bn.bias")),
    ]
    projection = ["proj.weight", "bn.weight", "bn.bias"]
    wanted = ["stem.conv.weight", "stem.bn.weight", "stem.bn.bias"]
    wanted += [f"s1.b1.{name}" for name in projection + block]
    wanted += [f"s2.b1.{name}" for name in projection + block]
    wanted += [f"s2.b2.{name}" for name in block]
    wanted += ["head.fc.weight", "head.fc.bias"]
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert [name for name in names if not name.endswith(statistics)] == wanted


@pytest.mark.parametrize(
    ("block", "first", "other"),
    [
        ("v", ["a.weight", "a_bn.weight", "a_bn.bias"], ["a.weight", "a_bn.weight", "a_bn.bias"]),
        (
            "vr",
            ["proj.weight", "bn.weight", "bn.bias", "f.a.weight", "f.a_bn.weight", "f.a_bn.bias"],
            ["f.a.weight", "f.a_bn.weight", "f.a_bn.bias"],
        ),
    ],
)
def test_one_convolution_is_called_as_the_first_of_the_two_of_pycls(
    block: str, first: list[str], other: list[str]
) -> None:
    model = AnyNet(Network((2,), (16,), (16,), (1.0,), stem_width=16, block=block), 5, seed=0)
    names = [name for name, _ in model.named_parameters() if name.startswith("s1.")]
    assert names == [f"s1.b1.{name}" for name in first] + [f"s1.b2.{name}" for name in other]


@pytest.mark.parametrize("b", [1.0, 2.0, 4.0])
def test_a_network_without_groups_has_whole_convolutions_and_the_parameters_of_the_closed_form(b: float) -> None:
    widths, groups = fit_groups([16, 40, 96], 2**20, b)
    network = Network((1, 2, 1), tuple(widths.tolist()), tuple(groups.tolist()), (b,) * 3)
    model = AnyNet(network, 5, seed=0)
    assert {module.groups for module in model.modules() if isinstance(module, nn.Conv2d)} == {1}
    assert sum(p.numel() for p in model.parameters()) == int(network_complexity(network, 32, 5).total.parameters)


def test_the_squeezed_width_is_a_quarter_of_what_enters_the_block() -> None:
    model = AnyNet(REGNET_Y, 10, seed=0)
    widths = dict(model.named_modules())
    first, second = widths["s2.b1.f.se"], widths["s3.b2.f.se"]
    assert isinstance(first, SqueezeExcitation)
    assert first.f_ex[0].out_channels == round(0.25 * REGNET_Y.widths[0])
    assert second.f_ex[0].out_channels == round(0.25 * REGNET_Y.widths[2])


def test_family_x_has_no_squeeze_and_excitation() -> None:
    network = RegNet(d=13, w_0=24, w_a=36.44, w_m=2.49, g=8, family="x").network()
    assert not any(isinstance(module, SqueezeExcitation) for module in AnyNet(network, 10, seed=0).modules())


def test_convolutions_start_as_in_the_paper_whatever_their_groups() -> None:
    model = AnyNet(Network((2,), (256,), (16,), (1.0,), se_ratio=0.25), 10, seed=0)
    checked = 0
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
            wanted = math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels))
            assert module.weight.std().item() == pytest.approx(wanted, rel=0.03)
            assert abs(module.weight.mean().item()) < wanted / 20
            checked += 1
    assert checked >= 6


def test_the_head_and_batch_norm_start_as_in_the_paper() -> None:
    model = AnyNet(REGNET_Y, 1000, seed=0)
    head = model.head.fc
    assert head.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert head.bias.abs().max() == 0
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
            assert (module.eps, module.momentum) == (1e-5, 0.1)


def test_the_biases_of_squeeze_and_excitation_start_as_pytorch_has_them() -> None:
    model = AnyNet(Network((1,), (512,), (16,), (1.0,), se_ratio=0.25, stem_width=512), 10, seed=0)
    squeeze = dict(model.named_modules())["s1.b1.f.se"].f_ex[0]
    bound = 1 / math.sqrt(512)
    assert 0.9 * bound < squeeze.bias.abs().max() <= bound
    assert squeeze.bias.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.2)


def test_a_seed_gives_the_same_weights_and_leaves_torchs_own_state_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, again, other = (AnyNet(TINY, 5, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["stem.conv.weight"], other["stem.conv.weight"])
    model = AnyNet(TINY, 5, seed=3)
    torch.set_rng_state(before)
    initialize(model, 4)
    assert torch.equal(model.state_dict()["stem.conv.weight"], other["stem.conv.weight"])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("width_in", "stride", "projected"), [(16, 1, False), (16, 2, True), (8, 1, True)])
def test_the_shortcut_is_a_projection_only_where_the_shape_changes(width_in: int, stride: int, projected: bool) -> None:
    block = Block(width_in, 16, 16, 8, stride, 0.0)
    assert (block.proj is not None) is projected
    assert block(torch.zeros(2, width_in, 8, 8)).shape == (2, 16, 8 // stride, 8 // stride)
    plain = PlainResidualBlock(width_in, 16, stride)
    assert (plain.proj is not None) is projected
    assert plain(torch.zeros(2, width_in, 8, 8)).shape == (2, 16, 8 // stride, 8 // stride)


def test_a_block_is_relu_of_shortcut_plus_transform() -> None:
    block = Block(16, 16, 16, 8, 1, 0.25).eval()
    x = torch.randn(2, 16, 6, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(block(x), torch.relu(x + block.f(x)))


@pytest.mark.parametrize("stride", [1, 2])
def test_a_plain_block_is_relu_of_norm_of_convolution_and_has_no_shortcut(stride: int) -> None:
    block = PlainBlock(16, 16, stride).eval()
    x = torch.randn(2, 16, 6, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        convolved = nn.functional.conv2d(x, block.a.weight, stride=stride, padding=1)
        assert torch.equal(block(x), torch.relu(block.a_bn(convolved)))


def test_a_plain_residual_block_adds_its_input_before_the_relu() -> None:
    block = PlainResidualBlock(16, 16, 1).eval()
    x = torch.randn(2, 16, 6, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        convolved = nn.functional.conv2d(x, block.f.a.weight, padding=1)
        assert torch.equal(block(x), torch.relu(x + block.f.a_bn(convolved)))


def test_a_plain_residual_block_projects_with_its_stride() -> None:
    block = PlainResidualBlock(8, 16, 2).eval()
    x = torch.randn(2, 8, 7, 7, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(block(x), torch.relu(block.bn(block.proj(x)) + block.f(x)))
        assert block.proj.stride == (2, 2)


@pytest.mark.parametrize("side", [2, 7, 12])
def test_a_projection_is_the_strided_convolution(side):
    projection = Projection(8, 32, 2)
    plain = torch.nn.Conv2d(8, 32, 1, 2, bias=False)
    plain.load_state_dict(projection.state_dict())
    x = torch.randn(3, 8, side, side, generator=torch.Generator().manual_seed(0))
    assert projection(x).shape == plain(x).shape
    torch.testing.assert_close(projection(x), plain(x))


def test_training_in_channels_last_with_two_threads_keeps_to_its_memory():
    """With torch's own strided 1x1 kernel this dies: the heap is overwritten in its backward pass."""
    code = """
import torch
from regnet_deploy.models.anynet import AnyNet
from regnet_deploy.space.network import Network
torch.set_num_threads(2)
network = Network((2, 2, 3, 9), (8, 32, 64, 224), (1, 1, 2, 16), (2.0, 1.0, 4.0, 2.0), stem_stride=1)
model = AnyNet(network, 6, seed=0).to(memory_format=torch.channels_last)
for _ in range(4):
    model(torch.randn(75, 3, 24, 24).to(memory_format=torch.channels_last)).sum().backward()
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@given(networks(), st.integers(16, 50))
@settings(max_examples=20, deadline=None)
def test_stage_features_are_the_outputs_of_the_stages(network: Network, resolution: int) -> None:
    model = AnyNet(network, 10, seed=0).eval()
    images = torch.randn(2, 3, resolution, resolution, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features = model.stage_features(images)
        logits = model.head(features[-1])
        assert torch.equal(logits, model(images))
    assert [feature.shape[1] for feature in features] == list(network.widths)
    sides = stage_resolutions(resolution, network.stem_stride, len(network.widths))
    assert [feature.shape[2] for feature in features] == sides[1:]


def test_a_gray_network_takes_one_channel():
    network = Network((1, 1), (8, 16), (8, 8), (1.0, 1.0), stem_stride=1, stem_width=8, input_channels=1)
    model = AnyNet(network, 4, seed=0).eval()
    assert model.get_submodule("stem.conv").weight.shape == (8, 1, 3, 3)
    assert model(torch.zeros(2, 1, 20, 20)).shape == (2, 4)


def test_blocks_start_as_their_shortcuts() -> None:
    network = Network((2, 2), (16, 24), (8, 8), (1.0, 1.0), se_ratio=0.25, stem_stride=1, stem_width=16)
    model = AnyNet(network, 3, seed=0)
    start_as_identity(model)
    model.train()
    images = torch.rand(4, 16, 8, 8)
    block = model.get_submodule("s1.b2")
    assert torch.equal(block(images), images)
    first = model.get_submodule("s1.b1")
    assert torch.equal(first(images), torch.relu(first.bn(first.proj(images))))
