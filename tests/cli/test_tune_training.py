"""`regnet-deploy tune-training`: a recipe file for `train`, a table, and one line for everything that is wrong."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from regnet_deploy.bundle import Manifest, create_bundle
from regnet_deploy.bundle.manifest import Architecture
from regnet_deploy.images.preprocessing import default_preprocessing
from regnet_deploy.space.network import Network

OPTIONS = ("--trials", "3", "--epochs", "1", "--device", "cpu", "--threads", "1")


@pytest.fixture
def folder(sweep_images: Path, tmp_path: Path) -> Path:
    network = Network((1, 1), (8, 16), (8, 8), (1.0, 1.0), 0.0, 1, 8)
    architecture = Architecture.of(network, name="tiny", classes=3, resolution=16)
    create_bundle(tmp_path / "b", Manifest(architecture=architecture, preprocessing=default_preprocessing(16)))
    (tmp_path / "images").symlink_to(sweep_images)
    return tmp_path


def test_it_writes_a_recipe_file_and_prints_what_was_tried(cli: Any, folder: Path) -> None:
    before = (folder / "b" / "bundle.json").read_bytes()
    done = cli("tune-training", "b", "--data", "images", *OPTIONS, "--vary", "lr=0.05,0.2", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert len(result["tried"]) == 3
    assert result["tried"][0]["test"] is None
    recipe = yaml.safe_load((folder / "b.recipe.yaml").read_text())
    assert recipe["values"] == {**result["best"], "epochs": 1}
    assert recipe["rule"] == "auto"
    assert recipe["description"] == "The best of 3 recipes for images. Found by tune-training."
    assert "too low, as it was chosen on these images: there are no test images" in done.stderr
    assert "wrote b.recipe.yaml - next: regnet-deploy train b --data images --recipe b.recipe.yaml" in done.stderr
    assert (folder / "b" / "bundle.json").read_bytes() == before
    again = cli("tune-training", "b", "--data", "images", *OPTIONS, "--vary", "lr=0.05,0.2", cwd=folder)
    assert "3 of 3 trials have an outcome, 0 remain" in again.stderr
    assert "val top-1 error" in again.stdout


def test_killed_at_any_moment_it_continues(start_cli: Any, cli_process: Any, folder: Path) -> None:
    command = ("tune-training", "b", "--data", "images", *OPTIONS, "--vary", "lr=0.05,0.2")
    with start_cli(*command, cwd=folder) as process:
        end = time.monotonic() + 120
        while time.monotonic() < end and not _done(folder / "b.tuning"):
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    kept = _done(folder / "b.tuning")
    assert kept
    assert not (folder / "b.recipe.yaml").exists()
    finished = cli_process(*command, cwd=folder)
    assert finished.returncode == 0, finished.stderr
    assert _done(folder / "b.tuning") == 3
    assert yaml.safe_load((folder / "b.recipe.yaml").read_text())["values"]["epochs"] == 1


def _done(store: Path) -> int:
    try:
        with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as connection:
            return int(connection.execute("SELECT count(*) FROM trials WHERE outcome IS NOT NULL").fetchone()[0])
    except sqlite3.Error:
        return 0
    finally:
        if "connection" in locals():
            connection.close()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--vary", "lr"), "give NAME=RANGE, such as lr=0.02:0.8:log"),
        (("--vary", "lr=1,2", "--vary", "lr=3"), "--vary names lr twice"),
        (("--vary", "speed=1:2"), "a recipe has no 'speed'"),
        (("--vary", "crop_area=0.5:2"), "crop_area 2.0: the crop area must be above 0 and at most 1"),
        (("--space", "none.yaml"), "cannot read none.yaml"),
        (("-o", "recipe.txt"), ".yaml"),
        (("--cpus-per-trial", "2"), "--cpus-per-trial requires --ray"),
        (("--fine-tune",), "has no weights to start from"),
    ],
)
def test_wrong_options_are_one_line(cli_error: Any, folder: Path, options: tuple[str, ...], said: str) -> None:
    assert said in cli_error("tune-training", "b", "--data", "images", *options, cwd=folder)
    assert not (folder / "b.tuning").exists()
