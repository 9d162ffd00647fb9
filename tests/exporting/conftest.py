"""Small networks with batch norms that have seen something, and bundles of them."""

import numpy as np
import pytest
import torch
from torch import nn

from regnet_deploy.bundle import create_bundle, update_bundle
from regnet_deploy.images.preprocess import default_preprocessing
from regnet_deploy.models.anynet import AnyNet
from regnet_deploy.models.weights import weights_to_bytes
from regnet_deploy.space.network import Network

CLASSES, SIDE = 5, 32
LABELS = ["ant", "bee", "café", "dog", "eel"]


@pytest.fixture(autouse=True)
def _one_thread():
    """Networks this small only wait for each other in several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def with_random_statistics(model: nn.Module, seed: int) -> nn.Module:
    """Give every batch norm a scale, shift, mean and variance, and the linear larger weights."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.3, generator=generator)
                module.running_mean.normal_(0, 0.5, generator=generator)
                module.running_var.uniform_(0.3, 3.0, generator=generator)
            elif isinstance(module, nn.Linear):
                module.weight.normal_(0, 0.5, generator=generator)
                module.bias.normal_(0, 0.5, generator=generator)
    return model.eval()


@pytest.fixture
def random_model():
    """Return a maker of models: network, classes, seed."""
    return lambda network, classes, seed: with_random_statistics(AnyNet(network, classes, seed=seed), seed)


@pytest.fixture
def network() -> Network:
    return Network((1, 2), (16, 24), (8, 8), (1.0, 1.0), se_ratio=0.25, stem_stride=1, stem_width=8)


@pytest.fixture
def untrained(tmp_path, network):
    """A bundle as select leaves it."""
    architecture = {**network.to_json(), "classes": CLASSES, "resolution": SIDE, "name": "tiny"}
    parts = {"architecture": architecture, "preprocessing": default_preprocessing(SIDE).to_json()}
    return create_bundle(tmp_path / "bundle", parts).path


@pytest.fixture
def trained(untrained, network):
    """A bundle as train leaves it: weights, labels and samples."""
    from safetensors.numpy import save

    draw = np.random.default_rng(3)
    colours = draw.integers(0, 256, (40, 1, 1, 3)) + draw.integers(-60, 60, (40, SIDE, SIDE, 3))
    samples = {"images": np.clip(colours, 0, 255).astype(np.uint8), "labels": np.arange(40) % CLASSES}
    model = with_random_statistics(AnyNet(network, CLASSES, seed=1), seed=1)
    files = {"weights.safetensors": weights_to_bytes(model.state_dict()), "samples.safetensors": save(samples)}
    return update_bundle(untrained, {"labels": LABELS}, files).path
