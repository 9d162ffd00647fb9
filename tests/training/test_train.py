"""Training as a whole: from a bundle and a folder to new weights, labels and metrics, or to one clear line."""

import dataclasses
import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bundle_parts import onnx_variant, profile
from PIL import Image
from safetensors.numpy import load as load_arrays

from regnet_deploy.bundle import Bundle, Manifest, create_bundle, find_damage, open_bundle, update_bundle
from regnet_deploy.bundle.manifest import Architecture, Golden, Preprocessing
from regnet_deploy.bundle.training import Execution
from regnet_deploy.errors import BundleError, DataError, MissingPart, UsageError
from regnet_deploy.images.decode import decoder
from regnet_deploy.images.listing import list_images
from regnet_deploy.images.preprocessing import default_preprocessing, load_pixels, normalize
from regnet_deploy.models.weights import FILE, load_model, weights_from_bytes
from regnet_deploy.space.network import Network
from regnet_deploy.training import run as training_run
from regnet_deploy.training import stored_images, train
from regnet_deploy.training.checkpoint import FILE as CHECKPOINT
from regnet_deploy.training.checkpoint import load_checkpoint
from regnet_deploy.training.data_loader import TrainingDataset, UnreadableImage
from regnet_deploy.training.execution import ExecutionRequest
from regnet_deploy.training.recipe import Recipe
from regnet_deploy.training.recipe_file import load_recipe
from regnet_deploy.training.train import TrainOptions
from regnet_deploy.training.trainer import Trainer

#: Python 3.12 and newer warn of every fork beside threads; PyTorch's loading processes are forked and use none.
FORKS = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")


def run_directory(bundle: Bundle) -> Path:
    return bundle.path.parent / f"{bundle.path.name}.training"


class Stop(BaseException):
    """Stands for whatever ends a process."""


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make the n-th step of a trainer from now on end the run."""

    def arm(count: int) -> None:
        step, done = Trainer.step, [0]

        def stopping(self: Trainer, batch: object, rate: float, at: tuple[int, int]) -> object:
            done[0] += 1
            if done[0] > count:
                monkeypatch.setattr(Trainer, "step", step)
                raise Stop
            return step(self, batch, rate, at)

        monkeypatch.setattr(Trainer, "step", stopping)

    return arm


def test_a_run_gives_weights_that_know_the_images(
    bundle: Bundle, data: Path, recipe: Recipe, options: TrainOptions, recorded_progress, preprocessing: Preprocessing
) -> None:
    trained = train.train(bundle.path, data, dataclasses.replace(recipe, epochs=6), options, recorded_progress)
    part = trained.parts["training"]
    assert part["best"]["val_top1"] >= 0.9
    files = [path for paths in list_images(data).val.values() for path in paths]
    pixels = np.stack([load_pixels((data / path).read_bytes(), preprocessing) for path in files])
    with torch.no_grad():
        answers = load_model(trained)(torch.from_numpy(normalize(pixels, preprocessing))).argmax(1)
    right = sum(
        trained.parts["labels"][answer] == path.split("/")[1] for answer, path in zip(answers, files, strict=True)
    )
    assert right / len(files) == part["best"]["val_top1"]


#: Metrics of an epoch that are of the machine, not of the weights.
TIMES = ("seconds", "images_per_s", "loaded_images_per_s", "step_images_per_s", "waiting")


def test_every_epoch_says_how_fast_images_are_loaded_and_used_and_which_of_them_waits(
    bundle: Bundle, data: Path, recipe: Recipe, options: TrainOptions, recorded_progress
) -> None:
    trained = train.train(bundle.path, data, recipe, options, recorded_progress)
    lines = [line for line in recorded_progress.messages if line.startswith("epoch ")]
    for line, epoch in zip(lines, trained.training.history, strict=True):
        assert re.search(
            r"images/s \(loading alone [\d,]+, the network alone [\d,]+: the network (waits|is the limit)", line
        )
        assert epoch.loaded_images_per_s is not None
        assert epoch.step_images_per_s is not None
        assert min(epoch.loaded_images_per_s, epoch.step_images_per_s) > epoch.images_per_s > 0
        assert epoch.waiting is not None
        assert 0 < epoch.waiting < 1


def test_the_bundle_says_how_its_weights_came_about(
    bundle: Bundle, data: Path, recipe: Recipe, options: TrainOptions, recorded_progress
) -> None:
    (data / "train" / "red" / "note.txt").write_text("hello")
    trained = train.train(bundle.path, data, recipe, options, recorded_progress)
    assert trained.parts["labels"] == ["blue", "green", "red"]
    assert trained.parts["architecture"] == {**bundle.parts["architecture"], "classes": 3}
    part = trained.parts["training"]
    assert part["recipe"] == recipe.fitted(30).to_json()
    assert part["seed"] == recipe.seed
    assert (part["data"]["train_images"], part["data"]["val_images"], part["data"]["classes"]) == (30, 12, 3)
    assert part["data"]["rejected"] == {"train/red/note.txt": part["data"]["rejected"]["train/red/note.txt"]}
    assert [metrics["epoch"] for metrics in part["history"]] == [1, 2, 3]
    assert set(part["history"][0]) == {
        "epoch", "lr", "train_loss", "train_top1", "val_loss", "val_top1", "val_images", "images_per_s", "seconds",
        "loaded_images_per_s", "step_images_per_s", "waiting",
    }  # fmt: skip
    assert part["history"][0]["lr"] == recipe.learning_rate(0)
    assert part["execution"]["execution"] == Execution("cpu").to_json()
    assert part["lineage"]["start_sha256"] is None
    assert part["lineage"]["versions"]["torch"] == torch.__version__
    assert set(trained.parts["environment"]["train"]) >= {"python", "torch", "regnet-deploy", "platform", "date"}
    assert str(data) not in json.dumps(trained.parts)
    assert find_damage(trained) == []
    assert "1 file left out:" in recorded_progress.text
    assert "train/red/note.txt: not an image" in recorded_progress.text
    assert "3 outputs instead of 1000" in recorded_progress.text


def test_the_best_epoch_is_kept_the_later_of_equals(
    bundle: Bundle,
    data: Path,
    recipe: Recipe,
    options: TrainOptions,
    recorded_progress,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scores, states = iter([0.5, 0.75, 0.75, 0.25]), []
    evaluate = training_run.evaluate

    def scripted(trainer: Trainer, *rest: object) -> object:
        states.append({name: value.clone() for name, value in trainer.model.state_dict().items()})
        return dataclasses.replace(evaluate(trainer, *rest), top1=next(scores))

    monkeypatch.setattr(training_run, "evaluate", scripted)
    trained = train.train(bundle.path, data, dataclasses.replace(recipe, epochs=4), options, recorded_progress)
    assert trained.parts["training"]["best"]["epoch"] == 3
    weights = weights_from_bytes(trained.read(FILE))
    assert all(torch.equal(value, states[2][name]) for name, value in weights.items())
    assert not torch.equal(weights["head.fc.weight"], states[1]["head.fc.weight"])


def test_samples_are_evaluation_views_of_training_images_of_every_class(
    bundle: Bundle, data: Path, recipe: Recipe, options: TrainOptions, recorded_progress, preprocessing: Preprocessing
) -> None:
    trained = train.train(bundle.path, data, recipe, options, recorded_progress)
    samples = load_arrays(trained.read("samples.safetensors"))
    images, labels = samples["images"], samples["labels"]
    assert images.dtype == np.uint8
    assert images.shape == (30, 16, 16, 3)  # all there are, 32 being more
    assert labels.dtype == np.int64
    assert np.bincount(labels).tolist() == [10, 10, 10]
    assert set(labels[:3]) == {0, 1, 2}
    for image, label in zip(images, labels, strict=True):
        files = (data / "train" / trained.parts["labels"][label]).iterdir()
        assert any((load_pixels(file.read_bytes(), preprocessing) == image).all() for file in files)


def test_new_weights_drop_what_was_true_of_the_old(
    bundle: Bundle, data: Path, recipe: Recipe, options: TrainOptions, recorded_progress
) -> None:
    golden = Golden(images=16, source="seeded noise", seed=0, weights_sha256=None)
    parts = Manifest(
        golden=golden,
        variants={"onnx-fp32": onnx_variant()},
        profile=profile(),
        environment={"select": {"numpy": "2"}},
    )
    old = {"fp32.onnx": b"x", "fp16.plan": b"y", "golden.safetensors": b"z", "notes.txt": b"keep"}
    update_bundle(bundle.path, parts, old)
    trained = train.train(bundle.path, data, recipe, options, recorded_progress)
    assert set(trained.parts) == {"architecture", "preprocessing", "environment", "labels", "training"}
    assert set(trained.files) == {FILE, "samples.safetensors", "answers.npz", "notes.txt"}
    assert set(trained.parts["environment"]) == {"select", "train"}


def test_a_finished_run_leaves_no_checkpoint(
    bundle: Bundle, data: Path, recipe: Recipe, options: TrainOptions, recorded_progress
) -> None:
    train.train(bundle.path, data, recipe, options, recorded_progress)
    names = [path.name.split("-")[0].split(".out")[0] for path in run_directory(bundle).iterdir()]
    assert sorted(names) == [".lock", "checked", "run"]


def test_every_run_is_one_of_its_own_in_tensorboard(
    bundle: Bundle, data: Path, recipe: Recipe, options: TrainOptions, recorded_progress, stop_at
) -> None:
    def files(name: str) -> int:
        return len(list((run_directory(bundle) / name).glob("events.out.tfevents.*")))

    stop_at(4)
    with pytest.raises(Stop):
        train.train(bundle.path, data, recipe, dataclasses.replace(options, checkpoint_s=0), recorded_progress)
    train.train(bundle.path, data, recipe, options, recorded_progress)
    assert files("run-1") >= 1  # the run that continues draws into the folder that it began with
    assert not (run_directory(bundle) / "run-2").exists()
    train.train(bundle.path, data, recipe, dataclasses.replace(options, restart=True), recorded_progress)
    tuned = dataclasses.replace(recipe, epochs=2, fine_tune=True, lr=1e-3)
    train.train(bundle.path, data, tuned, options, recorded_progress)
    assert [files(f"run-{number}") for number in (2, 3)] == [1, 1]


@FORKS
def test_the_same_run_gives_the_same_weights_whoever_loads(
    bundle: Bundle, data: Path, recipe: Recipe, options: TrainOptions, recorded_progress
) -> None:
    digests = [
        train.train(bundle.path, data, recipe, dataclasses.replace(options, workers=workers), recorded_progress)
        .files[FILE]
        .sha256
        for workers in (0, 0, 2)
    ]
    assert len(set(digests)) == 1
    other = train.train(bundle.path, data, dataclasses.replace(recipe, seed=1), options, recorded_progress)
    assert other.files[FILE].sha256 != digests[0]


@FORKS
def test_weights_do_not_depend_on_where_images_are_stored_even_if_that_changes_within_an_epoch(
    bundle: Bundle,
    data: Path,
    recipe: Recipe,
    options: TrainOptions,
    recorded_progress,
    tmp_path: Path,
    stop_at,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def trained(**changes: object) -> str:
        changed = dataclasses.replace(options, restart="checkpoint_s" not in changes, **changes)
        done = train.train(bundle.path, data, recipe, changed, recorded_progress)
        assert (done.training.data.stored_side, done.training.data.in_memory) == (32, in_memory)
        assert done.training.data.decoder == decoder()
        return done.files[FILE].sha256

    in_memory = True
    wanted = trained()
    in_memory = False
    assert trained(cache="off") == wanted
    assert trained(cache=str(tmp_path / "cache")) == wanted
    assert len(list((tmp_path / "cache").glob("packed-*"))) == 2
    monkeypatch.setattr(stored_images, "MEMORY_BYTES", 1000)
    assert trained(cache="auto") == wanted
    assert len(list(run_directory(bundle).glob("packed-*"))) == 2
    assert "30 training images are decoded once, into" in recorded_progress.text
    stop_at(4)
    with pytest.raises(Stop):
        train.train(
            bundle.path,
            data,
            recipe,
            dataclasses.replace(options, cache="off", restart=True, checkpoint_s=0),
            recorded_progress,
        )
    assert trained(workers=2, checkpoint_s=0.0) == wanted
    assert "resuming at epoch 2 step 1" in recorded_progress.text
    assert "bit-identical" not in recorded_progress.text


def test_a_run_that_goes_on_with_another_decoder_says_so(
    bundle: Bundle, data: Path, recipe: Recipe, options: TrainOptions, recorded_progress, stop_at, monkeypatch
) -> None:
    stop_at(4)
    with pytest.raises(Stop):
        train.train(bundle.path, data, recipe, dataclasses.replace(options, checkpoint_s=0), recorded_progress)
    was = decoder()
    monkeypatch.setattr("regnet_deploy.training.execution_choice.decoder", lambda: "Pillow 99")
    train.train(bundle.path, data, recipe, options, recorded_progress)
    assert f"decoded by {was} and continued with Pillow 99: the weights may not be" in recorded_progress.text


def test_the_default_execution_gives_the_same_weights_however_long_its_steps_take(
    bundle: Bundle, data: Path, recipe: Recipe, recorded_progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = TrainOptions(ExecutionRequest("cpu", threads=1), restart=True)
    files = {train.train(bundle.path, data, recipe, options, recorded_progress).files[FILE]}
    step, taken = Trainer.step, [0]

    def slower(self: Trainer, batch: object, rate: float, at: tuple[int, int]) -> object:
        taken[0] += 1
        time.sleep(0.01)  # as on a machine that is busy just now
        return step(self, batch, rate, at)

    monkeypatch.setattr(Trainer, "step", slower)
    files.add(train.train(bundle.path, data, recipe, options, recorded_progress).files[FILE])
    assert len(files) == 1
    assert taken[0] == 9  # no step but those of the run
    assert "running steps in fp32, channels_last on cpu with 1 thread" in recorded_progress.text


@pytest.mark.parametrize("step", [0, 1, 2, 3, 5, 8])
def test_a_stopped_run_goes_on_to_the_same_bits(
    bundle: Bundle,
    data: Path,
    recipe: Recipe,
    options: TrainOptions,
    recorded_progress,
    stop_at,
    tmp_path: Path,
    step: int,
) -> None:
    whole = create_bundle(tmp_path / "whole", dict(bundle.parts))
    wanted = train.train(whole.path, data, recipe, options, recorded_progress)
    stop_at(step)
    with pytest.raises(Stop):
        train.train(bundle.path, data, recipe, dataclasses.replace(options, checkpoint_s=0), recorded_progress)
    assert open_bundle(bundle.path) == bundle
    trained = train.train(bundle.path, data, recipe, options, recorded_progress)
    assert f"resuming at epoch {step // 3 + 1} step {step % 3}" in recorded_progress.messages
    assert trained.files[FILE] == wanted.files[FILE]
    timeless = [
        [{name: value for name, value in metrics.items() if name not in TIMES} for metrics in part]
        for part in (trained.parts["training"]["history"], wanted.parts["training"]["history"])
    ]
    assert timeless[0] == timeless[1]


#: Values of a recipe that bring random numbers or state of their own into a run.
PARTS = {
    "optimizer": "adamw",
    "lr": 0.01,
    "decay_norms": False,
    "per_step": True,
    "auto_augment": "trivialaugment",
    "erasing": 0.5,
    "mixup": 0.2,
    "cutmix": 1.0,
    "loss": "bce",
    "label_smoothing": 0.1,
    "ema_window": 0.5,
    "train_side": 1.0,
    "first_side": 0.5,
    "stochastic_depth": 0.5,
    "repeated_augmentation": 3,
}


def test_a_stopped_run_with_every_part_goes_on_to_the_same_bits(
    bundle: Bundle, data: Path, recipe: Recipe, options: TrainOptions, recorded_progress, stop_at, tmp_path: Path
) -> None:
    recipe = dataclasses.replace(recipe, **PARTS)
    whole = create_bundle(tmp_path / "whole", dict(bundle.parts))
    wanted = train.train(whole.path, data, recipe, options, recorded_progress)
    stop_at(4)
    with pytest.raises(Stop):
        train.train(bundle.path, data, recipe, dataclasses.replace(options, checkpoint_s=0), recorded_progress)
    trained = train.train(bundle.path, data, recipe, dataclasses.replace(options, workers=2), recorded_progress)
    assert "resuming at epoch 2 step 1" in recorded_progress.messages
    assert trained.files[FILE] == wanted.files[FILE]
    assert {name: trained.parts["training"]["recipe"][name] for name in ("optimizer", "mixup", "loss")} == {
        "optimizer": "AdamW",
        "mixup": 0.2,
        "loss": "bce",
    }


@pytest.fixture
def tail(data: Path) -> Path:
    """The images with fewer of two classes: 10, 5 and 2 to train on."""
    for name, count in (("green", 5), ("red", 2)):
        for path in sorted((data / "train" / name).iterdir())[count:]:
            path.unlink()
    return data


@pytest.mark.alone  # loading processes fork
@pytest.mark.parametrize("values", [{"sampling": "balanced"}, {"class_weights": "square-root"}])
def test_a_stopped_run_with_balanced_classes_goes_on_to_the_same_bits(
    bundle: Bundle,
    tail: Path,
    recipe: Recipe,
    options: TrainOptions,
    recorded_progress,
    stop_at,
    tmp_path: Path,
    values: dict[str, str],
) -> None:
    wholes = [create_bundle(tmp_path / name, dict(bundle.parts)) for name in ("plain", "balanced")]
    recipes = recipe, dataclasses.replace(recipe, **values)
    plain, wanted = (
        train.train(whole.path, tail, each, options, recorded_progress)
        for whole, each in zip(wholes, recipes, strict=True)
    )
    stop_at(3)
    with pytest.raises(Stop):
        train.train(bundle.path, tail, recipes[1], dataclasses.replace(options, checkpoint_s=0), recorded_progress)
    with pytest.raises(UsageError, match=f"differs in {next(iter(values))} .*\\(was {next(iter(values.values()))}\\)"):
        train.train(bundle.path, tail, recipes[0], options, recorded_progress)
    trained = train.train(bundle.path, tail, recipes[1], dataclasses.replace(options, workers=2), recorded_progress)
    assert "resuming at epoch 2 step 1" in recorded_progress.messages
    assert trained.files[FILE] == wanted.files[FILE] != plain.files[FILE]
    assert values.items() <= trained.training.recipe.items()


def test_the_rules_balance_a_folder_of_ten_to_one_and_say_so(
    bundle: Bundle, tail: Path, options: TrainOptions, recorded_progress
) -> None:
    (tail / "train" / "red" / "001.png").unlink()
    training = train.train(bundle.path, tail, {"epochs": 1}, options, recorded_progress).training
    assert training.data.train_by_class == (10, 5, 1)
    assert training.recipe["sampling"] == "square-root"
    assert (
        "classes have 1 to 10 training images: an epoch shows each class in proportion to the root of that, small ones "
        "several times (sampling: square-root)"
    ) in recorded_progress.messages
    train.train(bundle.path, tail, {"epochs": 1}, options, recorded_progress)
    assert "is already trained like this" in recorded_progress.text
    again = train.train(bundle.path, tail, {"epochs": 1, "class_weights": "balanced"}, options, recorded_progress)
    assert "sampling" not in again.training.recipe
    assert "counts in the loss in inverse proportion to that (class_weights: balanced)" in recorded_progress.text


@pytest.mark.parametrize("values", [{"sampling": "balanced"}, {"class_weights": "balanced"}])
def test_balancing_equally_large_classes_changes_no_bit(
    bundle: Bundle, data: Path, recipe: Recipe, options: TrainOptions, tmp_path: Path, values: dict[str, str]
) -> None:
    plain = train.train(create_bundle(tmp_path / "p", dict(bundle.parts)).path, data, recipe, options)
    trained = train.train(bundle.path, data, dataclasses.replace(recipe, **values), options)
    assert trained.files[FILE] == plain.files[FILE]


def test_a_recipe_of_a_file_is_used_and_named_in_the_bundle(
    bundle: Bundle, data: Path, options: TrainOptions, recorded_progress, stop_at
) -> None:
    recipe = load_recipe("fast").with_values({"epochs": 2, "batch_size": 8})
    stop_at(4)
    with pytest.raises(Stop):
        train.train(bundle.path, data, recipe, dataclasses.replace(options, checkpoint_s=0), recorded_progress)
    assert "recipe fast with other epochs, batch_size" in recorded_progress.messages
    training = train.train(bundle.path, data, recipe, options, recorded_progress).training
    assert training.recipe_name == "fast with other epochs, batch_size"
    assert training.recipe == Recipe(**recipe.values).fitted(30).to_json()
    again = train.train(bundle.path, data, recipe, options, recorded_progress)
    assert "is already trained like this" in recorded_progress.text
    assert again.training == training


def test_a_recipe_of_values_has_no_name(
    bundle: Bundle, data: Path, recipe: Recipe, options: TrainOptions, recorded_progress
) -> None:
    trained = train.train(bundle.path, data, recipe, options, recorded_progress)
    assert trained.training.recipe_name is None
    assert "recipe_name" not in trained.parts["training"]


def test_a_run_stopped_between_its_result_and_its_end_is_over(
    bundle: Bundle,
    data: Path,
    recipe: Recipe,
    options: TrainOptions,
    recorded_progress,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(directory: Path) -> None:
        raise Stop

    monkeypatch.setattr(train, "drop_checkpoint", stop)
    with pytest.raises(Stop):
        train.train(bundle.path, data, recipe, options, recorded_progress)
    monkeypatch.undo()
    committed = open_bundle(bundle.path)
    assert train.train(bundle.path, data, recipe, options, recorded_progress) == committed
    assert "this run has ended and its weights are in the bundle: nothing is left to do" in recorded_progress.messages
    assert not (run_directory(bundle) / CHECKPOINT).exists()


def test_a_run_whose_result_could_not_be_written_is_not_trained_again(
    bundle: Bundle,
    data: Path,
    recipe: Recipe,
    options: TrainOptions,
    recorded_progress,
    stop_at,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise BundleError("cannot write: No space left on device")

    monkeypatch.setattr(train, "commit_training", full)
    with pytest.raises(BundleError):
        train.train(bundle.path, data, recipe, options, recorded_progress)
    monkeypatch.undo()
    assert open_bundle(bundle.path) == bundle
    stop_at(0)  # no step is left to do
    assert FILE in train.train(bundle.path, data, recipe, options, recorded_progress).files


def test_another_recipe_or_other_data_do_not_touch_an_unfinished_run(
    bundle: Bundle, data: Path, recipe: Recipe, options: TrainOptions, recorded_progress, stop_at
) -> None:
    stop_at(4)
    with pytest.raises(Stop):
        train.train(bundle.path, data, recipe, dataclasses.replace(options, checkpoint_s=0), recorded_progress)
    before = load_checkpoint(run_directory(bundle))
    faster = dataclasses.replace(recipe, lr=0.2, epochs=5)
    with pytest.raises(
        UsageError, match=r"is at epoch 2 step 1 and differs in epochs 5 \(was 3\), lr 0\.2 \(was 0\.1\)"
    ):
        train.train(bundle.path, data, faster, options, recorded_progress)
    averaged = dataclasses.replace(recipe, ema_decay=0.5)  # a value that JSON data of recipes lacks by default
    with pytest.raises(UsageError, match=r"differs in ema_decay 0\.5 \(was 0\.0\)"):
        train.train(bundle.path, data, averaged, options, recorded_progress)
    other = dataclasses.replace(options, execution=ExecutionRequest("cpu", "fp32", "on", "off"))
    with pytest.raises(UsageError, match=r"--channels-last on \(was off\): .*--restart"):
        train.train(bundle.path, data, recipe, other, recorded_progress)
    recorded_progress.messages.clear()
    (data / "train" / "red" / "000.png").unlink()
    with pytest.raises(UsageError, match=r"differs in data images: .*--finish to write its best weights so far \("):
        train.train(bundle.path, data, recipe, options, recorded_progress)
    assert recorded_progress.messages == []  # no plan of a run that is refused
    assert load_checkpoint(run_directory(bundle)).state == before.state
    trained = train.train(bundle.path, data, faster, dataclasses.replace(options, restart=True), recorded_progress)
    assert trained.parts["training"]["recipe"]["lr"] == 0.2
    assert "resuming" not in recorded_progress.text


def test_files_that_vanish_while_training_are_skipped_and_named_at_the_end(
    bundle: Bundle,
    data: Path,
    recipe: Recipe,
    options: TrainOptions,
    recorded_progress,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = train.training_dataset

    def then_vanish(*arguments: object) -> object:
        for path in ("train/red/003.png", "val/blue/001.png"):
            (data / path).unlink()
        return opened(*arguments)

    monkeypatch.setattr(train, "training_dataset", then_vanish)
    trained = train.train(bundle.path, data, recipe, options, recorded_progress)
    assert set(trained.parts["training"]["data"]["unreadable"]) == {"train/red/003.png", "val/blue/001.png"}
    assert trained.parts["training"]["best"]["val_images"] == 11
    assert "2 files could not be read any more during training:" in recorded_progress.messages
    assert "val/blue/001.png: cannot be read: No such file or directory" in recorded_progress.text


def test_a_folder_that_vanishes_while_training_is_one_line_and_can_be_gone_on_with(
    bundle: Bundle,
    data: Path,
    recipe: Recipe,
    options: TrainOptions,
    recorded_progress,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = TrainingDataset.__getitem__

    def gone(self: object, key: tuple[int, int]) -> object:
        return UnreadableImage(f"{key[1]}.png", "cannot be read: gone") if key[0] == 1 else image(self, key)

    monkeypatch.setattr(TrainingDataset, "__getitem__", gone)
    with pytest.raises(
        DataError, match=r"none of the training images can be read any more .*Repeat the command to continue"
    ):
        train.train(bundle.path, data, recipe, options, recorded_progress)
    monkeypatch.undo()
    train.train(bundle.path, data, recipe, options, recorded_progress)
    assert "resuming at epoch 2 step 0" in recorded_progress.messages


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_bundle(
    bundle: Bundle, data: Path, recipe: Recipe, options: TrainOptions, recorded_progress
) -> None:
    wild = dataclasses.replace(recipe, lr=1e30, warmup_epochs=0)
    with pytest.raises(UsageError, match=r"the loss is not finite at epoch 1 .*give a lower --lr than 1e\+30"):
        train.train(bundle.path, data, wild, options, recorded_progress)
    assert open_bundle(bundle.path) == bundle
    train.train(bundle.path, data, recipe, options, recorded_progress)  # a lower rate needs no --restart


def test_fine_tuning_starts_from_the_bundles_weights_and_names_them(
    bundle: Bundle, data: Path, recipe: Recipe, options: TrainOptions, recorded_progress
) -> None:
    tune = dataclasses.replace(recipe, fine_tune=True, lr=1e-7)
    with pytest.raises(UsageError, match=r"--fine-tune: .* has no weights to start from yet"):
        train.train(bundle.path, data, tune, options, recorded_progress)
    first = train.train(bundle.path, data, dataclasses.replace(recipe, epochs=6), options, recorded_progress)
    before = weights_from_bytes(first.read(FILE))["s2.b1.f.b.weight"]
    second = train.train(bundle.path, data, tune, options, recorded_progress)
    after = weights_from_bytes(second.read(FILE))["s2.b1.f.b.weight"]
    assert second.parts["training"]["lineage"]["start_sha256"] == first.files[FILE].sha256
    torch.testing.assert_close(after, before, atol=1e-6, rtol=0)
    assert not torch.equal(after, before)


def test_a_fine_tuning_stopped_at_its_very_end_is_over_too(
    bundle: Bundle,
    data: Path,
    recipe: Recipe,
    options: TrainOptions,
    recorded_progress,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train.train(bundle.path, data, recipe, options, recorded_progress)
    tune = dataclasses.replace(recipe, fine_tune=True)
    drop = train.drop_checkpoint

    def stop(directory: Path) -> None:
        raise Stop

    monkeypatch.setattr(train, "drop_checkpoint", stop)
    with pytest.raises(Stop):
        train.train(bundle.path, data, tune, options, recorded_progress)
    monkeypatch.setattr(train, "drop_checkpoint", drop)
    committed = open_bundle(bundle.path)
    assert train.train(bundle.path, data, tune, options, recorded_progress) == committed


def test_the_network_gets_the_outputs_of_the_folder(
    bundle: Bundle, data: Path, recipe: Recipe, options: TrainOptions, recorded_progress
) -> None:
    update_bundle(bundle.path, {"architecture": {**bundle.parts["architecture"], "classes": 5}})
    trained = train.train(bundle.path, data, recipe, options, recorded_progress)
    assert trained.parts["architecture"]["classes"] == 3
    assert "the network gets 3 outputs instead of 5" in recorded_progress.messages


@pytest.mark.parametrize(
    ("below", "said"), [("a", r"two or more; did you mean --data .*/only\?"), ("", "two or more$")]
)
def test_one_class_is_none(
    bundle: Bundle, tmp_path: Path, recipe: Recipe, options: TrainOptions, recorded_progress, below, said
) -> None:
    for name in ("a", "b") if below else ("",):
        (tmp_path / "deep" / "only" / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9)).save(tmp_path / "deep" / "only" / name / "x.png")
    with pytest.raises(DataError, match=said):
        train.train(bundle.path, tmp_path / "deep", recipe, options, recorded_progress)
    assert not run_directory(bundle).exists()


def test_what_is_trained_like_this_already_is_trained_anew_only_when_asked(
    bundle: Bundle, data: Path, recipe: Recipe, options: TrainOptions, recorded_progress
) -> None:
    first = train.train(bundle.path, data, recipe, options, recorded_progress)
    update_bundle(bundle.path, Manifest(variants={"onnx-fp32": onnx_variant()}))
    again = train.train(bundle.path, data, recipe, options, recorded_progress)
    assert again.files == first.files
    assert again.manifest.variants
    assert any("is already trained like this" in line and "--restart" in line for line in recorded_progress.messages)
    anew = train.train(bundle.path, data, recipe, dataclasses.replace(options, restart=True), recorded_progress)
    assert not anew.manifest.variants
    assert any("removed at the end of the training: onnx-fp32" in line for line in recorded_progress.messages)


def test_finish_and_restart_contradict_each_other_and_cost_nothing(
    bundle: Bundle, data: Path, recipe: Recipe, options: TrainOptions, recorded_progress, stop_at: Callable[[int], None]
) -> None:
    stop_at(2)
    with pytest.raises(Stop):
        train.train(bundle.path, data, recipe, options, recorded_progress)
    before = (run_directory(bundle) / CHECKPOINT).read_bytes()
    with pytest.raises(UsageError, match="give one of them"):
        train.train(
            bundle.path, data, recipe, dataclasses.replace(options, finish=True, restart=True), recorded_progress
        )
    with pytest.raises(DataError):
        train.train(
            bundle.path, data / "train" / "red", recipe, dataclasses.replace(options, restart=True), recorded_progress
        )
    assert (run_directory(bundle) / CHECKPOINT).read_bytes() == before


def test_another_way_to_run_the_steps_is_another_training(
    bundle: Bundle, data: Path, recipe: Recipe, options: TrainOptions, recorded_progress
) -> None:
    train.train(bundle.path, data, recipe, options, recorded_progress)
    other = dataclasses.replace(options, execution=ExecutionRequest("cpu", "fp32", "on", "off"))
    again = train.train(bundle.path, data, recipe, other, recorded_progress)
    assert again.parts["training"]["execution"]["execution"]["channels_last"]


def test_an_unfinished_run_can_be_ended_with_its_best_weights(
    bundle: Bundle, data: Path, recipe: Recipe, options: TrainOptions, recorded_progress, stop_at: Callable[[int], None]
) -> None:
    recipe = dataclasses.replace(recipe, epochs=6)
    finish = dataclasses.replace(options, finish=True)
    with pytest.raises(UsageError, match=r"--finish: .* has no unfinished run"):
        train.train(bundle.path, data, recipe, finish, recorded_progress)
    stop_at(11)
    with pytest.raises(Stop):
        train.train(bundle.path, data, recipe, options, recorded_progress)
    ended = train.train(bundle.path, data, recipe, finish, recorded_progress)
    part = ended.parts["training"]
    assert part["stopped"]
    assert 1 <= len(part["history"]) < 6
    assert not any(path.name == "checkpoint.safetensors" for path in run_directory(bundle).iterdir())


def test_a_split_is_for_folders_without_validation(
    bundle: Bundle, data: Path, recipe: Recipe, options: TrainOptions, recorded_progress
) -> None:
    with pytest.raises(UsageError, match="has validation images of its own: omit --val-split"):
        train.train(bundle.path, data, recipe, dataclasses.replace(options, val_split=0.2), recorded_progress)
    flat = data / "train"
    trained = train.train(bundle.path, flat, recipe, dataclasses.replace(options, val_split=0.2), recorded_progress)
    assert trained.parts["training"]["data"]["split"] == "20% of each class held out (seed 0)"
    assert (
        "24 images to train on, 6 to validate with (20% of each class held out (seed 0)), 3 classes"
        in recorded_progress.messages
    )


@pytest.mark.parametrize("count", [1, 2])
def test_a_handful_of_images_trains(
    bundle: Bundle, recipe: Recipe, options: TrainOptions, recorded_progress, put_images, tmp_path: Path, count: int
) -> None:
    put_images(tmp_path / "few" / "train", count)
    put_images(tmp_path / "few" / "val", 1)
    trained = train.train(bundle.path, tmp_path / "few", Recipe(epochs=2), options, recorded_progress)
    assert trained.parts["training"]["recipe"]["batch_size"] == 2
    assert any("in batches of 2, learning rate" in line for line in recorded_progress.messages)


def test_a_batch_larger_than_the_data_is_the_data(
    bundle: Bundle, data: Path, recipe: Recipe, options: TrainOptions, recorded_progress
) -> None:
    trained = train.train(bundle.path, data, dataclasses.replace(recipe, batch_size=500), options, recorded_progress)
    part = trained.parts["training"]
    assert part["recipe"]["batch_size"] == 30
    assert part["history"][1]["lr"] == dataclasses.replace(recipe, batch_size=30).learning_rate(1)
    assert (
        "--batch-size 500 is more than the 30 training images: a step has 30, and its learning rate is that of 30 "
        "images, 0.02344" in recorded_progress.messages
    )


def test_without_precise_statistics_the_running_averages_are_kept(
    bundle: Bundle, data: Path, recipe: Recipe, options: TrainOptions, recorded_progress
) -> None:
    def batches_seen(images: int) -> tuple[int, int]:
        """Return how many batches the statistics are of, and the epoch of the weights."""
        trained = train.train(
            bundle.path, data, dataclasses.replace(recipe, precise_bn_images=images), options, recorded_progress
        )
        weights = weights_from_bytes(trained.read(FILE))
        return weights["stem.bn.num_batches_tracked"].item(), trained.parts["training"]["best"]["epoch"]

    batches, epoch = batches_seen(0)
    assert batches == 3 * epoch  # of every step so far
    assert batches_seen(8192)[0] == 3  # of all batches of 8 that there are among 30 images
    assert batches_seen(16)[0] == 2


def test_a_bundle_changed_meanwhile_is_left_alone(
    bundle: Bundle,
    data: Path,
    recipe: Recipe,
    options: TrainOptions,
    recorded_progress,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fitted = train.fit

    def then_change(*arguments: object) -> None:
        fitted(*arguments)
        update_bundle(bundle.path, {"architecture": {**bundle.parts["architecture"], "name": "other"}})

    monkeypatch.setattr(train, "fit", then_change)
    with pytest.raises(BundleError, match="was changed by another command meanwhile"):
        train.train(bundle.path, data, recipe, options, recorded_progress)
    assert open_bundle(bundle.path).files == {}


def test_what_is_missing_names_the_command(
    tmp_path: Path, data: Path, recipe: Recipe, options: TrainOptions, recorded_progress
) -> None:
    with pytest.raises(BundleError, match="regnet-deploy select"):
        train.train(tmp_path / "none", data, recipe, options, recorded_progress)
    empty = create_bundle(tmp_path / "empty", {})
    with pytest.raises(MissingPart, match="has no architecture yet: run `regnet-deploy select"):
        train.train(empty.path, data, recipe, options, recorded_progress)


def test_progress_runs_over_the_whole_run(
    bundle: Bundle, data: Path, recipe: Recipe, options: TrainOptions, recorded_progress
) -> None:
    train.train(bundle.path, data, recipe, options, recorded_progress)
    steps = [(what, done, total) for what, done, total, _ in recorded_progress.updates if what.startswith("epoch")]
    assert [done for _, done, _ in steps] == list(range(1, 10))
    assert {total for _, _, total in steps} == {9}
    assert steps[0][0] == "epoch 1/3"
    assert steps[-1][0] == "epoch 3/3"
    assert {what for what, _, _, _ in recorded_progress.updates} >= {"checking images", "loading images"}
    assert len([line for line in recorded_progress.messages if line.startswith("epoch ")]) == 3


def test_a_gray_network_is_trained_on_gray_images(
    tmp_path: Path, network: Network, data: Path, recipe: Recipe, options: TrainOptions, recorded_progress
) -> None:
    gray = replace(network, input_channels=1)
    parts = {
        "architecture": Architecture.of(gray, name="gray", classes=3, resolution=16),
        "preprocessing": default_preprocessing(16, 1).to_json(),
    }
    bundle = create_bundle(tmp_path / "gray", parts)
    trained = train.train(bundle.path, data, recipe, options, recorded_progress)
    assert load_arrays(trained.read("samples.safetensors"))["images"].shape == (30, 16, 16, 1)
    assert weights_from_bytes(trained.read(FILE))["stem.conv.weight"].shape == (8, 1, 3, 3)
    assert trained.training.recipe["lighting"] == 0  # there are no colors to shift
    assert recipe.lighting > 0


def test_a_color_shift_of_gray_images_is_refused(
    tmp_path: Path, network: Network, data: Path, options: TrainOptions, recorded_progress
) -> None:
    parts = {
        "architecture": Architecture.of(replace(network, input_channels=1), name="gray", classes=3, resolution=16),
        "preprocessing": default_preprocessing(16, 1).to_json(),
    }
    bundle = create_bundle(tmp_path / "gray", parts)
    with pytest.raises(UsageError, match=r"--lighting 0.2 shifts colors, and the network takes gray images: omit it"):
        train.train(bundle.path, data, {"lighting": 0.2}, options, recorded_progress)


@pytest.mark.parametrize("finish", [False, True])
def test_the_bundle_is_no_run_directory_and_nothing_is_written_into_it(
    bundle: Bundle, data: Path, recipe: Recipe, options: TrainOptions, recorded_progress, finish: bool
) -> None:
    before = sorted(bundle.path.iterdir())
    reason = "has no unfinished run" if finish else "is the bundle: give a folder outside of it"
    inside = dataclasses.replace(options, run_dir=bundle.path, finish=finish)
    with pytest.raises(UsageError, match=reason):
        train.train(bundle.path, data, recipe, inside, recorded_progress)
    assert sorted(bundle.path.iterdir()) == before


def test_values_that_follow_from_the_epochs_are_not_named_unless_they_were_given(
    bundle: Bundle, data: Path, options: TrainOptions, recorded_progress, stop_at
) -> None:
    given = {"epochs": 30, "batch_size": 8, "crop_area": 0.5}
    stop_at(4)
    with pytest.raises(Stop):
        train.train(bundle.path, data, given, dataclasses.replace(options, checkpoint_s=0), recorded_progress)
    with pytest.raises(UsageError, match=r"differs in epochs 10 \(was 30\): repeat"):
        train.train(bundle.path, data, {**given, "epochs": 10}, options, recorded_progress)
    with pytest.raises(UsageError, match=r"differs in epochs 10 \(was 30\), patience 7 \(was 0\): repeat"):
        train.train(bundle.path, data, {**given, "epochs": 10, "patience": 7}, options, recorded_progress)
    with pytest.raises(UsageError, match=r"differs in patience 7 \(was 0\): repeat"):
        train.train(bundle.path, data, {**given, "patience": 7}, options, recorded_progress)


def test_more_threads_than_cores_are_said_at_the_start(
    bundle: Bundle,
    data: Path,
    recipe: Recipe,
    options: TrainOptions,
    recorded_progress,
    monkeypatch: pytest.MonkeyPatch,
    stop_at: Callable[[int], None],
) -> None:
    monkeypatch.setattr("regnet_deploy.training.distributed.available_cores", lambda: 1)
    stop_at(0)
    many = dataclasses.replace(options, execution=dataclasses.replace(options.execution, threads=2))
    with pytest.raises(Stop):
        train.train(bundle.path, data, recipe, many, recorded_progress)
    assert "--threads 2 is more than the 1 core that this process may use" in recorded_progress.text
