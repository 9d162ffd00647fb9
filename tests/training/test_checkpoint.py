"""Checkpoints: a run goes on from one to the bit, and there is always a whole one or none."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from regnet_deploy.bundle import Bundle
from regnet_deploy.bundle.training import Autotune, Epoch, Execution, TrainingData
from regnet_deploy.errors import DataError
from regnet_deploy.models.weights import FILE as WEIGHTS
from regnet_deploy.training import checkpoint
from regnet_deploy.training.checkpoint import (
    FILE,
    Checkpoint,
    RunDescription,
    RunState,
    drop_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from regnet_deploy.training.data_loader import TrainingDataset, batches_from, load
from regnet_deploy.training.recipe import Recipe
from regnet_deploy.training.train import TrainOptions, train
from regnet_deploy.training.trainer import Trainer, make_trainer

AUTOTUNE = Autotune(execution=Execution("cpu"), step_ms={}, reason="as asked", threads=1)
DATA = TrainingData(
    folder="data", classes=2, train_images=3, val_images=1, split="val/", digest="0", rejected={"a.txt": "no image"}
)
DESCRIPTION = RunDescription(labels=("a", "猫"), data=DATA, device="CPU, 1 threads", name="run-1")
SAMPLES = {"images": torch.arange(12, dtype=torch.uint8).reshape(1, 2, 2, 3), "labels": torch.tensor([1])}
EPOCH = Epoch(
    epoch=1,
    lr=0.1,
    train_loss=1.5,
    train_top1=0.25,
    val_loss=1.25,
    val_top1=1 / 3,
    val_images=12,
    images_per_s=100.0,
    seconds=0.5,
)
STATE = RunState(epoch=1, step=2, loss_sum=0.1 + 0.2, right=3, images=16, seconds=1.5, history=[EPOCH])


def save(folder: Path, trainer: Trainer, state: RunState = STATE) -> None:
    best = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    tensors = trainer.model.state_dict(), trainer.optimizer_state(), best, SAMPLES
    save_checkpoint(folder, Checkpoint({"recipe": {"epochs": 3}}, DESCRIPTION, AUTOTUNE, state, *tensors))


@pytest.mark.parametrize("change", [{}, {"optimizer": "adamw", "lr": 0.01, "mixup": 0.2, "cutmix": 1.0}])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_restored_trainer_continues_bit_identically(
    tmp_path: Path,
    trainer: Trainer,
    views: TrainingDataset,
    recipe: Recipe,
    channels_last: bool,
    change: dict[str, Any],
) -> None:
    recipe = replace(recipe, **change)
    execution = Execution("cpu", channels_last=channels_last)
    batches = list(load(views, batches_from(recipe, views.labels, 0, 0), 0, pin=False))
    trainer = make_trainer(trainer.model, execution, recipe, views.preprocessing)
    for batch in batches[:4]:
        trainer.step(batch, 0.01)
    save(tmp_path, trainer)
    other = make_trainer(trainer.model, execution, recipe, views.preprocessing)
    read = load_checkpoint(tmp_path)
    assert read is not None
    read.restore(other)
    for number, batch in enumerate(batches[4:], 4):
        trainer.step(batch, 0.01, (0, number))
        other.step(batch, 0.01, (0, number))
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name
    for name, value in trainer.optimizer_state().items():
        assert torch.equal(value, other.optimizer_state()[name]), name


def test_the_rest_comes_back_as_it_was(tmp_path: Path, trainer: Trainer) -> None:
    save(tmp_path, trainer)
    read = load_checkpoint(tmp_path)
    assert read is not None
    assert read.state == STATE
    assert read.autotune == AUTOTUNE
    assert read.description == DESCRIPTION
    assert read.position == "epoch 2 step 2"
    assert {name: value.tolist() for name, value in read.samples.items()} == {
        "images": SAMPLES["images"].tolist(),
        "labels": [1],
    }
    assert read.identity == {"recipe": {"epochs": 3}}
    assert set(read.best) == set(trainer.model.state_dict())
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_without_a_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None
    drop_checkpoint(tmp_path)


def test_dropping_leaves_nothing(tmp_path: Path, trainer: Trainer) -> None:
    save(tmp_path, trainer)
    drop_checkpoint(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_checkpoint_before(
    tmp_path: Path, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, trainer)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="No space left on device; the last complete checkpoint is intact"):
        save(tmp_path, trainer, RunState(epoch=2))
    monkeypatch.undo()
    read = load_checkpoint(tmp_path)
    assert read is not None
    assert read.state.epoch == 1
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_a_full_disk_at_the_first_checkpoint_says_that_there_is_none(
    tmp_path: Path, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        DataError, match=r"No space left on device; there is no earlier checkpoint: .* starts the run anew"
    ):
        save(tmp_path, trainer)
    assert list(tmp_path.iterdir()) == []


def test_what_killed_processes_left_is_deleted_and_folders_stay(tmp_path: Path, trainer: Trainer) -> None:
    (tmp_path / ".incomplete-0123").write_bytes(b"half a checkpoint")
    (tmp_path / ".incomplete-earlier").mkdir()
    save(tmp_path, trainer)
    assert {path.name for path in tmp_path.iterdir()} == {FILE, ".incomplete-earlier"}


def test_a_file_system_without_fsync_takes_checkpoints(
    tmp_path: Path, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(handle: int) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "fsync", unsupported)
    save(tmp_path, trainer)
    assert load_checkpoint(tmp_path) is not None


@pytest.mark.parametrize("keep", [0, 7, 500, -1])
def test_a_damaged_checkpoint_is_one_line(tmp_path: Path, trainer: Trainer, keep: int) -> None:
    save(tmp_path, trainer)
    whole = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole[:keep])
    with pytest.raises(DataError, match="is damaged: give --restart") as caught:
        load_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_in_a_weight_is_found(tmp_path: Path, trainer: Trainer) -> None:
    save(tmp_path, trainer)
    whole = bytearray((tmp_path / FILE).read_bytes())
    whole[-3] ^= 4
    (tmp_path / FILE).write_bytes(whole)
    with pytest.raises(DataError, match="is damaged: give --restart"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("change", [{"unknown": 1}, {"history": 3}, {"history": [{"epoch": "one"}]}])
def test_a_checkpoint_with_another_state_is_damaged(
    tmp_path: Path, trainer: Trainer, monkeypatch: pytest.MonkeyPatch, change: dict[str, object]
) -> None:
    written = RunState.to_json
    monkeypatch.setattr(RunState, "to_json", lambda state: written(state) | change)
    save(tmp_path, trainer)
    monkeypatch.undo()
    with pytest.raises(DataError, match="is damaged: give --restart"):
        load_checkpoint(tmp_path)


def test_a_checkpoint_of_another_version_is_one_line(
    tmp_path: Path, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "SCHEMA", 99)
    save(tmp_path, trainer)
    monkeypatch.undo()
    with pytest.raises(DataError, match="another version of regnet-deploy: give --restart"):
        load_checkpoint(tmp_path)


def test_it_is_safetensors_and_json_and_nothing_that_runs(tmp_path: Path, trainer: Trainer) -> None:
    save(tmp_path, trainer)
    raw = (tmp_path / FILE).read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    state = json.loads(header.pop("__metadata__")["state"])
    assert set(state) == {"schema", "sha256", "torch", "identity", "run", "choice", "progress"}
    assert {name.split(".")[0] for name in header} == {"model", "momentum", "best", "samples"}


def test_a_run_that_an_earlier_version_began_ends_with_the_same_bytes(
    bundle: Bundle, data: Path, options: TrainOptions, recorded_progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, done, options = Trainer.step, [0], replace(options, checkpoint_s=0)
    recipe = Recipe(epochs=3, batch_size=8, crop_area=0.5)  # 3 steps an epoch

    def stopping(self: Trainer, *arguments: object) -> object:
        done[0] += 1
        if done[0] > 5:
            raise ZeroDivisionError
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stopping)
        with pytest.raises(ZeroDivisionError):
            train(bundle.path, data, recipe, options, recorded_progress)
    path = bundle.path.with_name("bundle.training") / FILE
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is not a dict
        state = json.loads(file.metadata()["state"])
    state["schema"] = 3
    del state["identity"]["data"]["test images"]
    for part, names in {
        "progress": ("best_averaged", "rate_trials", "trial_seconds", "lr_probe"),
        "run": ("root", "val_split", "test_split"),
    }.items():
        state[part] = {name: value for name, value in state[part].items() if name not in names}
    save_file(tensors, path, metadata={"state": json.dumps(state)})
    resumed = train(bundle.path, data, recipe, options, recorded_progress)
    assert "resuming at epoch 2 step 2" in recorded_progress.text
    other = replace(options, run_dir=bundle.path.with_name("other"), restart=True)
    assert train(bundle.path, data, recipe, other, recorded_progress).files[WEIGHTS] == resumed.files[WEIGHTS]
