"""The images to test on: they have no part in any choice, and the chosen weights are measured on them at the end."""

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regnet_deploy.api.variants import evaluate
from regnet_deploy.bundle import Bundle, Manifest, open_bundle, update_bundle
from regnet_deploy.bundle.manifest import SelectionBudget, SelectionRecord
from regnet_deploy.bundle.measurements import CostRecord
from regnet_deploy.errors import DataError, UsageError
from regnet_deploy.models.weights import FILE
from regnet_deploy.training import train
from regnet_deploy.training.checkpoint import FILE as CHECKPOINT
from regnet_deploy.training.commit import training_summary
from regnet_deploy.training.finish import finish_training
from regnet_deploy.training.interruption import Interrupted
from regnet_deploy.training.recipe import Recipe
from regnet_deploy.training.train import TrainOptions


@pytest.fixture
def tested(data: Path, put_images: Callable[..., None]) -> Path:
    """The same, and 15 images to test on, of which some are hard."""
    put_images(data / "test", 5, seed=3)
    for i in range(2):
        shutil.copy(data / "test" / "red" / f"00{i}.png", data / "test" / "blue" / f"hard{i}.png")
    return data


@pytest.fixture
def flat(tmp_path: Path, put_images: Callable[..., None]) -> Path:
    """60 images in class folders alone."""
    put_images(tmp_path / "flat", 20, seed=4)
    return tmp_path / "flat"


@pytest.fixture
def held_out(options: TrainOptions) -> TrainOptions:
    return dataclasses.replace(options, test_split=0.2)


def end_at_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a signal end the run while the chosen weights are tested."""

    def interrupted(*_: object) -> None:
        raise Interrupted

    monkeypatch.setattr(train, "final_test", interrupted)


def test_the_chosen_weights_are_measured_on_images_that_changed_nothing(
    bundle: Bundle, tested: Path, recipe: Recipe, options: TrainOptions, recorded_progress
) -> None:
    trained = train.train(bundle.path, tested, recipe, options, recorded_progress)
    part = trained.training
    assert not re.search(r"\b15 images(?!/s)", recorded_progress.text)
    assert "30 images to train on, 12 to validate with (val/ of the folder), 17 to test on (test/ of the folder)" in (
        recorded_progress.text
    )
    assert (part.data.test.images, part.data.test.by_class, part.data.test.held_out) == (17, (7, 5, 5), False)
    assert part.test.images == 17
    assert part.test.low < part.test.top1 < part.test.high
    assert 0.5 < part.test.top1 <= 15 / 17
    measured = evaluate(trained, tested, split="test").evaluations[0].metrics
    assert (part.test.top1, part.test.low, part.test.high) == (
        measured.top1.value,
        measured.top1.low,
        measured.top1.high,
    )
    record = trained.manifest.evaluation
    assert (record.data, record.split, record.images, record.where) == ("data", "test", 17, "data/test")
    assert record.variants["model"].top1 == part.test.top1
    assert training_summary(part)["test"]["images"] == 17
    shutil.rmtree(tested / "test")
    other = train.train(bundle.path, tested, recipe, dataclasses.replace(options, restart=True), recorded_progress)
    assert other.files[FILE].sha256 == trained.files[FILE].sha256
    assert other.training.best == part.best
    assert (other.training.test, other.training.data.test, other.manifest.evaluation) == (None, None, None)


def test_a_share_is_held_out_and_found_again(
    bundle: Bundle, flat: Path, recipe: Recipe, held_out: TrainOptions, recorded_progress
) -> None:
    trained = train.train(bundle.path, flat, recipe, held_out, recorded_progress)
    part = trained.training
    assert (part.data.train_images, part.data.val_images, part.data.test.images) == (42, 6, 12)
    assert part.data.test.held_out
    for split in ("test", None):
        result = evaluate(trained, flat, split=split)
        assert result.images.held_out
        assert (result.evaluations[0].metrics.top1.value, len(result.rows)) == (part.test.top1, 12)
    validated = evaluate(trained, flat, split="val")
    assert validated.evaluations[0].metrics.top1.value == part.best.val_top1
    assert not {*validated.images.source.names} & {*result.images.source.names}
    assert trained.manifest.evaluation.where == "flat, held out for test"
    (flat / "red" / "000.png").unlink()
    with pytest.raises(DataError, match=r"so the 18 held-out images are not known"):
        evaluate(trained, flat, split="test")
    assert not evaluate(trained, flat).images.held_out  # as any other folder of these classes


def test_images_to_test_on_are_held_out_once(
    bundle: Bundle, tested: Path, recipe: Recipe, held_out: TrainOptions, recorded_progress
) -> None:
    with pytest.raises(UsageError, match="has images to test on of its own: omit --test-split"):
        train.train(bundle.path, tested, recipe, held_out, recorded_progress)


@pytest.mark.parametrize(("val", "test"), [(0.5, 0.5), (None, 1.0), (0.0, None)])
def test_shares_that_leave_nothing_are_one_line(val: float | None, test: float | None) -> None:
    with pytest.raises(UsageError, match=r"leave nothing to train on|is a share of the images"):
        TrainOptions(val_split=val, test_split=test)


@pytest.mark.parametrize("trained_without", [False, True])
def test_a_run_that_ends_during_its_test_is_tested_when_it_is_repeated(
    bundle: Bundle,
    tested: Path,
    recipe: Recipe,
    options: TrainOptions,
    recorded_progress,
    monkeypatch: pytest.MonkeyPatch,
    trained_without: bool,
) -> None:
    other = shutil.copytree(bundle.path, bundle.path.with_name("other"))
    whole = train.train(other, tested, recipe, options, recorded_progress)
    if trained_without:  # has the same weights
        (tested / "test").rename(tested.parent / "test")
        train.train(bundle.path, tested, recipe, options, recorded_progress)
        (tested.parent / "test").rename(tested / "test")
    before, restarted = open_bundle(bundle.path), dataclasses.replace(options, restart=True)
    with monkeypatch.context() as patch:
        end_at_the_test(patch)
        with pytest.raises(KeyboardInterrupt, match="continues at the end of its last epoch"):
            train.train(bundle.path, tested, recipe, restarted, recorded_progress)
    assert open_bundle(bundle.path) == before
    again = train.train(bundle.path, tested, recipe, options, recorded_progress)
    assert "resuming at the end of its last epoch" in recorded_progress.text
    assert again.files[FILE] == whole.files[FILE]
    assert again.training.test == whole.training.test
    assert again.manifest.evaluation == whole.manifest.evaluation


@pytest.mark.parametrize("change", ["an image", "a share"])
def test_other_images_to_test_on_are_another_run(
    bundle: Bundle,
    tested: Path,
    flat: Path,
    recipe: Recipe,
    options: TrainOptions,
    recorded_progress,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
) -> None:
    folder = tested if change == "an image" else flat
    before = options if change == "an image" else dataclasses.replace(options, test_split=0.2)
    after = options if change == "an image" else dataclasses.replace(options, test_split=0.1)
    with monkeypatch.context() as patch:
        end_at_the_test(patch)
        with pytest.raises(KeyboardInterrupt):
            train.train(bundle.path, folder, recipe, before, recorded_progress)
    if change == "an image":
        (tested / "test" / "red" / "000.png").unlink()
    with pytest.raises(UsageError, match=r"differs in .*data test images"):
        train.train(bundle.path, folder, recipe, after, recorded_progress)


@pytest.mark.parametrize("where", ["there", "moved", "gone", "changed"])
def test_an_unfinished_run_is_tested_where_its_images_are(
    bundle: Bundle,
    flat: Path,
    recipe: Recipe,
    held_out: TrainOptions,
    recorded_progress,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    end_at_the_test(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train.train(bundle.path, flat, recipe, held_out, recorded_progress)
    moved = None
    if where == "moved":
        moved = flat.rename(flat.parent / "moved")
    elif where == "gone":
        shutil.rmtree(flat)
    elif where == "changed":
        (flat / "red" / "000.png").unlink()
    done = finish_training(bundle.path, None, recorded_progress, moved)
    assert done.training.best.epoch >= 1
    if where in ("there", "moved"):
        assert done.training.test.images == 12
        assert done.manifest.evaluation.data == "flat"
    else:
        assert (done.training.test, done.manifest.evaluation) == (None, None)
        assert done.training.data.test.images == 12
        reason = "does not exist" if where == "gone" else "has other images to test on than the run began with"
        assert "the accuracy on the test images is not measured: " in recorded_progress.text
        assert f"{reason}. When the images are there again, `regnet-deploy evaluate" in recorded_progress.text


def test_test_images_that_vanish_end_the_run_with_one_line(
    bundle: Bundle, tested: Path, recipe: Recipe, options: TrainOptions, recorded_progress, monkeypatch
) -> None:
    fit = train.fit

    def vanishing(*arguments: object) -> None:
        fit(*arguments)
        shutil.rmtree(tested / "test" / "red")

    monkeypatch.setattr(train, "fit", vanishing)
    with pytest.raises(DataError, match=r"5 of 17 test images can be read no more .*--finish does without them"):
        train.train(bundle.path, tested, recipe, options, recorded_progress)
    assert (bundle.path.parent / "bundle.training" / CHECKPOINT).exists()
    assert finish_training(bundle.path, None, recorded_progress).training.test is None


def test_a_single_test_image_that_vanishes_is_left_out_and_named(
    bundle: Bundle, tested: Path, recipe: Recipe, options: TrainOptions, recorded_progress, monkeypatch
) -> None:
    fit = train.fit

    def vanishing(*arguments: object) -> None:
        fit(*arguments)
        (tested / "test" / "red" / "000.png").unlink()

    monkeypatch.setattr(train, "fit", vanishing)
    trained = train.train(bundle.path, tested, recipe, options, recorded_progress)
    assert trained.training.test.images == 16
    assert "test/red/000.png: cannot be read" in recorded_progress.text
    assert trained.manifest.evaluation.unreadable == 1


def test_weights_that_saw_the_images_are_named(
    bundle: Bundle, flat: Path, recipe: Recipe, options: TrainOptions, held_out: TrainOptions, recorded_progress
) -> None:
    train.train(bundle.path, flat, recipe, options, recorded_progress)
    tuned = dataclasses.replace(recipe, fine_tune=True)
    trained = train.train(bundle.path, flat, tuned, held_out, recorded_progress)
    (remark,) = trained.training.data.test.remarks
    assert remark.startswith("the weights that this run starts from were trained on images of flat when the test")
    assert remark in recorded_progress.text
    again = train.train(bundle.path, flat, tuned, held_out, recorded_progress)
    assert again.training.data.test.remarks == (remark,)  # what the first weights knew is not forgotten
    scratch = train.train(bundle.path, flat, recipe, held_out, recorded_progress)
    assert scratch.training.data.test.remarks == ()
    more = train.train(bundle.path, flat, tuned, held_out, recorded_progress)
    assert more.training.data.test.remarks == ()


def test_a_network_that_was_selected_by_the_images_is_named(
    bundle: Bundle, flat: Path, recipe: Recipe, held_out: TrainOptions, recorded_progress
) -> None:
    budget = SelectionBudget(macs=1e6, tolerance=0.05, family="x", resolution=16, classes=3)
    cost = CostRecord(macs=1, parameters=1, activations=1)
    selection = SelectionRecord(
        budget=budget, met=cost, considered=2, reason="lowest error", tried={"data": str(flat), "candidates": []}
    )
    update_bundle(bundle.path, Manifest(selection=selection))
    trained = train.train(bundle.path, flat, recipe, held_out, recorded_progress)
    (remark,) = trained.training.data.test.remarks
    assert remark.startswith("the network was selected by training candidates on images of flat when the test images")


def test_copies_of_training_images_are_named(
    bundle: Bundle, tested: Path, recipe: Recipe, options: TrainOptions, recorded_progress
) -> None:
    shutil.copy(tested / "train" / "red" / "000.png", tested / "test" / "red" / "copy.png")
    trained = train.train(bundle.path, tested, recipe, options, recorded_progress)
    (finding, *_) = trained.training.data.findings
    assert finding.startswith("1 of 18 test images are exact copies of training images")


def test_what_is_trained_already_says_how_to_measure_it(
    bundle: Bundle, data: Path, recipe: Recipe, options: TrainOptions, recorded_progress
) -> None:
    train.train(bundle.path, data, recipe, options, recorded_progress)
    for name in ("blue", "green", "red"):
        (data / "test" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(data / "test" / name / "1.png")
    train.train(bundle.path, data, recipe, options, recorded_progress)
    assert "is already trained like this" in recorded_progress.text
    assert f"--data {data} --split test measures it on the test images" in recorded_progress.text
