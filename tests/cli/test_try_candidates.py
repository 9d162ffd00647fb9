"""`select --try` trains candidates and takes the best; `select --trial` takes a network of a sweep."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from regnet_deploy.bundle import open_bundle
from regnet_deploy.populations.store import read_store

BUDGET = ("select", "--gflops", "0.001", "--tolerance", "5", "--resolution", "16", "--family", "x", "--no-bounds")
SHALLOW = ("--depth", "4:14")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def data(tmp_path):
    draw = np.random.default_rng(0)
    for subset, count in (("train", 8), ("val", 4)):
        for name, colour in {"blue": (40, 60, 200), "red": (210, 40, 50)}.items():
            folder = tmp_path / "data" / subset / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(colour + draw.normal(0, 40, (20, 20, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "data"


def test_the_least_measured_error_is_picked(cli, data, tmp_path):
    done = cli(*BUDGET, *SHALLOW, "--try", 4, "--data", data, "--epochs", 3, "--json")
    assert done.returncode == 0, done.stderr
    picked = json.loads(done.stdout)
    with read_store(tmp_path / "regnet-bundle.tried") as store:
        trials, outcomes = store.trials(), store.outcomes()
    assert [trial.epochs for trial in trials] == [1, 1, 1, 1, 3, 3]
    last = {trial.number: outcomes[trial.number].error for trial in trials if trial.epochs == 3}
    best = [number for number, error in last.items() if error == min(last.values())]
    assert picked["pick"]["measured_error"] == min(last.values())
    assert picked["pick"]["widths"] in [list(trials[number].network.widths) for number in best]
    assert picked["budget"]["classes"] == 2  # those of the folder
    architecture = open_bundle(tmp_path / "regnet-bundle").parts["architecture"]
    assert architecture["depths"] == picked["pick"]["depths"]
    assert "4 candidates, 1 epoch each" in done.stderr
    assert "2 candidates, 3 epochs each" in done.stderr


def test_the_same_command_trains_nothing_twice(cli, data):
    cli(*BUDGET, *SHALLOW, "--try", 2, "--data", data, "--epochs", 1)
    done = cli(*BUDGET, *SHALLOW, "--try", 2, "--data", data, "--epochs", 1, "--force")
    assert done.returncode == 0
    assert "trial " not in done.stderr.replace("2 of 2 trials", "")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--try", "3"), "--data DIR"),
        (("--data", "images"), "--data requires --try"),
        (("--epochs", "3"), "--epochs requires --try"),
        (("--try", "3", "--data", "nowhere"), "does not exist"),
        (("--try", "0", "--data", "nowhere"), "0"),
    ],
)
def test_what_does_not_go_together_is_one_line_and_nothing_is_written(cli, tmp_path, arguments, says):
    done = cli(*BUDGET, *arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_another_number_of_classes_than_the_folders_is_refused(cli, data):
    done = cli(*BUDGET, "--classes", 5, "--try", 2, "--data", data)
    assert done.returncode == 2
    assert "--classes is 5" in done.stderr


def test_a_bundle_with_weights_is_known_before_anything_is_trained(cli, data, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    done = cli(*BUDGET, *SHALLOW, "--try", 2, "--data", data, "-o", "full")
    assert done.returncode == 2
    assert "not a bundle" in done.stderr
    assert not (tmp_path / "full.tried").exists()


def test_a_network_of_a_sweep_becomes_a_bundle(cli, data, tmp_path):
    swept = ("--space", "AnyNetV_E", "--data", data, "--n", 2, "--mmacs", "0.5:4", "--resolution", 16, "--epochs", 1)
    done = cli("sweep", *swept, "--precise-bn", 0, "--store", "v.sweep", "--json")
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout)["errors_percent"]
    done = cli("select", "--trial", "v.sweep", "--json", "-o", "v")
    assert done.returncode == 0, done.stderr
    taken = json.loads(done.stdout)
    assert taken["trial"]["error_percent"] == min(errors.values())
    architecture = open_bundle(tmp_path / "v").parts["architecture"]
    assert (architecture["block"], architecture["family"], architecture["classes"]) == ("v", "v", 2)
    done = cli("show", "v")
    assert done.returncode == 0
    assert "AnyNetV" in done.stdout
    done = cli("select", "--trial", "v.sweep:1", "--json", "-o", "v1")
    assert json.loads(done.stdout)["trial"]["number"] == 1


@pytest.mark.parametrize("word", ["nowhere.sweep", "v.sweep:7", "page.txt"])
def test_a_trial_that_is_not_there_is_one_line(cli, tmp_path, word):
    (tmp_path / "page.txt").write_text("not a store")
    done = cli("select", "--trial", word)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "regnet-bundle").exists()
