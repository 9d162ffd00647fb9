"""A checkpoint: all that a run needs to go on as if it had never stopped, in one safetensors file.

The tensors are the weights, their momenta and the best weights so far; the rest is JSON in the file's metadata. No
random state is kept because there is none: order and augmentation are functions of seed, epoch and image. The file is
replaced in one rename, so there is always a whole one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regnet_deploy.errors import DataError, require
from regnet_deploy.training.autotune import Autotune
from regnet_deploy.training.trainer import Trainer

FILE = "checkpoint.safetensors"
SCHEMA = 2
_TEMPORARY = ".incomplete-checkpoint"


@dataclass
class RunState:
    """Where a run stands.

    Attributes:
        epoch: epochs done.
        step: steps done of the epoch that is under way.
        loss_sum: over the training images of this epoch so far.
        right: training images of this epoch answered rightly so far.
        images: training images of this epoch so far.
        seconds: spent on this epoch so far.
        step_seconds: of these, spent on training steps.
        history: metrics of each epoch done.
        best_epoch: the epoch, counted from 1, whose weights are the best so far; 0 before the first is done.
        unreadable: files that could not be read any more -> the reason.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    right: int = 0
    images: int = 0
    seconds: float = 0.0
    step_seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on.

    Attributes:
        identity: recipe, data, architecture and so on: what makes it this run and no other.
        choice: how its steps are executed.
        progress: where it stands.
        model: weights and batch norm statistics by name.
        momentum: momentum by name of the parameter.
        best: weights and statistics of the best epoch so far; empty before the first is done.
        torch: version of PyTorch that wrote it.
    """

    identity: Mapping[str, Any]
    choice: Autotune
    progress: RunState
    model: Mapping[str, Tensor]
    momentum: Mapping[str, Tensor]
    best: Mapping[str, Tensor]
    torch: str = torch.__version__


def make_checkpoint(
    identity: Mapping[str, Any], choice: Autotune, progress: RunState, learner: Trainer, best: Mapping[str, Tensor]
) -> Checkpoint:
    """Return the checkpoint of a learner as it is now (its tensors are the learner's own)."""
    return Checkpoint(identity, choice, progress, learner.model.state_dict(), learner.momentum(), best)


def restore(checkpoint: Checkpoint, learner: Trainer) -> None:
    """Put the weights and momenta into a learner of the same network."""
    learner.model.load_state_dict(dict(checkpoint.model))
    with torch.no_grad():
        for name, momentum in learner.momentum().items():
            momentum.copy_(checkpoint.momentum[name])


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the checkpoint in place of the last one.

    Raises:
        DataError: it cannot be written; the last one is as it was.
    """
    groups = {"model": checkpoint.model, "momentum": checkpoint.momentum, "best": checkpoint.best}
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
        "choice": checkpoint.choice.to_json(),
        "progress": asdict(checkpoint.progress),
    }
    data = require("safetensors.torch", "train").save(tensors, metadata={"state": json.dumps(state)})
    try:
        _replace(folder / FILE, data)
    except OSError as error:
        raise DataError(
            f"cannot write {folder / FILE}: {error.strerror}; the checkpoint before it is whole: "
            "make room, then give the same command again to go on"
        ) from None


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """Read the checkpoint of a run, or return None where there is none.

    Raises:
        DataError: it is damaged, or of a newer version of this program.
    """
    path = folder / FILE
    if not path.exists():
        return None
    damaged = DataError(f"{path} is damaged: give --restart to drop the unfinished run")
    try:
        with require("safetensors", "train").safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
            state = json.loads((file.metadata() or {})["state"])
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except (require("safetensors", "train").SafetensorError, ValueError, KeyError):
        raise damaged from None
    if state.get("schema") != SCHEMA:
        raise DataError(f"{path} was written by another version of regnet-deploy: give --restart to drop its run")
    if state.get("sha256") != _digest(tensors):
        raise damaged
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "momentum": {}, "best": {}}
    for key, tensor in tensors.items():
        group, _, name = key.partition(".")
        groups[group][name] = tensor
    progress = RunState(**state["progress"])
    return Checkpoint(state["identity"], Autotune.from_json(state["choice"]), progress, **groups, torch=state["torch"])


def drop_checkpoint(folder: Path) -> None:
    """Delete the checkpoint: its run is over."""
    (folder / FILE).unlink(missing_ok=True)
    (folder / _TEMPORARY).unlink(missing_ok=True)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _replace(path: Path, data: bytes) -> None:
    temporary = path.parent / _TEMPORARY
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
