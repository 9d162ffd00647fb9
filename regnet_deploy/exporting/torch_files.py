"""Writes and opens networks in the two formats of PyTorch: TorchScript and exported programs (``.pt2``).

PyTorch 2.13 warns that TorchScript is deprecated in favor of exported programs. Many programs in C++ load it, so it is
written all the same, without these warnings.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.images.preprocessing import image_shape

#: Name of the file with the description of the network inside of both formats.
DESCRIPTION = "regnet-deploy.json"


@dataclass
class TorchProgram:
    """A :class:`regnet_deploy.runtimes.runtime.Session` over a network that was read from a file, on the CPU."""

    forward: Callable[[Tensor], Tensor]
    runtime: str = f"torch {torch.__version__}"
    device: str = "cpu"
    input: str = "float32"
    input_name: str = "images"
    output_name: str = "logits"

    def run(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Map normalized images, ``(n, channels, h, w)``, to logits, ``(n, classes)``."""
        with torch.inference_mode():
            logits: NDArray[np.float32] = self.forward(torch.from_numpy(images)).numpy()
        return logits


def to_torchscript(model: nn.Module, preprocessing: Preprocessing, description: str) -> bytes:
    """Return a network as TorchScript, for any number of images ``(n, channels, crop, crop)``."""
    buffer = io.BytesIO()
    with _deprecations_ignored(), torch.no_grad():
        traced = torch.jit.trace(model, _example(preprocessing), check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, buffer, _extra_files={DESCRIPTION: description})
    return buffer.getvalue()


def open_torchscript(data: bytes) -> TorchProgram:
    """Open TorchScript that :func:`to_torchscript` wrote."""
    with _deprecations_ignored():
        return TorchProgram(torch.jit.load(io.BytesIO(data)))  # type: ignore[no-untyped-call]


def to_pt2(model: nn.Module, preprocessing: Preprocessing, description: str) -> bytes:
    """Return a network as an exported program, for any number of images ``(n, channels, crop, crop)``."""
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, (_example(preprocessing),), dynamic_shapes=({0: batch},))
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={DESCRIPTION: description})
    return buffer.getvalue()


def open_pt2(data: bytes) -> TorchProgram:
    """Open an exported program that :func:`to_pt2` wrote."""
    return TorchProgram(torch.export.load(io.BytesIO(data)).module())


def _example(preprocessing: Preprocessing) -> Tensor:
    """Return two images: a batch of one would become a constant of an exported program."""
    return torch.zeros(2, *image_shape(preprocessing, pixels=False))


@contextmanager
def _deprecations_ignored() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit", category=DeprecationWarning)
        yield
