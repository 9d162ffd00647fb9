"""The end of an unfinished run: all that it takes is in the checkpoint."""

import dataclasses
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load as load_arrays

from regnet_deploy.bundle import Bundle, find_damage, open_bundle, update_bundle
from regnet_deploy.errors import DataError, UsageError
from regnet_deploy.models.weights import FILE, weights_to_bytes
from regnet_deploy.training import train
from regnet_deploy.training.checkpoint import FILE as CHECKPOINT
from regnet_deploy.training.checkpoint import load_checkpoint
from regnet_deploy.training.finish import finish_training
from regnet_deploy.training.recipe import Recipe
from regnet_deploy.training.run_directory import default_directory
from regnet_deploy.training.train import TrainOptions
from regnet_deploy.training.trainer import Trainer


class Stop(BaseException):
    """Stands for whatever ends a process."""


@pytest.fixture
def unfinished(
    bundle: Bundle,
    data: Path,
    recipe: Recipe,
    options: TrainOptions,
    recorded_progress,
    monkeypatch: pytest.MonkeyPatch,
) -> Bundle:
    """A bundle whose run stopped in its third epoch of six."""
    step, done = Trainer.step, [0]

    def stopping(self: Trainer, batch: object, rate: float, at: tuple[int, int]) -> object:
        done[0] += 1
        if done[0] == 8:
            raise Stop
        return step(self, batch, rate, at)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stopping)
        often = dataclasses.replace(options, checkpoint_s=0)
        with pytest.raises(Stop):
            train.train(bundle.path, data, dataclasses.replace(recipe, epochs=6), often, recorded_progress)
    return bundle


@pytest.mark.parametrize("change", ["nothing", "an image is gone", "the folder is gone"])
def test_the_best_weights_come_without_the_images_and_the_options(
    unfinished: Bundle, data: Path, recorded_progress, change: str
) -> None:
    best = load_checkpoint(default_directory(unfinished.path)).best
    if change == "an image is gone":
        (data / "train" / "red" / "003.png").unlink()
    elif change == "the folder is gone":
        shutil.rmtree(data)
    ended = finish_training(unfinished.path, progress=recorded_progress)
    part = ended.manifest.training
    assert (part.stopped, len(part.history), part.recipe["epochs"]) == (True, 2, 6)
    assert (part.data.train_images, part.data.val_images, part.data.folder) == (30, 12, "data")
    assert part.data.train_by_class == (10, 10, 10)
    assert ended.manifest.labels == ("blue", "green", "red")
    assert ended.architecture.classes == 3
    assert ended.read(FILE) == weights_to_bytes(best)
    assert load_arrays(ended.read("samples.safetensors"))["images"].shape == (30, 16, 16, 3)
    assert find_damage(ended) == []
    assert not (default_directory(unfinished.path) / CHECKPOINT).exists()


def test_the_option_needs_no_images_either(unfinished: Bundle, recorded_progress) -> None:
    train.train(unfinished.path, None, Recipe(), TrainOptions(finish=True), recorded_progress)
    assert open_bundle(unfinished.path).is_trained


def test_a_folder_that_is_gone_names_the_option(
    unfinished: Bundle, data: Path, recipe: Recipe, options: TrainOptions, recorded_progress
) -> None:
    shutil.rmtree(data)
    with pytest.raises(DataError, match=r"does not exist; the unfinished run in .* can be ended without it: --finish"):
        train.train(unfinished.path, data, recipe, options, recorded_progress)


def test_without_a_run_there_is_nothing_to_end(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="has no unfinished run"):
        finish_training(bundle.path)
    assert not default_directory(bundle.path).exists()


def test_a_run_without_a_completed_epoch_has_no_weights(
    bundle: Bundle,
    data: Path,
    recipe: Recipe,
    options: TrainOptions,
    recorded_progress,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(*_: object) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stop)
        with pytest.raises(Stop):
            train.train(bundle.path, data, recipe, options, recorded_progress)
    with pytest.raises(UsageError, match="is at epoch 1 step 0: no epoch is completed"):
        finish_training(bundle.path)
    assert (default_directory(bundle.path) / CHECKPOINT).exists()


def test_weights_of_another_network_are_not_written(unfinished: Bundle) -> None:
    update_bundle(unfinished.path, {"architecture": {**unfinished.parts["architecture"], "resolution": 32}})
    changed = open_bundle(unfinished.path)
    with pytest.raises(UsageError, match="is of another network than"):
        finish_training(unfinished.path)
    assert open_bundle(unfinished.path) == changed
    assert (default_directory(unfinished.path) / CHECKPOINT).exists()


def test_without_images_only_the_end_is_possible(bundle: Bundle, options: TrainOptions, recorded_progress) -> None:
    with pytest.raises(UsageError, match="give a folder of images with --data DIR"):
        train.train(bundle.path, None, Recipe(), options, recorded_progress)
