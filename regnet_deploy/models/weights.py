"""Weights as safetensors: out of a module, into a module, out of a bundle."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regnet_deploy.bundle import Bundle
from regnet_deploy.errors import BundleError, require
from regnet_deploy.models.anynet import AnyNet
from regnet_deploy.space.network import Network

FILE = "weights.safetensors"

#: Seed of the weights that stand in where nothing has been trained yet.
UNTRAINED_SEED = 0


def weights_to_bytes(state: dict[str, Tensor]) -> bytes:
    """Serialise a state dict as safetensors, in the order of its names so that equal weights are equal bytes."""
    save = require("safetensors.torch", "train").save
    data: bytes = save({name: state[name].detach().cpu().contiguous() for name in sorted(state)})
    return data


def weights_from_bytes(data: bytes) -> dict[str, Tensor]:
    """Read what :func:`weights_to_bytes` wrote."""
    state: dict[str, Tensor] = require("safetensors.torch", "train").load(data)
    return state


def load_model(bundle: Bundle) -> AnyNet:
    """Return the bundle's network in evaluation mode with its trained weights, or seeded ones before training.

    Raises:
        BundleError: the weights are damaged or of another network.
    """
    architecture = bundle.part("architecture")
    model = AnyNet(Network.from_json(architecture), architecture["classes"], seed=UNTRAINED_SEED)
    if FILE in bundle.files:
        try:
            model.load_state_dict(weights_from_bytes(bundle.read(FILE)))
        except (RuntimeError, require("safetensors", "train").SafetensorError):
            raise BundleError(
                f"the weights in {bundle.path} are of another network: run `regnet-deploy train` again"
            ) from None
    model.eval()
    return model


def inference_model(model: nn.Module, images: Tensor) -> Tensor:
    """Return the logits of ``images``, ``(n, 3, h, w)``, without keeping what a gradient would need."""
    with torch.inference_mode():
        logits: Tensor = model(images)
    return logits
