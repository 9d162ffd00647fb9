"""Small networks, and their weights as other libraries name them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from regnet_deploy.importing.layouts import layout_for_export
from regnet_deploy.models.anynet import AnyNet
from regnet_deploy.space.network import Network

Y = Network((1, 2), (16, 32), (8, 16), (1.0, 1.0), se_ratio=0.25, stem_width=8)
X = Network((1, 1, 2), (8, 24, 40), (8, 8, 8), (1.0, 1.0, 1.0), stem_width=8)


def weights_of(network: Network, classes: int = 5) -> dict[str, Tensor]:
    """Return weights whose batch norm statistics are not those of a new network."""
    model = AnyNet(network, classes, seed=0)
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model.state_dict()


def as_library(name: str, state: Mapping[str, Tensor], network: Network) -> dict[str, Tensor]:
    """Return weights with the names, and the order of channels, of a library."""
    layout = layout_for_export(name, bool(network.se_ratio))
    renamed = {layout.foreign_name(own): tensor for own, tensor in state.items()}
    if layout.bgr:
        stem = layout.foreign_name("stem.conv.weight")
        renamed[stem] = renamed[stem].flip(1)
    if layout.inputs_first:
        renamed |= {name: each.flatten(1) for name, each in renamed.items() if ".se_block." in name and each.ndim == 4}
        renamed |= {name: tensor.T for name, tensor in renamed.items() if tensor.ndim == 2}
    return renamed
