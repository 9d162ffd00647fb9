"""Every kind of data set gives the weights and figures of the folder with the same images."""

from __future__ import annotations

import csv
import dataclasses
import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from regnet_deploy.api.variants import evaluate
from regnet_deploy.bundle import Bundle, create_bundle
from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.checking.folder_check import check_folder
from regnet_deploy.errors import DataError, UsageError
from regnet_deploy.exporting.training_dataset import load_training_dataset
from regnet_deploy.exporting.validation import load_validation_set
from regnet_deploy.models.weights import FILE, SAMPLES
from regnet_deploy.training import train
from regnet_deploy.training.recipe import Recipe
from regnet_deploy.training.train import TrainOptions
from regnet_deploy.training.trainer import Trainer

Images = list[tuple[str, str, str, bytes]]


def images_of(folder: Path) -> Images:
    """Split, class, name and content of each image, sorted by its path."""
    paths = sorted(folder.rglob("*.png"))
    return [(*path.relative_to(folder).parts, path.read_bytes()) for path in paths]  # type: ignore[misc]


def write_csv(images: Images, folder: Path) -> Path:
    rows = [("file", "species", "subset")]
    shutil.rmtree(folder, ignore_errors=True)
    for split, label, name, content in images:
        (folder / "files" / split / label).mkdir(parents=True, exist_ok=True)
        (folder / "files" / split / label / name).write_bytes(content)
        rows.append((f"files/{split}/{label}/{name}", label, split))
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return Path(f"{folder / 'labels.csv'}#label=species")


def write_shards(images: Images, folder: Path) -> Path:
    """Two shards of each split, in the order of the names, so that they sort as in the folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for split in dict.fromkeys(image[0] for image in images):
        own = [image for image in images if image[0] == split]
        for number, part in enumerate((own[: len(own) // 2], own[len(own) // 2 :])):
            with tarfile.open(folder / f"{split}-{number:03}.tar", "w") as archive:
                for _, label, name, content in part:
                    for member, data in ((name, content), (f"{name[:-4]}.cls", label.encode())):
                        info = tarfile.TarInfo(f"{label}/{member}")
                        info.size = len(data)
                        archive.addfile(info, io.BytesIO(data))
    return folder


def write_parquet(images: Images, folder: Path) -> Path:
    """A file of each split, as on the hub of Hugging Face."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "data").mkdir(parents=True)
    for split in dict.fromkeys(image[0] for image in images):
        own = [image for image in images if image[0] == split]
        values = [{"bytes": content, "path": f"{label}/{name}"} for _, label, name, content in own]
        labels = pa.array([label for _, label, _, _ in own])
        pa.parquet.write_table(
            pa.table({"image": values, "label": labels}), folder / "data" / f"{split}-00000-of-00001.parquet"
        )
    return folder


Writer = Callable[[Images, Path], Path]
WRITERS: dict[str, Writer] = {"csv": write_csv, "shards": write_shards, "parquet": write_parquet}


@pytest.fixture(params=WRITERS)
def write(request: pytest.FixtureRequest) -> Writer:
    return WRITERS[request.param]


@pytest.fixture
def source(write: Writer, data: Path, put_images: Callable[..., None], tmp_path: Path) -> Path:
    """The images of ``data`` and some to test on, in another form."""
    put_images(data / "test", 3, seed=3)
    return write(images_of(data), tmp_path / "other")


@pytest.fixture
def second(bundle: Bundle, preprocessing: Preprocessing, tmp_path: Path) -> Bundle:
    parts = {"architecture": bundle.architecture, "preprocessing": preprocessing.to_json()}
    return create_bundle(tmp_path / "second", parts)


def test_weights_and_figures_are_those_of_the_folder(
    bundle: Bundle, second: Bundle, data: Path, source: Path, recipe: Recipe, options: TrainOptions, recorded_progress
) -> None:
    one = train.train(bundle.path, data, recipe, options)
    other = train.train(second.path, source, recipe, options)
    assert other.read(FILE) == one.read(FILE)
    assert other.read(SAMPLES) == one.read(SAMPLES)
    assert other.training.test == one.training.test
    assert [epoch.val_top1 for epoch in other.training.history] == [epoch.val_top1 for epoch in one.training.history]
    for split in (None, "val", "train"):
        figures = [evaluate(*pair, split=split).evaluations[0].metrics for pair in ((one, data), (other, source))]
        assert figures[0].top1 == figures[1].top1
        assert np.array_equal(figures[0].confusion, figures[1].confusion)
    validation = [load_validation_set(at, of, of.preprocessing) for of, at in ((one, data), (other, source))]
    assert np.array_equal(validation[0].pixels, validation[1].pixels)
    train.train(second.path, source, recipe, options, recorded_progress)
    assert "is already trained like this" in recorded_progress.text  # so the data is known again


@pytest.mark.alone
def test_loading_processes_read_the_same_images(
    bundle: Bundle, second: Bundle, source: Path, recipe: Recipe, options: TrainOptions
) -> None:
    one = train.train(bundle.path, source, recipe, options)
    other = train.train(second.path, source, recipe, dataclasses.replace(options, workers=2, cache="off"))
    assert other.read(FILE) == one.read(FILE)


def test_check_finds_what_it_finds_in_the_folder(data: Path, source: Path) -> None:
    one, other = check_folder(data), check_folder(source)
    assert [finding.kind for finding in other.findings] == [finding.kind for finding in one.findings]
    for split in ("train", "val", "test"):
        assert other.counts(split) == one.counts(split)
    assert other.summary()[:3] == one.summary()[:3]


def test_an_interrupted_run_continues_to_the_same_weights_and_notices_other_data(
    bundle: Bundle,
    second: Bundle,
    write: Writer,
    data: Path,
    source: Path,
    recipe: Recipe,
    options: TrainOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = dataclasses.replace(options, checkpoint_s=0)
    whole = train.train(bundle.path, source, recipe, options).read(FILE)
    step, steps = Trainer.step, iter(range(100))

    def some_steps(*arguments: Any, **named: Any) -> Any:
        if next(steps) == 5:
            raise KeyboardInterrupt
        return step(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", some_steps)
        with pytest.raises(KeyboardInterrupt):
            train.train(second.path, source, recipe, options)
    write([each for each in images_of(data) if each[2] != "001.png"], tmp_path / "other")
    with pytest.raises(UsageError, match="differs in data images"):
        train.train(second.path, source, recipe, options)
    write(images_of(data), tmp_path / "other")
    assert train.train(second.path, source, recipe, options).read(FILE) == whole


def test_images_that_were_held_out_are_known_again(
    bundle: Bundle, write: Writer, data: Path, recipe: Recipe, options: TrainOptions, tmp_path: Path
) -> None:
    flat = write([each for each in images_of(data) if each[0] == "train"], tmp_path / "flat")
    trained = train.train(bundle.path, flat, recipe, dataclasses.replace(options, val_split=0.2, test_split=0.1))
    dataset = load_training_dataset(flat, trained)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (21, 6, 3)
    assert evaluate(trained, flat, split="test").evaluations[0].metrics.images == 3


def test_a_class_that_is_not_of_the_network_is_named(
    bundle: Bundle, write: Writer, data: Path, recipe: Recipe, options: TrainOptions, tmp_path: Path
) -> None:
    trained = train.train(bundle.path, data, recipe, options)
    other = [(split, label.replace("red", "rad"), *rest) for split, label, *rest in images_of(data)]
    with pytest.raises(DataError, match=r"1 of 3 .* no classes of the network: rad; rad \(did you mean red\?\)"):
        evaluate(trained, write(other, tmp_path / "flat"))
