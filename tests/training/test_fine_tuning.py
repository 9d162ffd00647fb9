"""Fine-tuning: when it is the default, its recipe, the new head, the linear probe, and interruptions."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from regnet_deploy.bundle import Bundle, open_bundle
from regnet_deploy.bundle.manifest import WeightsOrigin
from regnet_deploy.bundle.training import LinearProbe
from regnet_deploy.errors import UsageError
from regnet_deploy.models.anynet import AnyNet
from regnet_deploy.models.weights import FILE, WeightsUpdate, replace_weights, weights_from_bytes
from regnet_deploy.report.card import model_card
from regnet_deploy.report.sections import card_sections
from regnet_deploy.training import initial_head, linear_probe, train
from regnet_deploy.training import run as training_run
from regnet_deploy.training.auto_recipe import scratch_recipe
from regnet_deploy.training.checkpoint import load_checkpoint
from regnet_deploy.training.fine_tuning import fine_tuning_recipe
from regnet_deploy.training.recipe import Recipe
from regnet_deploy.training.train import TrainOptions
from regnet_deploy.training.trainer import Trainer

ORIGIN = WeightsOrigin(file="net.pth", sha256="0" * 64, source="timm", container="torch zip", license="CC-BY-NC-4.0")
SHORT = {"epochs": 2, "batch_size": 8}


class Stop(BaseException):
    """Stands for whatever ends a process."""


def give_weights(bundle: Bundle, labels: tuple[str, ...], imported: WeightsOrigin | None = ORIGIN) -> Bundle:
    architecture = bundle.architecture.replace(classes=len(labels))
    state = AnyNet(architecture.network, len(labels), seed=5).state_dict()
    update = WeightsUpdate(state, architecture, bundle.preprocessing, labels, imported=imported)
    return replace_weights(bundle, update)


@pytest.fixture
def imported(bundle: Bundle) -> Bundle:
    return give_weights(bundle, ("cat", "dog", "fish", "owl"))


def best_top1(bundle: Bundle) -> float:
    training = bundle.training
    return max([training.probe.val_top1, *(epoch.val_top1 for epoch in training.history)])


def test_imported_weights_are_fine_tuned_with_a_new_head_and_a_probe(
    imported: Bundle, data: Path, options: TrainOptions, recorded_progress
) -> None:
    tuned = train.train(imported.path, data, SHORT, options, recorded_progress)
    assert "weights imported from net.pth with a new head for 3 classes; --from-scratch" in recorded_progress.text
    assert "linear probe, the baseline: " in recorded_progress.text
    training = tuned.training
    assert tuned.labels == ("blue", "green", "red")
    assert tuned.architecture.classes == 3
    assert training.lineage.start_sha256 == imported.files[FILE].sha256
    assert (training.probe.val_images, training.probe.train_images) == (12, 30)
    assert training.probe.val_top1 > 0.5  # colours are linear in the features of a random network
    assert training.best.val_top1 == best_top1(tuned)
    assert training.recipe["fine_tune"]
    assert (training.recipe["probe"], training.recipe["frozen_bn"], training.recipe["lr_probe"]) == (True, True, True)
    assert tuned.manifest.imported == ORIGIN  # the license of the weights goes with them
    shown = dict(next(section for section in card_sections(model_card(tuned)) if section.title == "Training").facts)
    assert shown["imported weights"] == "net.pth, license CC-BY-NC-4.0"
    assert shown["linear probe"].endswith("of 12 validation images; fitted to 30 images")


def test_the_body_keeps_its_weights_and_its_statistics(
    imported: Bundle, data: Path, options: TrainOptions, recorded_progress
) -> None:
    before = weights_from_bytes(imported.read(FILE))
    tuned = train.train(imported.path, data, {**SHORT, "lr": 1e-6}, options, recorded_progress)
    after = weights_from_bytes(tuned.read(FILE))
    for name, value in before.items():
        if "running" in name or "tracked" in name:
            assert torch.equal(after[name], value)
        elif not name.startswith("head."):
            torch.testing.assert_close(after[name], value, atol=1e-5, rtol=0)
    assert after["head.fc.weight"].shape == (3, 24)


def put_sides(root: Path, count: int, seed: int) -> None:
    """Write images whose left or right half is bright: mirrored, each is of the other class."""
    draw = np.random.default_rng(seed)
    for name, columns in {"left": slice(0, 8), "right": slice(8, 16)}.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = draw.normal(60, 20, (16, 16, 3))
            pixels[:, columns] += 120
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / name / f"{i:03d}.png")


def test_images_that_mirrored_are_of_another_class_are_not_mirrored(
    imported: Bundle, tmp_path: Path, options: TrainOptions, recorded_progress
) -> None:
    put_sides(tmp_path / "sides" / "train", 12, seed=1)
    put_sides(tmp_path / "sides" / "val", 6, seed=2)
    copied = open_bundle(shutil.copytree(imported.path, tmp_path / "copied"))
    tried = train.train(imported.path, tmp_path / "sides", SHORT, options, recorded_progress)
    probe = tried.training.probe
    assert probe.val_top1 > 0.8
    assert probe.mirrored_top1 < 0.2
    assert "if mirrored: no image is mirrored, as with --no-flip" in recorded_progress.text
    told = train.train(copied.path, tmp_path / "sides", {**SHORT, "flip": False}, options)
    assert told.training.probe.mirrored_top1 is None
    assert [epoch.train_loss for epoch in tried.training.history] == [
        epoch.train_loss for epoch in told.training.history
    ]
    assert tried.files[FILE].sha256 == told.files[FILE].sha256


def test_images_that_mirrored_are_of_the_same_class_are_mirrored(
    imported: Bundle, data: Path, options: TrainOptions, recorded_progress
) -> None:
    tuned = train.train(imported.path, data, SHORT, options, recorded_progress)
    assert "if mirrored: images are mirrored at random" in recorded_progress.text
    assert tuned.training.probe.mirror_safe


@pytest.mark.parametrize(
    ("right", "mirrored", "images", "safe"),
    [(10, 9, 12, True), (10, 8, 12, False), (90, 85, 100, True), (90, 84, 100, False), (80, 90, 100, True)],
)
def test_one_image_or_a_twentieth_may_be_lost_by_mirroring(right: int, mirrored: int, images: int, safe: bool) -> None:
    probe = LinearProbe(
        val_top1=right / images,
        val_loss=1.0,
        val_images=images,
        train_images=100,
        l2=0.01,
        seconds=1.0,
        mirrored_top1=mirrored / images,
    )
    assert probe.mirror_safe is safe


def test_the_probe_is_the_result_if_no_epoch_is_better(
    imported: Bundle, data: Path, options: TrainOptions, recorded_progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = weights_from_bytes(imported.read(FILE))
    scores, evaluate = (
        iter([0.75, *[0.5] * 8]),
        training_run.evaluate,
    )  # probe, mirrored, three trials, two epochs twice

    def scripted(trainer: Trainer, *rest: object) -> object:
        return dataclasses.replace(evaluate(trainer, *rest), top1=next(scores))

    monkeypatch.setattr(training_run, "evaluate", scripted)
    tuned = train.train(imported.path, data, SHORT, options, recorded_progress)
    assert (tuned.training.best.epoch, tuned.training.best.val_top1) == (0, 0.75)
    assert tuned.training.best_name == "epoch 0, the linear probe"
    after = weights_from_bytes(tuned.read(FILE))
    assert all(torch.equal(after[name], value) for name, value in before.items() if not name.startswith("head."))


def test_a_head_that_was_kept_is_not_called_a_linear_probe(
    bundle: Bundle, data: Path, options: TrainOptions, recorded_progress
) -> None:
    train.train(bundle.path, data, Recipe(epochs=2, batch_size=8, crop_area=0.5), options, recorded_progress)
    given = {**SHORT, "fine_tune": True, "lr": 1e-9, "warmup_epochs": 1}
    tuned = train.train(bundle.path, data, given, options, recorded_progress)
    assert tuned.training.probe.l2 is None
    first = tuned.training.replace(best=tuned.training.best.replace(epoch=0, averaged=None))
    assert first.best_name == "epoch 0, the network before fine-tuning"
    shown = dict(next(section for section in card_sections(model_card(tuned)) if section.title == "Training").facts)
    assert "linear probe" not in shown
    assert shown["before fine-tuning"].endswith("of 12 validation images")
    assert "by the network before fine-tuning: " in shown["mirrored images"]


def test_a_mapping_with_fine_tune_false_trains_from_scratch_and_says_so(
    imported: Bundle, data: Path, options: TrainOptions, recorded_progress
) -> None:
    trained = train.train(imported.path, data, {**SHORT, "fine_tune": False}, options, recorded_progress)
    assert "training from scratch: the weights imported from net.pth are not used" in recorded_progress.text
    assert trained.training.recipe == scratch_recipe(SHORT, 30).fitted(30).to_json()
    assert trained.training.lineage.start_sha256 is None
    assert trained.training.probe is None
    assert trained.manifest.imported is None


def test_weights_of_the_same_classes_in_their_order_keep_their_head(
    bundle: Bundle, data: Path, options: TrainOptions, recorded_progress
) -> None:
    same = give_weights(bundle, ("blue", "green", "red"))
    before = weights_from_bytes(same.read(FILE))["head.fc.weight"]
    tuned = train.train(same.path, data, {**SHORT, "lr": 1e-7}, options, recorded_progress)
    assert "before fine-tuning: " in recorded_progress.text
    assert tuned.training.probe.l2 is None
    torch.testing.assert_close(weights_from_bytes(tuned.read(FILE))["head.fc.weight"], before, atol=1e-5, rtol=0)


def test_as_many_classes_of_other_names_get_a_new_head(
    bundle: Bundle, data: Path, options: TrainOptions, recorded_progress
) -> None:
    other = give_weights(bundle, ("red", "green", "blue"), imported=None)  # another order, too
    tuned = train.train(other.path, data, SHORT, options, recorded_progress)
    assert tuned.labels == ("blue", "green", "red")
    assert tuned.training.probe.l2 is not None
    assert tuned.manifest.imported is None


def test_trained_weights_of_the_same_classes_are_trained_anew_as_before(
    bundle: Bundle, data: Path, options: TrainOptions, recorded_progress
) -> None:
    first = train.train(bundle.path, data, SHORT, options, recorded_progress)
    again = train.train(bundle.path, data, {**SHORT, "lr": 0.05}, options, recorded_progress)
    assert first.training.recipe == scratch_recipe(SHORT, 30).fitted(30).to_json()
    assert again.training.lineage.start_sha256 is None
    assert "fine-tuning" not in recorded_progress.text
    more = train.train(bundle.path, data, {**SHORT, "fine_tune": True}, options, recorded_progress)
    assert "fine-tuning the weights of the bundle; --from-scratch starts from random ones" in recorded_progress.text
    assert more.training.recipe == fine_tuning_recipe(SHORT, 30).fitted(30).to_json()  # not with the rate of scratch
    assert (more.training.probe.l2, more.training.probe.val_top1) == (None, again.training.best.val_top1)
    assert more.training.best.val_top1 >= again.training.best.val_top1


def test_the_same_fine_tuning_again_is_done_already_and_another_goes_on(
    imported: Bundle, data: Path, options: TrainOptions, recorded_progress
) -> None:
    tuned = train.train(imported.path, data, SHORT, options, recorded_progress)
    assert train.train(imported.path, data, SHORT, options, recorded_progress) == tuned
    assert "already trained like this" in recorded_progress.text
    more = train.train(imported.path, data, {**SHORT, "epochs": 3}, options, recorded_progress)
    assert more.training.lineage.start_sha256 == tuned.files[FILE].sha256
    assert more.training.probe.val_top1 == tuned.training.best.val_top1  # it starts where the other one ended


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_a_fine_tuning_that_is_killed_ends_with_the_same_bytes(
    imported: Bundle,
    data: Path,
    options: TrainOptions,
    recorded_progress,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    steps: int,
) -> None:
    options = dataclasses.replace(options, checkpoint_s=0)
    other = dataclasses.replace(options, run_dir=tmp_path / "other")
    given = SHORT if steps != 1 else {**SHORT, "precise_bn_images": 16}  # batch norm is frozen, or in training mode
    step, done = Trainer.step, [0]

    def stopping(self: Trainer, batch: object, rate: float, at: tuple[int, int]) -> object:
        done[0] += 1
        if done[0] > steps:
            raise Stop
        return step(self, batch, rate, at)

    monkeypatch.setattr(Trainer, "step", stopping)
    with pytest.raises(Stop):
        train.train(imported.path, data, given, options, recorded_progress)
    checkpoint = load_checkpoint(tmp_path / "bundle.training")
    assert checkpoint.state.probe is not None
    monkeypatch.setattr(Trainer, "step", step)
    weights = weights_from_bytes(imported.read(FILE))
    resumed = train.train(imported.path, data, given, options, recorded_progress).files[FILE].sha256
    again = replace_weights(
        open_bundle(imported.path),
        WeightsUpdate(weights, imported.architecture, imported.preprocessing, imported.labels, imported=ORIGIN),
    )
    assert train.train(again.path, data, given, other, recorded_progress).files[FILE].sha256 == resumed


def test_a_kill_before_the_probe_ends_begins_it_again(
    imported: Bundle, data: Path, options: TrainOptions, recorded_progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = initial_head.fit_linear_classifier

    def stop(*_: object, **__: object) -> object:
        raise Stop

    monkeypatch.setattr(initial_head, "fit_linear_classifier", stop)
    with pytest.raises(Stop):
        train.train(imported.path, data, SHORT, options, recorded_progress)
    with pytest.raises(UsageError, match="no epoch is completed"):
        train.train(imported.path, None, {}, dataclasses.replace(options, finish=True), recorded_progress)
    monkeypatch.setattr(initial_head, "fit_linear_classifier", fit)
    assert train.train(imported.path, data, SHORT, options, recorded_progress).training.probe is not None


def test_finish_after_the_probe_writes_the_probe(
    imported: Bundle, data: Path, options: TrainOptions, recorded_progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> object:
        raise Stop

    monkeypatch.setattr(Trainer, "step", stop)
    with pytest.raises(Stop):
        train.train(imported.path, data, SHORT, options, recorded_progress)
    finished = train.train(imported.path, None, {}, dataclasses.replace(options, finish=True), recorded_progress)
    assert finished.training.stopped
    assert finished.training.history == ()
    assert finished.training.best.epoch == 0
    assert finished.labels == ("blue", "green", "red")


def test_a_probe_that_would_take_too_long_is_left_out(
    imported: Bundle, data: Path, options: TrainOptions, recorded_progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_probe, "_MULTIPLICATIONS", 1)
    tuned = train.train(imported.path, data, SHORT, options, recorded_progress)
    assert "no linear probe: " in recorded_progress.text
    assert tuned.training.probe is None
    assert tuned.training.best.epoch in (1, 2)


@pytest.mark.parametrize(
    ("images", "epochs", "batch", "frozen"),
    [(20, 125, 5, True), (100, 125, 25, True), (2000, 8, 32, True), (2048, 8, 32, False)],
)
def test_the_defaults_follow_from_the_number_of_images(images: int, epochs: int, batch: int, frozen: bool) -> None:
    recipe = fine_tuning_recipe({}, images).fitted(images)
    assert (recipe.epochs, recipe.batch, recipe.frozen_bn) == (epochs, batch, frozen)
    assert recipe.precise_bn_images == (0 if frozen else 8192)
    assert (recipe.lr, recipe.body_lr, recipe.crop_area) == (0.02, 1, 0.35)
    steps = epochs * (images // batch)
    assert recipe.warmup_steps == round(steps / 10)
    assert recipe.ema_decay == pytest.approx(1 - 1 / (0.3 * steps), abs=1e-6)
    assert recipe.patience == max(5, round(0.4 * epochs))
    assert recipe.lr_probe


def test_steps_grow_with_many_images_and_epochs_become_few() -> None:
    epochs = [fine_tuning_recipe({}, images).epochs for images in (2_000, 20_000, 200_000, 2_000_000)]
    assert epochs == sorted(epochs, reverse=True)
    assert epochs[-1] == 3


def test_what_is_given_wins() -> None:
    given = {"epochs": 7, "batch_size": 8, "lr": 0.5, "crop_area": 0.9, "precise_bn_images": 64, "warmup_epochs": 2}
    recipe = fine_tuning_recipe(dict(given), 100)
    assert recipe.warmup_steps == given.pop("warmup_epochs") * 12
    assert {name: getattr(recipe, name) for name in given} == given
    assert not recipe.frozen_bn
    assert not recipe.lr_probe  # the rate is known
    assert recipe.flip_probe
    assert not fine_tuning_recipe({"flip": True}, 100).flip_probe
    assert fine_tuning_recipe({"warmup_epochs": 0}, 100).warmup_steps == 0


@pytest.mark.parametrize(
    ("given", "images", "wanted"),
    [
        ({"frozen_bn": True}, 5000, (True, 0)),
        ({"frozen_bn": False}, 100, (False, 8192)),
        ({"precise_bn_images": 0}, 100, (False, 0)),  # the running averages
        ({"precise_bn_images": 0, "frozen_bn": True}, 5000, (True, 0)),
    ],
)
def test_batch_norm_is_as_it_is_given(given: dict, images: int, wanted: tuple[bool, int]) -> None:
    recipe = fine_tuning_recipe(given, images)
    assert (recipe.frozen_bn, recipe.precise_bn_images) == wanted


def test_a_batch_that_is_too_large_is_said_with_the_rate_of_fine_tuning(
    imported: Bundle, data: Path, options: TrainOptions, recorded_progress
) -> None:
    given = {"epochs": 1, "batch_size": 64, "lr": 0.128}
    train.train(imported.path, data, given, options, recorded_progress)
    assert "a step has 30, and its learning rate is that of 30 images, 0.03" in recorded_progress.text
    train.train(imported.path, data, {"epochs": 1, "batch_size": 64}, options, recorded_progress)
    assert "its learning rate is that of 30 images\n" in f"{recorded_progress.text}\n"  # trials decide which


def test_weights_that_were_fine_tuned_are_not_called_imported(
    imported: Bundle, data: Path, options: TrainOptions, recorded_progress
) -> None:
    train.train(imported.path, data, {**SHORT, "epochs": 1}, options, recorded_progress)
    assert "fine-tuned from net.pth" not in recorded_progress.text
    train.train(imported.path, data, SHORT, options, recorded_progress)
    assert "fine-tuning the weights fine-tuned from net.pth; --from-scratch" in recorded_progress.text


def test_validation_images_that_the_weights_may_know_are_said(
    imported: Bundle, tmp_path: Path, put_images, options: TrainOptions, recorded_progress
) -> None:
    flat, seen = tmp_path / "flat", "may have been trained on some of the images of flat that are held out"
    put_images(flat, 10)
    train.train(imported.path, flat, {**SHORT, "epochs": 1}, options, recorded_progress)
    train.train(imported.path, flat, {**SHORT, "epochs": 2}, options, recorded_progress)  # the same are held out
    assert seen not in recorded_progress.text
    tuned = train.train(imported.path, flat, {**SHORT, "seed": 1}, options, recorded_progress)
    assert seen in recorded_progress.text
    assert seen in tuned.training.data.findings[-1]
    more = train.train(imported.path, flat, {**SHORT, "epochs": 1, "seed": 1}, options, recorded_progress)
    assert seen in more.training.data.findings[-1]  # these weights come from the ones that may know them
    again = {**SHORT, "seed": 2, "fine_tune": False}
    assert not train.train(imported.path, flat, again, options, recorded_progress).training.data.findings


def test_a_rate_that_diverges_is_the_one_to_lower(
    imported: Bundle, data: Path, options: TrainOptions, recorded_progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, done = Trainer.step, [0]

    def diverging(self: Trainer, batch: object, rate: float, at: tuple[int, int]) -> object:
        result = step(self, batch, rate, at)  # one step a trial, of which the highest rate is best
        done[0] += 1
        return result._replace(loss=result.loss * (float("nan") if done[0] > 3 else 1))

    monkeypatch.setattr(Trainer, "step", diverging)
    monkeypatch.setattr("regnet_deploy.training.rate_probe.best_rate", lambda trials, *_: trials[2].lr)
    with pytest.raises(
        UsageError, match=r"at epoch 1 step 1: .* give a lower --lr than 0\.00125; the linear probe is kept"
    ):
        train.train(imported.path, data, SHORT, options, recorded_progress)


def test_the_card_has_the_rate_that_trials_chose(
    imported: Bundle, data: Path, options: TrainOptions, recorded_progress
) -> None:
    tuned = train.train(imported.path, data, SHORT, options, recorded_progress)
    shown = dict(next(section for section in card_sections(model_card(tuned)) if section.title == "Training").facts)
    probe = tuned.training.lr_probe
    losses = ", ".join(f"{trial.lr:g}: {trial.val_loss:.3f}" for trial in probe.trials)
    assert shown["learning rate"].startswith(f"{probe.lr:g} for 128 images: val losses after 1 step are {losses}")


def test_a_recipe_of_scratch_has_the_json_of_earlier_versions() -> None:
    assert not {"body_lr", "frozen_bn", "probe"} & set(Recipe().to_json())
    assert {"warmup_steps", "probe", "lr_probe", "ema_decay", "patience"} <= set(fine_tuning_recipe({}, 100).to_json())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"body_lr": 2.0}, "must be 0 to 1, got 2.0"),
        ({"fine_tune": True, "frozen_bn": True}, "set precise_bn_images to 0"),
        ({"probe": True}, "set fine_tune"),
        ({"fine_tune": True, "probe": True, "flip": False, "flip_probe": True}, "set flip and probe or pixel_probe"),
    ],
)
def test_recipes_that_contradict_themselves_are_refused(values: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Recipe(**values)


def test_a_value_that_no_recipe_has_is_refused(
    imported: Bundle, data: Path, options: TrainOptions, recorded_progress
) -> None:
    with pytest.raises(UsageError, match="a recipe has no momentum"):
        train.train(imported.path, data, {"momentum": 0.5}, options, recorded_progress)
