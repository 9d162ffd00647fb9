"""The program that measures fine-tuning: the images that it draws, what the page says of results, and a tiny run."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image")

ROOT = Path(__file__).parents[1]
METHODS = ("probe", "fine-tune", "scratch")


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    """Import a program of benchmarks/ by its name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


@pytest.fixture
def sets(load) -> ModuleType:
    return load("transfer_sets")


@pytest.fixture
def page(load) -> ModuleType:
    return load("transfer_page")


@pytest.fixture
def characters(tmp_path: Path) -> Path:
    """An npz file as that of MNIST: standing and lying bars, all of them different."""
    file, images = tmp_path / "mnist.npz", np.zeros((60, 12, 12), np.uint8)
    for number, image in enumerate(images):
        (image if number % 2 else image.T)[2:10, 4:8] = 100 + number
    labels = np.arange(60, dtype=np.uint8) % 2
    parts = {"train_images": images[:40], "train_labels": labels[:40], "val_images": images[40:]}
    np.savez(file, **parts, val_labels=labels[40:])
    return file


def names_of(groups: list[list[Path]]) -> list[list[str]]:
    return sorted([path.stem for path in group] for group in groups)


def test_pictures_of_one_object_are_one_group(sets):
    names = [
        "cow.png",
        "cow_white.png",
        "cartoon/cow-2.png",
        "black_sheep.png",
        "black_cat.png",
        "catTail.png",
        "owl.png",
    ]
    names += ["coins/001.png", "coins/002.png", "notes/001.png"]
    assert names_of(sets.same_objects([Path(name) for name in names])) == [
        ["001"],
        ["001", "002"],
        ["black_cat", "catTail"],
        ["black_sheep"],
        ["cow-2", "cow", "cow_white"],
        ["owl"],
    ]  # fmt: skip


def test_groups_that_a_later_picture_connects_become_one(sets):
    names = ["tower_round.png", "castle.png", "castle_tower.png", "round_hat.png"]
    assert names_of(sets.same_objects([Path(name) for name in names])) == [sorted(Path(name).stem for name in names)]


def test_no_group_is_on_both_sides_of_a_split(sets):
    groups = [[(number, each) for each in range(1 + number % 4)] for number in range(30)]
    for seed in range(20):
        parts = sets.split_groups(groups, (20, 5, 30), seed)
        assert [len(part) for part in parts[:2]] == [20, 5]
        assert len(parts[2]) <= 30
        found = [{group for group, _ in part} for part in parts]
        assert sum(map(len, found)) == len(set.union(*found))
    assert sets.split_groups(groups, (20, 5, 30), 0) != sets.split_groups(groups, (20, 5, 30), 1)


@pytest.mark.parametrize("counts", [(8, 2, 5), (7, 3, 5), (20, 1, 1)])
def test_too_few_groups_are_said(sets, counts):
    with pytest.raises(ValueError, match="10 images in 10 groups are too few"):
        sets.split_groups([[number] for number in range(10)], counts, 0)


def test_images_to_test_on_are_no_images_of_training(sets, characters, tmp_path):
    folders = sets.write_set(sets.mnist(characters), 8, 15, 3, tmp_path / "set")
    pixels = {
        part: [np.asarray(Image.open(path)).tobytes() for path in sorted(folder.rglob("*.png"))]
        for part, folder in (("train", folders.train / "train"), ("val", folders.train / "val"), ("test", folders.test))
    }
    assert {part: len(images) for part, images in pixels.items()} == {"train": 16, "val": 4, "test": 30}
    assert len({image for images in pixels.values() for image in images}) == 50
    again = sets.write_set(sets.mnist(characters), 8, 15, 3, tmp_path / "again")
    assert [np.asarray(Image.open(path)).tobytes() for path in sorted(again.test.rglob("*.png"))] == pixels["test"]


def test_stamps_have_no_alphabets_and_no_object_of_two_themes(sets, tmp_path):
    names = [f"{theme}/{theme}.png" for theme in sets.THEMES]
    names += ["food/fruit/eggplant.png", "plants/Eggplant.png", "symbols/alphabets/a.png", "symbols/sun.svg"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGBA", (3, 3)).save(tmp_path / name, "PNG")
    found = sets.stamps(tmp_path)
    assert {theme: sum(map(len, groups)) for theme, groups in found.items()} == dict.fromkeys(sets.THEMES, 1)


def results(top1: dict[str, list[float]], **changes: Any) -> dict[str, Any]:
    """Return the results of one set, with these test accuracies of each method by seed."""
    run = {"set": "a set", "seconds": 3.0, "train_images": 40, "val_images": 10, "test_images": 200, "threads": 2}
    run |= {"largest_class": 0.25, "chosen": "epoch 2", "other_cores": 0.0, "curve": [[1.0, 0.5], [2.0, 0.7]]}
    runs = [
        {
            **run,
            "method": method,
            "seed": seed,
            "top1": {"value": value, "low": value - 0.1, "high": value + 0.1},
            **changes,
        }
        for method, values in top1.items()
        for seed, value in enumerate(values)
    ]
    weights = {"network": "RegNetX-4MF", "macs": 4e6, "parameters": 3e5, "images": 100, "classes": 62, "epochs": 6}
    weights |= {"planned_epochs": 6, "seconds": 120, "val_top1": 0.8, "val_images": 50}
    machine = {"cpu": "A CPU", "cores": 2, "versions": {"torch": "2.13"}}
    return {"pretrained": weights, "machine": machine, "runs": runs}


@pytest.mark.parametrize(
    ("scratch", "said"),
    [
        ([0.5, 0.6, 0.7], "is better: a set (+20.0 points, 3 seeds)."),
        ([0.9, 0.95, 0.97], "is worse: a set (-14.0 points, 3 seeds)."),
        ([0.6], "is not clearly better or worse: a set (+10.0 points, 1 seed)."),
        ([0.4], "is better: a set (+30.0 points, 1 seed)."),
        ([0.7, 0.9, 0.7], "is not clearly better or worse: a set (+3.3 points, 3 seeds)."),
    ],
)
def test_the_page_says_where_fine_tuning_loses(page, scratch, said):
    result = results({"fine-tune": [0.7, 0.8, 0.9][: len(scratch)], "scratch": scratch})
    assert page.verdict(result, "scratch") == f"Compared with training from scratch, fine-tuning {said}"


def test_a_single_seed_has_the_interval_of_its_test_images(page):
    assert page.method_rows(results({"scratch": [0.5]}), page.shown_top1) == [
        ["a set", "-", "-", "50.0 (40.0 to 60.0)"]
    ]
    assert page.method_rows(results({"scratch": [0.5]}), page.shown_seconds) == [["a set", "-", "-", "3"]]


def test_a_method_that_was_not_measured_is_a_dash(page):
    result = results({"fine-tune": [0.5, 0.75], "scratch": [0.25, 0.75]})
    ours, theirs = "62.5 (50.0 to 75.0)", "50.0 (25.0 to 75.0)"
    assert page.method_rows(result, page.shown_top1) == [["a set", "-", ours, theirs]]
    assert page.gain_rows(result) == [["a set", "-", "+12.5 (+0.0 to +25.0)"]]


def test_the_page_says_that_other_programs_ran_meanwhile_and_which_results_are_the_probe(page):
    quiet = " ".join(page.measured(results({method: [0.5] for method in METHODS})).split())
    assert "Other programs" not in quiet
    assert "In 0 of these 1 runs the linear probe was the best" in quiet
    busy = results({method: [0.5] for method in METHODS}, other_cores=0.8, chosen="epoch 0, the linear probe")
    assert "among them, kept 0.8 cores busy" in " ".join(page.measured(busy).split())
    assert "In 1 of these 1 runs the linear probe was the best" in " ".join(page.measured(busy).split())


def test_training_that_was_ended_early_is_said(page):
    result = results({method: [0.5] for method in METHODS})
    result["pretrained"]["planned_epochs"] = 15
    assert "(6 epochs of 15, then ended; 2 minutes; 80.0 %" in " ".join(page.measured(result).split())


@pytest.mark.slow
def test_a_tiny_run_measures_every_method_and_goes_on_where_it_ended(load, characters, tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch")
    transfer, json_file, bundle = load("transfer"), tmp_path / "transfer.json", tmp_path / "pretrained"
    monkeypatch.setattr(
        transfer, "SELECTED", ("--gflops", "0.001", "--resolution", "16", "--tolerance", "20", "--classes", "2")
    )
    monkeypatch.setattr(transfer, "PRETRAINED", ("--epochs", "8"))
    monkeypatch.setattr(transfer, "SETS", {"MNIST, 8 a class": ("mnist", 8)})
    monkeypatch.setattr(transfer, "TESTED", {"mnist": 10})
    folders = load("transfer_sets").write_set(
        {f"class {name}": groups for name, groups in load("transfer_sets").mnist(characters).items()},
        8,
        15,
        0,
        tmp_path,
    )
    command = ["transfer.py", "run", str(bundle), "--mnist", str(characters), "--stamps", str(tmp_path)]
    command += ["--seed", "0", "--threads", "1", "--json", str(json_file)]

    def call(*arguments: str) -> None:
        monkeypatch.setattr("sys.argv", list(arguments))
        transfer.main()

    call("transfer.py", "pretrain", str(bundle), "--data", str(folders.train), "--threads", "1")
    call(*command, "--method", "probe", "--method", "scratch")
    (first,) = json.loads(json_file.read_text())["runs"]
    assert (first["method"], first["chosen"], first["epochs"]) == ("probe", "epoch 0, the linear probe", 0)
    capsys.readouterr()
    call(*command)
    runs = json.loads(json_file.read_text())["runs"]
    assert runs[0] == first
    assert [run["method"] for run in runs] == list(METHODS)
    assert [run["test_images"] for run in runs] == [20] * 3
    assert runs[2]["seconds"] >= runs[1]["seconds"] / 2
    assert len(capsys.readouterr().out.splitlines()) == 2
    call(*command)
    assert json.loads(json_file.read_text())["runs"] == runs
    data = json.loads(json_file.read_text())
    json_file.write_text(json.dumps(data | {"pretrained": data["pretrained"] | {"sha256": "0"}}))
    with pytest.raises(SystemExit, match="has results of other weights"):
        call(*command)
