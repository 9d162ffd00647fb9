"""The PyTorch model as a session, with which ``predict`` runs and against which ``verify`` compares variants."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from regnet_deploy.bundle import Bundle
from regnet_deploy.models.weights import inference_model, load_model


class TorchSession:
    """A :class:`regnet_deploy.runtimes.runtime.Session` over the weights of a bundle, FP32 on the CPU.

    Raises:
        BundleError: the weights are damaged or of another network.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._model = load_model(bundle)
        self.runtime = f"torch {torch.__version__}"
        self.device = "cpu"
        self.input = "float32"
        self.input_name, self.output_name = "images", "logits"

    def run(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Map normalized images, ``(n, channels, h, w)``, to logits, ``(n, classes)``."""
        logits: NDArray[np.float32] = inference_model(self._model, torch.from_numpy(images)).numpy()
        return logits
