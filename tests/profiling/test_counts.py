import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from regnet_deploy.errors import ProofError
from regnet_deploy.models.anynet import AnyNet
from regnet_deploy.profiling import counts as counts_module
from regnet_deploy.profiling.counts import Count, count
from regnet_deploy.space.complexity import network_complexity
from regnet_deploy.space.network import SE_RATIO, Network
from regnet_deploy.space.published import find_published
from regnet_deploy.space.regnet import RegNet, fit_groups

RESOLUTIONS = (32, 33, 47, 64, 95, 96, 112)


@pytest.fixture(autouse=True)
def _one_thread():
    """Convolutions this small only wait for each other in several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_network(seed: int) -> tuple[Network, int, int]:
    """Return an X (even seeds) or Y (odd seeds) network, a resolution and a number of classes."""
    draw = np.random.default_rng(seed)
    stages = int(draw.integers(1, 5))
    bottlenecks = tuple(float(b) for b in draw.choice([0.5, 1.0, 2.0, 4.0], stages))
    group_widths = tuple(int(g) for g in draw.choice([1, 2, 3, 8, 16], stages))
    # A width is a multiple of its group width both outside and inside the bottleneck.
    widths = tuple(int(g * 4 * draw.integers(1, 5)) for g in group_widths)
    network = Network(
        depths=tuple(int(d) for d in draw.integers(1, 3, stages)),
        widths=widths,
        group_widths=group_widths,
        bottlenecks=bottlenecks,
        se_ratio=SE_RATIO if seed % 2 else 0.0,
        stem_stride=int(draw.integers(1, 3)),
        stem_width=int(draw.choice([8, 32])),
    )
    return network, int(draw.choice(RESOLUTIONS)), int(draw.integers(2, 30))


def random_other_network(seed: int) -> tuple[Network, int, int]:
    """Return a V, a VR or (seeds 2, 5, 8...) an R network, a bottleneck network without groups; as above."""
    draw = np.random.default_rng(seed)
    stages = int(draw.integers(1, 5))
    b = float(draw.choice([1.0, 2.0, 4.0])) if seed % 3 == 2 else 1.0
    widths, group_widths = fit_groups(8 * draw.integers(1, 9, stages), 2**20, b)
    network = Network(
        depths=tuple(int(d) for d in draw.integers(1, 4, stages)),
        widths=tuple(widths.tolist()),
        group_widths=tuple(group_widths.tolist()),
        bottlenecks=(b,) * stages,
        stem_stride=int(draw.integers(1, 3)),
        stem_width=int(draw.choice([8, 32])),
        block=("v", "vr", "bottleneck")[seed % 3],
    )
    return network, int(draw.choice(RESOLUTIONS)), int(draw.integers(2, 30))


@pytest.mark.parametrize("chunk", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in (1, 2))])
def test_fvcore_equals_the_closed_form_on_networks_of_other_blocks(chunk):
    """40 networks a chunk, a third of them each of V, VR and R."""
    for seed in range(40 * chunk, 40 * (chunk + 1)):
        network, resolution, classes = random_other_network(seed)
        counted = count(AnyNet(network, classes, seed=0), network, resolution, classes)
        closed = network_complexity(network, resolution, classes).total
        assert (counted.total.macs, counted.total.parameters, counted.total.activations) == closed, (seed, network)
        assert counted.differences() == []


@pytest.mark.parametrize("chunk", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in (1, 2, 3))])
def test_fvcore_equals_the_closed_form_on_random_networks(chunk):
    """60 networks a chunk, half of them X and half Y; count() compares total and stages, here it is done again."""
    for seed in range(60 * chunk, 60 * (chunk + 1)):
        network, resolution, classes = random_network(seed)
        counted = count(AnyNet(network, classes, seed=0), network, resolution, classes)
        closed = network_complexity(network, resolution, classes).total
        assert (counted.total.macs, counted.total.parameters, counted.total.activations) == closed, (seed, network)
        assert counted.differences() == []


@pytest.mark.parametrize(
    ("regnet", "resolution"),
    [
        (RegNet(d=13, w_0=24, w_a=36.44, w_m=2.49, g=8), 224),
        (RegNet(d=16, w_0=48, w_a=27.89, w_m=2.09, g=8, family="y"), 224),
        (RegNet(d=12, w_0=8, w_a=8.3, w_m=2.2, g=4, family="y"), 160),
    ],
)
def test_fvcore_equals_the_closed_form_on_whole_regnets(regnet, resolution):
    network = regnet.network()
    counted = count(AnyNet(network, 1000, seed=0), network, resolution, 1000)
    assert counted.record().closed_form.to_json() == {
        "macs": counted.total.macs,
        "parameters": counted.total.parameters,
        "activations": counted.total.activations,
        "equal": True,
    }


def test_a_published_network_has_its_published_counts():
    published = find_published("RegNetY-400MF")
    counted = count(AnyNet(published.network, 1000, seed=0), published.network, 224, 1000)
    assert counted.total.macs == published.macs
    assert counted.total.parameters == published.parameters
    assert counted.total.activations == published.activations
    # Convolutions and linear as fvcore counts them, without biases: 401,402,848 + 440,000.
    assert sum(
        cost.fvcore_total for name, cost in counted.operators.items() if name not in ("batch norm", "pooling")
    ) == (401_402_848 + 440_000)


@pytest.mark.parametrize(
    ("block", "shortcut"), [("v", []), ("vr", ["1x1 projection"])], ids=["without shortcut", "with shortcut"]
)
def test_the_one_convolution_of_a_block_has_its_own_row(block, shortcut):
    network = Network((2, 1), (8, 16), (8, 16), (1.0, 1.0), stem_stride=1, stem_width=8, block=block)
    counted = count(AnyNet(network, 3, seed=0), network, 8, 3)
    convolutions = [name for name in counted.operators if name[:3] in ("1x1", "3x3")]
    assert convolutions == ["3x3 stem", "3x3 a", *shortcut]
    assert counted.operators["3x3 a"].macs == 9 * (8 * 8 * 16 + 8 * 8 * 16 + 8 * 16 * 4)


def test_a_shortcut_that_the_network_should_not_have_is_noticed():
    v, vr = (Network((1,), (8,), (8,), (1.0,), stem_stride=1, stem_width=8, block=block) for block in ("v", "vr"))
    with pytest.raises(ProofError, match="cannot count aten::add"):
        count(AnyNet(vr, 3, seed=0), v, 8, 3)
    with pytest.raises(ProofError, match="found no aten::add"):
        count(AnyNet(v, 3, seed=0), vr, 8, 3)


@pytest.mark.parametrize(
    ("network", "resolution", "classes"),
    [random_network(7), *map(random_other_network, range(3))],
    ids=["y", "v", "vr", "r"],
)
def test_stages_and_operators_each_add_up_to_the_total(network, resolution, classes):
    counted = count(AnyNet(network, classes, seed=0), network, resolution, classes)
    for parts in (counted.stages, counted.operators):
        total = Count()
        for part in parts.values():
            total = total.plus(part)
        assert total == counted.total
    assert list(counted.stages) == ["stem", *(f"s{i + 1}" for i in range(len(network.depths))), "head"]
    assert ("squeeze-excitation" in counted.operators) is bool(network.se_ratio)


def test_the_two_totals_differ_by_batch_norm_pooling_and_biases():
    network = Network((1,), (8,), (8,), (1.0,), stem_stride=1, stem_width=8)
    counted = count(AnyNet(network, 3, seed=0), network, 8, 3)
    norms = 2 * (8 * 64 + 8 * 64 + 8 * 16 * 3)  # stem, a at 8x8; b, c, projection at 4x4; two for each element
    assert counted.operators["batch norm"].fvcore_total == norms
    assert counted.operators["pooling"].fvcore_total == 8 * 16
    assert counted.total.fvcore_total == counted.total.macs - 3 + norms + 8 * 16


def test_counting_leaves_the_model_as_it_was():
    network, resolution, classes = random_network(1)
    model = AnyNet(network, classes, seed=0).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count(model, network, resolution, classes)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_another_network_than_stated_is_a_proof_error_with_both_numbers():
    network = Network((1,), (8,), (8,), (1.0,), stem_stride=1, stem_width=8)
    deeper = Network((2,), (8,), (8,), (1.0,), stem_stride=1, stem_width=8)
    with pytest.raises(ProofError, match=r"macs of s1: counted [\d,]+, closed form [\d,]+"):
        count(AnyNet(deeper, 3, seed=0), network, 8, 3)


def test_an_operator_that_no_anynet_has_is_not_passed_over_in_silence():
    network = Network((1,), (8,), (8,), (1.0,), stem_stride=1, stem_width=8)
    model = AnyNet(network, 3, seed=0)
    model.stem.af = nn.Softplus()
    with pytest.raises(ProofError, match="cannot count aten::softplus"):
        count(model, network, 8, 3)


def test_an_operator_that_is_missing_is_noticed():
    network = Network((1,), (8,), (8,), (1.0,), se_ratio=SE_RATIO, stem_stride=1, stem_width=8)
    without = Network((1,), (8,), (8,), (1.0,), stem_stride=1, stem_width=8)
    with pytest.raises(ProofError, match="found no aten::mean"):
        count(AnyNet(without, 3, seed=0), network, 8, 3)


def test_only_the_deprecation_of_torchscript_is_kept_quiet():
    with counts_module._without_jit_deprecations(), pytest.raises(DeprecationWarning, match="something else"):
        warnings.warn("something else is deprecated", DeprecationWarning, stacklevel=1)


def test_fvcore_equals_the_closed_form_on_gray_networks():
    for seed in range(6):
        network, resolution, classes = (random_network if seed % 2 else random_other_network)(seed)
        gray = replace(network, input_channels=1)
        counted = count(AnyNet(gray, classes, seed=0), gray, resolution, classes)
        closed = network_complexity(gray, resolution, classes).total
        assert (counted.total.macs, counted.total.parameters, counted.total.activations) == closed, (seed, gray)
        assert closed < network_complexity(network, resolution, classes).total
