"""Weights as safetensors: of a module, and of a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regnet_deploy.bundle import Bundle, Manifest, update_bundle
from regnet_deploy.bundle.manifest import Architecture, Preprocessing, WeightsOrigin
from regnet_deploy.bundle.measurements import EvaluationRecord
from regnet_deploy.bundle.training import Training
from regnet_deploy.errors import BundleError, UsageError, require
from regnet_deploy.models.anynet import AnyNet

FILE = "weights.safetensors"
#: What tells weights of a bundle, which take RGB, from those of pycls, which have the same names and take BGR.
METADATA = {"written_by": "regnet-deploy"}
#: Evaluation pixels of some training images, of which ``export`` makes its golden set.
SAMPLES = "samples.safetensors"
#: Answers on the validation images, or on those of `evaluate`, in short: confusion and worst mistakes.
ANSWERS = "answers.npz"
#: Seed of the random weights of a bundle that is not trained.
UNTRAINED_SEED = 0
#: Parts and files of a bundle that were made with its weights.
_DERIVED = (
    "golden",
    "variants",
    "choice",
    "evaluation",
    "profile",
    "serving",
    "golden.safetensors",
    ANSWERS,
    "*.onnx",
    "*.plan",
)


@dataclass(frozen=True)
class WeightsUpdate:
    """New weights for a bundle, and everything that describes them.

    Attributes:
        state: weights and batch norm statistics by name.
        architecture: the network of the weights.
        preprocessing: from images to the network's input.
        labels: class names in the order of the outputs; empty if they are not known.
        training: how the weights were trained; None if it is not known.
        imported: where weights of another library come from.
        samples: ``samples.safetensors``; None if there are no training images.
        answers: ``answers.npz``, the answers on the validation images; None if there are none.
        environment: command -> versions, machine and date that made the weights.
        evaluation: their accuracy on images that had no part in training.
    """

    state: Mapping[str, Tensor]
    architecture: Architecture
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    training: Training | None = None
    imported: WeightsOrigin | None = None
    samples: bytes | None = None
    environment: Mapping[str, dict[str, Any]] | None = None
    evaluation: EvaluationRecord | None = None
    answers: bytes | None = None

    def __post_init__(self) -> None:
        """Check the number of labels.

        Raises:
            UsageError: there are labels, and not one for each class.
        """
        if self.labels and len(self.labels) != self.architecture.classes:
            raise UsageError(
                f"{len(self.labels)} labels for {self.architecture.classes} classes: give one for each class"
            )


def replace_weights(bundle: Bundle, update: WeightsUpdate) -> Bundle:
    """Write new weights and their description into a bundle in one step, and return the new bundle.

    What was made with the old weights is removed: golden set, variants, engines, choice, profile, settings of the
    server, and the training part and samples if the update has none.

    Args:
        bundle: as it was when the work on the new weights began.
        update: the new weights.

    Raises:
        BundleError: the bundle was changed meanwhile, or cannot be written; it is then as before.
    """
    files = {FILE: weights_to_bytes(update.state)}
    if update.samples is not None:
        files[SAMPLES] = update.samples
    if update.answers is not None:
        files[ANSWERS] = update.answers
    manifest = Manifest(
        architecture=update.architecture,
        preprocessing=update.preprocessing,
        labels=update.labels,
        imported=update.imported,
        training=update.training,
        evaluation=update.evaluation,
        environment=dict(update.environment or {}),
    )
    return update_bundle(
        bundle.path, manifest, files, drop=("labels", "imported", "training", SAMPLES, *_DERIVED), expect=bundle
    )


def weights_to_bytes(state: Mapping[str, Tensor], metadata: Mapping[str, str] = METADATA) -> bytes:
    """Serialize a state dict as safetensors, in the order of its names so that equal weights give equal bytes.

    Args:
        state: tensors by name.
        metadata: texts in the head of the file; of more than one, the order may differ.
    """
    save = require("safetensors.torch", "train").save
    data: bytes = save({name: state[name].detach().cpu().contiguous() for name in sorted(state)}, dict(metadata))
    return data


def weights_from_bytes(data: bytes) -> dict[str, Tensor]:
    """Return the state dict that :func:`weights_to_bytes` serialized."""
    state: dict[str, Tensor] = require("safetensors.torch", "train").load(data)
    return state


def load_model(bundle: Bundle) -> AnyNet:
    """Return the bundle's network in evaluation mode, with its weights, or with seeded random ones before training.

    Raises:
        BundleError: the weights are damaged or of another network.
    """
    architecture = bundle.architecture
    model = AnyNet(architecture.network, architecture.classes, seed=UNTRAINED_SEED)
    if FILE in bundle.files:
        try:
            model.load_state_dict(weights_from_bytes(bundle.read(FILE)))
        except (RuntimeError, require("safetensors", "train").SafetensorError):
            raise BundleError(
                f"the weights in {bundle.path} are of another network: run `regnet-deploy train --data "
                f"DIR{bundle.argument}` again"
            ) from None
    model.eval()
    return model


def inference_model(model: nn.Module, images: Tensor) -> Tensor:
    """Return the logits of ``images``, ``(n, channels, h, w)``, without recording gradients."""
    with torch.inference_mode():
        logits: Tensor = model(images)
    return logits
