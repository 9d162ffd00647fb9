"""The checkpoint: what a run needs to continue as if it had never stopped, or to end now, in one safetensors file.

The tensors are the weights, the state of the optimizer and of the loss scaling, the moving average, the best weights so
far, those that trials of the learning rate start from, and the sample images of the bundle; the rest is JSON in the
metadata of the file. The images of the run are needed to continue it, but not to end it.
There is no random state to store: order and augmentation are functions of seed, epoch and image. The file is replaced
by a rename, so it is always complete.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regnet_deploy.bundle.record import Record, to_json
from regnet_deploy.bundle.training import (
    Autotune,
    BestEpoch,
    Epoch,
    LearningRateProbe,
    LinearProbe,
    PixelBaseline,
    RateTrial,
    Retry,
    TrainingData,
)
from regnet_deploy.durable_files import TEMPORARY, sync_folder, write_whole
from regnet_deploy.errors import BundleError, DataError, require
from regnet_deploy.images.dataset import DEFAULT_VAL_SPLIT
from regnet_deploy.training.trainer import Trainer

FILE = "checkpoint.safetensors"
SCHEMA = 4
#: Earlier schemas that are read: 3 has neither averages nor trials of the learning rate.
_READ = (3, SCHEMA)
_GROUPS = ("model", "momentum", "best", "samples", "average", "start", "scaling")


@dataclass
class RunState:
    """How far a run is.

    Attributes:
        epoch: completed epochs.
        step: completed steps of the current epoch, or of the current trial of a learning rate.
        loss_sum: sum of the loss over the training images of this epoch or trial so far.
        right: correctly classified training images of this epoch so far.
        images: training images of this epoch so far.
        seconds: time of this epoch so far.
        step_seconds: part of ``seconds`` that was spent on training steps, with waiting for their images.
        used_seconds: part of ``step_seconds`` in which the device computed steps.
        waited_seconds: part of ``step_seconds`` in which it had to wait for images.
        loading_seconds: time in which the images of this epoch were loaded by all loading processes at once.
        history: metrics of each completed epoch.
        best_epoch: the epoch, counted from 1, whose weights are the best so far; 0 before the first is completed, or
            if the linear probe is the best.
        unreadable: name -> reason, of images that could no longer be read.
        probe: the linear probe of a fine-tuning; None before it is fitted.
        rate_trials: completed trials of learning rates.
        trial_seconds: time of them.
        lr_probe: their result; None before it is known.
        pixels: the logistic regression on small pixels; None before it is fitted.
        retries: where the run went back to earlier weights and a lower rate.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    right: int = 0
    images: int = 0
    seconds: float = 0.0
    step_seconds: float = 0.0
    used_seconds: float = 0.0
    waited_seconds: float = 0.0
    loading_seconds: float = 0.0
    history: list[Epoch] = field(default_factory=list)
    best_epoch: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    probe: LinearProbe | None = None
    rate_trials: list[RateTrial] = field(default_factory=list)
    trial_seconds: float = 0.0
    lr_probe: LearningRateProbe | None = None
    pixels: PixelBaseline | None = None
    retries: list[Retry] = field(default_factory=list)

    @property
    def best(self) -> BestEpoch | None:
        """The best epoch so far, or the linear probe as epoch 0."""
        best = self.history[self.best_epoch - 1] if self.best_epoch else self.probe
        if best is None:
            return None
        return BestEpoch(
            epoch=self.best_epoch,
            val_top1=best.val_top1,
            val_loss=best.val_loss,
            val_images=best.val_images,
            averaged=best.averaged if isinstance(best, Epoch) else None,
        )

    def is_complete(self, recipe: Mapping[str, Any]) -> bool:
        """Tell whether the run has the last epoch of this recipe, as JSON data, or has ended early.

        It ends early with the epoch after which so many as its patience were not better than the best result.
        """
        patience = recipe.get("patience", 0)
        waited = len(self.history) - self.best_epoch
        return bool(self.epoch == recipe["epochs"] or (patience > 0 and waited >= patience))

    def begin_steps(self) -> None:
        """Forget the steps of the epoch or trial that is completed."""
        self.step, self.loss_sum, self.right, self.images = 0, 0.0, 0, 0
        self.seconds = self.step_seconds = 0.0
        self.used_seconds = self.waited_seconds = self.loading_seconds = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return JSON data that :meth:`from_json` reads."""
        data: dict[str, Any] = to_json(vars(self))
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RunState:
        """Return the state of this JSON data."""
        probe, lr_probe, pixels = data.get("probe"), data.get("lr_probe"), data.get("pixels")
        return cls(
            **{
                **data,
                "history": [Epoch.from_json(epoch) for epoch in data["history"]],
                "probe": None if probe is None else LinearProbe.from_json(probe),
                "rate_trials": [RateTrial.from_json(trial) for trial in data.get("rate_trials", [])],
                "lr_probe": None if lr_probe is None else LearningRateProbe.from_json(lr_probe),
                "pixels": None if pixels is None else PixelBaseline.from_json(pixels),
                "retries": [Retry.from_json(retry) for retry in data.get("retries", [])],
            }
        )


class RunDescription(Record, frozen=True, kw_only=True):
    """What the bundle says of a run beside its weights and metrics, known from its start.

    Attributes:
        labels: class names in the order of the outputs.
        data: the images.
        device: name of the device.
        name: folder of its TensorBoard files in the run directory.
        root: folder of the images, absolute.
        val_split: share of each class that is held out where the folder has no validation images.
        test_split: share that is held out to test on; None where none is.
        recipe_name: of the recipe, if it has one.
    """

    labels: tuple[str, ...]
    data: TrainingData
    device: str
    name: str
    root: str = ""
    val_split: float = DEFAULT_VAL_SPLIT
    test_split: float | None = None
    recipe_name: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to continue, and to end.

    Attributes:
        identity: JSON data of the :class:`regnet_deploy.training.run_identity.RunIdentity`.
        description: of its images and its device.
        autotune: how its steps are executed.
        state: how far it is.
        model: weights and batch norm statistics by name.
        momentum: state of the optimizer by name: the momentum of each parameter, or AdamW's two moments and steps.
        best: weights and statistics of the best epoch so far, or with the linear probe as head; empty before the first
            of them.
        samples: ``images`` uint8 ``(n, h, w, channels)`` and ``labels`` int64 ``(n,)``: some training images.
        average: moving average of ``model``; empty if the recipe has none.
        start: weights and statistics that trials of the learning rate start from; empty before and after them.
        scaling: state of the loss scaling; empty if the run has none.
        torch: version of PyTorch that wrote it.
    """

    identity: Mapping[str, Any]
    description: RunDescription
    autotune: Autotune
    state: RunState
    model: Mapping[str, Tensor]
    momentum: Mapping[str, Tensor]
    best: Mapping[str, Tensor]
    samples: Mapping[str, Tensor]
    average: Mapping[str, Tensor] = field(default_factory=dict)
    start: Mapping[str, Tensor] = field(default_factory=dict)
    scaling: Mapping[str, Tensor] = field(default_factory=dict)
    torch: str = torch.__version__

    @property
    def position(self) -> str:
        """How far the run is, in words."""
        if self.start:
            return f"learning rate trial {len(self.state.rate_trials) + 1} step {self.state.step}"
        if self.state.is_complete(self.identity["recipe"]):
            return "the end of its last epoch"
        return f"epoch {self.state.epoch + 1} step {self.state.step}"

    def restore(self, trainer: Trainer) -> None:
        """Load weights, state of the optimizer and of the loss scaling, and average into a trainer of the network."""
        trainer.model.load_state_dict(dict(self.model))
        with torch.no_grad():
            for name, value in trainer.optimizer_state().items():
                value.copy_(self.momentum[name])
        if trainer.average:
            trainer.average.load_state_dict(dict(self.average))
        if trainer.scaling:
            trainer.scaling.restore(self.scaling)


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Replace the last checkpoint.

    Raises:
        DataError: it cannot be written; the last one, if there is one, is unchanged.
    """
    groups = {name: getattr(checkpoint, name) for name in _GROUPS}
    tensors = {
        f"{group}.{name}": tensor.detach().cpu().contiguous()
        for group, members in groups.items()
        for name, tensor in members.items()
    }
    state = {
        "schema": SCHEMA,
        "sha256": _digest(tensors),
        "torch": checkpoint.torch,
        "identity": checkpoint.identity,
        "run": checkpoint.description.to_json(),
        "choice": checkpoint.autotune.to_json(),
        "progress": checkpoint.state.to_json(),
    }
    data = require("safetensors.torch", "train").save(tensors, metadata={"state": json.dumps(state)})
    try:
        _replace(folder / FILE, data)
    except OSError as error:
        left = "the last complete checkpoint is intact: free some space, then repeat the command to continue"
        if not has_checkpoint(folder):
            left = "there is no earlier checkpoint: free some space, then repeat the command, which starts the run anew"
        raise DataError(f"cannot write {folder / FILE}: {error.strerror}; {left}") from None


def has_checkpoint(folder: Path) -> bool:
    """Return whether a run directory has a checkpoint."""
    return (folder / FILE).is_file()


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the checkpoint in a run directory, or None.

    Raises:
        DataError: it is damaged, or of another version of regnet-deploy.
    """
    path = folder / FILE
    if not path.exists():
        return None
    damaged = DataError(f"{path} is damaged: give --restart to drop the unfinished run")
    try:
        with require("safetensors", "train").safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is not a dict
            state = json.loads((file.metadata() or {})["state"])
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except (require("safetensors", "train").SafetensorError, ValueError, KeyError):
        raise damaged from None
    if state.get("schema") not in _READ:
        raise DataError(f"{path} was written by another version of regnet-deploy: give --restart to drop its run")
    if state.get("sha256") != _digest(tensors):
        raise damaged
    groups: dict[str, dict[str, Tensor]] = {name: {} for name in _GROUPS}
    for key, tensor in tensors.items():
        group, _, name = key.partition(".")
        groups[group][name] = tensor
    try:
        description, autotune = RunDescription.from_json(state["run"]), Autotune.from_json(state["choice"])
        run_state = RunState.from_json(state["progress"])
        return Checkpoint(state["identity"], description, autotune, run_state, **groups, torch=state["torch"])
    except (BundleError, KeyError, TypeError):  # a key is missing, unknown or of another type
        raise damaged from None


def drop_checkpoint(folder: Path) -> None:
    """Delete the checkpoint."""
    (folder / FILE).unlink(missing_ok=True)
    _drop_interrupted(folder)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _replace(path: Path, data: bytes) -> None:
    _drop_interrupted(path.parent)
    write_whole(path, data)
    sync_folder(path.parent)


def _drop_interrupted(folder: Path) -> None:
    """Delete what processes that were killed have left of checkpoints; the run directory is locked."""
    for temporary in folder.glob(f"{TEMPORARY}*"):
        if temporary.is_file():
            temporary.unlink(missing_ok=True)
