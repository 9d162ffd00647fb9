"""Earlier weights: they are there until better ones are."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from bundle_parts import onnx_variant

from regnet_deploy.bundle import Bundle, Manifest, find_damage, open_bundle, update_bundle
from regnet_deploy.errors import DataError
from regnet_deploy.models.weights import FILE
from regnet_deploy.training import earlier_weights, train
from regnet_deploy.training import run as training_run
from regnet_deploy.training.recipe import Recipe
from regnet_deploy.training.run_directory import default_directory
from regnet_deploy.training.train import TrainOptions

Run = Callable[..., Bundle]


@pytest.fixture
def run(
    bundle: Bundle,
    data: Path,
    recipe: Recipe,
    options: TrainOptions,
    recorded_progress,
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """Train one epoch that gets this share of the validation images right."""
    evaluate = training_run.evaluate

    def trained(top1: float, *, seed: int = 0, folder: Path = data, restart: bool = False) -> Bundle:
        scripted = lambda *arguments: dataclasses.replace(evaluate(*arguments), top1=top1)  # noqa: E731
        monkeypatch.setattr(training_run, "evaluate", scripted)
        once = dataclasses.replace(recipe, epochs=1, warmup_epochs=0, seed=seed)
        return train.train(bundle.path, folder, once, dataclasses.replace(options, restart=restart), recorded_progress)

    return trained


def kept(bundle: Bundle) -> list[Path]:
    return sorted(default_directory(bundle.path).glob("earlier-*"))


@pytest.mark.parametrize("top1", [0.5, 0.75])
def test_weights_that_are_not_surpassed_are_kept_with_all_that_was_made_of_them(
    run: Run, recorded_progress, top1: float
) -> None:
    good = run(0.75)
    update_bundle(good.path, Manifest(variants={"onnx-fp32": onnx_variant()}), {"fp32.onnx": b"x"})
    good = open_bundle(good.path)
    now = run(top1, seed=1)
    assert now.training.best.val_top1 == top1
    (folder,) = kept(now)
    copy = open_bundle(folder)
    assert (copy.parts, copy.files) == (good.parts, good.files)
    assert find_damage(copy) == []
    said = [line for line in recorded_progress.messages if line.startswith("the earlier weights")]
    assert len(said) == 1
    assert "(75.00% of its validation images)" in said[0]
    assert str(folder) in said[0]


def test_better_weights_replace_earlier_ones(run: Run) -> None:
    run(0.5)
    assert kept(run(0.75, seed=1)) == []


def test_the_same_weights_are_not_kept_twice(run: Run) -> None:
    run(0.5)
    assert kept(run(0.5, restart=True)) == []


def test_shares_of_other_images_are_not_compared(run: Run, put_images, tmp_path: Path) -> None:
    first = run(0.5)
    put_images(tmp_path / "other" / "train", 4, seed=5)
    put_images(tmp_path / "other" / "val", 2, seed=6)
    assert [path.name for path in kept(run(0.75, folder=tmp_path / "other"))] == [
        f"earlier-{first.files[FILE].sha256[:12]}"
    ]


def test_another_bundle_of_the_same_weights_gets_another_name(run: Run) -> None:
    good = run(0.75)
    run(0.5, seed=1)
    run(0.25)  # the first weights once more, and nothing is made of them
    run(0.1, seed=1)
    names = [path.name.split("-", 2)[1:] for path in kept(good)]
    assert sum(sha == [good.files[FILE].sha256[:12]] for sha in names) == 1
    assert [good.files[FILE].sha256[:12], "2"] in names


def test_a_file_system_without_links_gets_copies(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    good = run(0.75)
    monkeypatch.setattr(earlier_weights.os, "link", refuse)
    (folder,) = kept(run(0.5, seed=1))
    assert open_bundle(folder).read(FILE)
    assert open_bundle(folder).files == good.files


def test_a_full_disk_leaves_bundle_and_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    good = run(0.75)
    with monkeypatch.context() as patch:
        patch.setattr(earlier_weights.os, "link", full)
        patch.setattr(earlier_weights.shutil, "copyfile", full)
        with pytest.raises(DataError, match=r"cannot keep the earlier weights in .*the bundle is unchanged"):
            run(0.5, seed=1)
    assert open_bundle(good.path) == good
    assert kept(good) == []
    assert len(kept(run(0.5, seed=1))) == 1
