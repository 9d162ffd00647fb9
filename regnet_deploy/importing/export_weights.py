"""Writes the weights of a bundle with the names of another library."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from regnet_deploy.bundle import Bundle
from regnet_deploy.errors import MissingPart, UsageError, did_you_mean
from regnet_deploy.importing.hub_config import STATED, stated_use
from regnet_deploy.importing.layouts import TARGETS, layout_for_export
from regnet_deploy.models.weights import FILE, weights_from_bytes, weights_to_bytes
from regnet_deploy.output_file import check_output_file, write_output_file

_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".pyth")


def export_weights(bundle: Bundle, target: str, path: str | Path) -> Path:
    """Write the weights of a bundle so that another library loads them with ``strict=True``, and return the file.

    Args:
        bundle: with trained or imported weights.
        target: one of :data:`regnet_deploy.importing.layouts.TARGETS`.
        path: a name that ends in ``.safetensors``, or in ``.pth``, ``.pt``, ``.bin`` or ``.pyth`` for a file of
            ``torch.save``. The former also says how the network is used, which ``import`` reads.

    Raises:
        UsageError: the library is not known or does not have this kind of network, or the file cannot be written.
        MissingPart: the bundle has no weights.
    """
    file = check_output_file(path, _SUFFIXES, "a weight file")
    if FILE not in bundle.files:
        raise MissingPart(
            f"{bundle.path} has no weights yet: run `regnet-deploy train{bundle.argument} --data DIR` or "
            "`regnet-deploy import` first"
        )
    state = foreign_state(weights_from_bytes(bundle.read(FILE)), target, bundle.architecture.network.se_ratio > 0)
    if file.suffix == ".safetensors":
        metadata = {"format": "pt", STATED: stated_use(bundle)}  # some loaders demand the first
        if target == "pycls":
            metadata["channels"] = "bgr"
        data = weights_to_bytes(state, metadata)
    else:
        content = {"model_state": state} if target == "pycls" else state
        buffer = io.BytesIO()
        torch.save(content, buffer)
        data = buffer.getvalue()
    write_output_file(file, data)
    return file


def foreign_state(state: Mapping[str, Tensor], target: str, se: bool) -> dict[str, Tensor]:
    """Return weights with the names of a library, and with the channels in its order.

    Args:
        state: weights of this program, by name.
        target: one of :data:`regnet_deploy.importing.layouts.TARGETS`.
        se: whether the network has squeeze-and-excitation.

    Raises:
        UsageError: the library is not known, or does not have this kind of network.
    """
    if target not in TARGETS:
        raise UsageError(f"--to must be one of {', '.join(TARGETS)}, got {target!r}{did_you_mean(target, TARGETS)}")
    layout = layout_for_export(target, se)
    try:
        renamed = {layout.foreign_name(name): tensor for name, tensor in state.items()}
    except KeyError as missing:
        raise UsageError(
            f"{target} has no networks with blocks of a single convolution: it has no name for {missing.args[0]}"
        ) from None
    if layout.bgr:
        stem = layout.foreign_name("stem.conv.weight")
        renamed[stem] = renamed[stem].flip(1)
    return {name: tensor.contiguous() for name, tensor in renamed.items()}
