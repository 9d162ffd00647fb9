"""The program that measures training from random weights: the folders it draws, its clock, and what its page says."""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import regnet_deploy as rd

Image = pytest.importorskip("PIL.Image")

ROOT = Path(__file__).parents[1]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    """Import a program of benchmarks/ by its name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


@pytest.fixture
def sets(load) -> ModuleType:
    return load("training_sets")


@pytest.fixture
def page(load) -> ModuleType:
    return load("training_page")


def bars(folder: Path, name: str, train: int, val: int, classes: list[str]) -> Path:
    """Write an archive in which every image is another, and the gray value of an image is its part: 100 or 200."""
    parts: dict[str, np.ndarray] = {"classes": np.array(classes)}
    for part, count, gray in (("train", train, 100), ("val", val, 200)):
        images = np.zeros((count * len(classes), 12, 12), np.uint8)
        for number, image in enumerate(images):
            image[2:10, 4:8] = gray
            image[0, :8] = [number >> bit & 1 for bit in range(8)]
            image[1, :8] = [number >> bit & 1 for bit in range(8, 16)]
        parts[f"{part}_images"], parts[f"{part}_labels"] = images, np.tile(np.arange(len(classes)), count)
    file = folder / f"{name}.npz"
    np.savez(file, **parts)
    return file


@pytest.fixture
def archives(sets, tmp_path) -> Any:
    for theme, word in itertools.product(("animals", "town"), range(30)):
        file = tmp_path / "stamps" / theme / f"{theme}{'abcdefghijklmnopqrstuvwxyzäöüß'[word] * 4}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        stamp = Image.new("RGBA", (300, 150))
        stamp.paste((8 * word, 0, 200 * (theme == "town"), 255), (100, 50, 200, 100))
        stamp.save(file)
    mnist = bars(tmp_path, "mnist", 40, 20, [str(digit) for digit in range(10)])
    return sets.Archives(mnist, bars(tmp_path, "glyphs", 30, 20, ["A", "B", "8"]), tmp_path / "stamps")


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.png"))
    }


@pytest.mark.parametrize("kind", ["mnist", "glyphs", "stamps", "tail"])
def test_a_seed_draws_the_same_images_and_none_of_them_twice(sets, archives, tmp_path, kind):
    images = {
        "mnist": sets.ImageSet("mnist", 16, 10),
        "glyphs": sets.ImageSet("glyphs", 16, 10, classes=("upper_B", "digit_8")),
        "stamps": sets.ImageSet("stamps", 12, 10, classes=("animals", "town")),
        "tail": sets.ImageSet("mnist", 32, 10, tail=1.0),
    }[kind]
    first, again, other = (
        digests(sets.write_folders(images, archives, seed, tmp_path / name).test.parent)
        for name, seed in (("first", 3), ("again", 3), ("other", 4))
    )
    assert first == again
    assert first != other
    assert len(set(first.values())) == len(first)


def test_a_long_tail_has_counts_by_a_power_of_the_rank_and_an_even_test(sets, archives, tmp_path):
    images = sets.ImageSet("mnist", 32, 10, tail=1.0)
    folders = sets.write_folders(images, archives, 0, tmp_path / "drawn")
    counts = {each.name: len(list(each.iterdir())) for each in (folders.train / "train").iterdir()}
    assert sorted(counts.values(), reverse=True) == [round(32 / rank) for rank in range(1, 11)]
    assert {len(list(each.iterdir())) for each in folders.test.iterdir()} == {10}
    assert images.counts(tuple(counts), 0) != images.counts(tuple(counts), 1)


def test_fonts_to_validate_with_and_to_test_on_are_others_than_those_to_train_on(sets, archives, tmp_path):
    folders = sets.write_folders(sets.ImageSet("glyphs", 16, 10), archives, 0, tmp_path / "drawn")

    def fonts(folder: Path) -> set[tuple[int, int]]:
        found = set()
        for path in folder.rglob("*.png"):
            pixels = np.asarray(Image.open(path))
            number = sum(int(bit) << index for index, bit in enumerate(np.concatenate([pixels[0, :8], pixels[1, :8]])))
            found.add((int(pixels[5, 5]), number // 3))
        return found

    train, val, test = (fonts(folder) for folder in (folders.train / "train", folders.train / "val", folders.test))
    assert {gray for gray, _ in train} == {100}
    assert val <= {(200, font) for font in range(10)}
    assert test <= {(200, font) for font in range(10, 20)}
    assert len(train) > 16


def test_drawings_are_laid_on_white_and_reduced(sets, archives, tmp_path):
    images = sets.ImageSet("stamps", 12, 10, classes=("animals", "town"))
    folders = sets.write_folders(images, archives, 0, tmp_path / "drawn")
    with Image.open(next((folders.train / "train" / "animals").iterdir())) as drawing:
        assert (drawing.mode, drawing.size) == ("RGB", (sets.DRAWING, sets.DRAWING // 2))
        assert drawing.getpixel((0, 0)) == (255, 255, 255)


def test_too_few_images_are_said(sets, archives, tmp_path):
    with pytest.raises(ValueError, match="30 images are too few for 31"):
        sets.write_folders(sets.ImageSet("glyphs", 31, 5), archives, 0, tmp_path / "drawn")


def test_the_folders_are_those_of_the_issue_and_no_side_needs_a_smaller_batch_but_of_few_images(sets):
    assert len(sets.SETS) >= 8
    kinds = {images.kind for images in sets.SETS.values()}
    assert kinds == {"digits", "mnist", "glyphs", "stamps"}
    assert any(len(images.classes) == 2 for images in sets.SETS.values())
    assert any(images.tail for images in sets.SETS.values())


def test_phases_leave_the_trial_out(load, monkeypatch):
    module, now = load("training_phases"), [100.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    phases = module.Phases(98.0)
    for seconds, call in (
        (30.0, phases.leave_out_until_now),
        (1.0, phases.begin),
        (4.0, lambda: phases.epoch(0.5)),
        (5.0, lambda: phases.epoch(0.75)),
        (2.0, phases.returned),
    ):
        now[0] += seconds
        call()
    assert json.loads(phases.report(right=3)) == {
        "imports_s": 2.0,
        "setup_s": 1.0,
        "seconds": 9.0,
        "after_s": 2.0,
        "trial_s": 30.0,
        "right": 3,
        "curve": [[4.0, 0.5], [9.0, 0.75]],
    }


def test_epochs_come_nearest_to_the_time(load):
    module = load("training_phases")
    assert module.epoch_seconds([9.0]) == 9.0
    assert module.epoch_seconds([9.0, 11.0, 15.0]) == 3.0
    assert [module.fitted_epochs(60, each) for each in (7.0, 8.0, 45.0, 500.0)] == [9, 8, 1, 1]
    assert [module.trial_epochs(images) for images in (100, 2000, 19_999, 20_000)] == [21, 2, 2, 1]


def test_the_old_defaults_are_the_recipe_of_the_paper_whatever_the_defaults_are(load):
    pytest.importorskip("torch")
    ours = load("training_ours")
    recipe = ours.recipe_of(ours.OLD, 40, 1000, 7, mirrored=False)
    assert recipe == rd.Recipe(
        epochs=40,
        batch_size=128,
        lr=0.1,
        weight_decay=5e-5,
        warmup_epochs=5,
        crop_area=0.08,
        flip=True,
        lighting=0.1,
        label_smoothing=0.0,
        precise_bn_images=8192,
        seed=7,
        fine_tune=False,
    )
    assert recipe.to_json()["schedule"] == "cosine, half a period, set once an epoch"
    assert not any((recipe.ema_decay, recipe.patience, recipe.probe, recipe.lr_probe, recipe.flip_probe))
    small = ours.recipe_of(ours.OLD, 10, 100, 0, mirrored=False)
    assert (small.batch_size, small.warmup_epochs) == (25, 2)


@pytest.mark.parametrize("mirrored", [True, False])
def test_tuned_settings_mirror_no_characters(load, mirrored):
    pytest.importorskip("torch")
    ours = load("training_ours")
    for way in ours.TUNED:
        recipe = ours.recipe_of(way, 10, 1000, 0, mirrored)
        assert recipe.flip is mirrored
        assert recipe.fitted(1000).batch_size == ours.TUNED[way]["batch_size"]


def test_each_time_another_side_is_first_and_what_is_measured_is_not_measured_again(load):
    pytest.importorskip("torch")
    planned = load("training").planned
    assert list(planned(["p", "q"], [0, 1], ["x", "y", "z"], [])) == [
        ("p", 0, ["x", "y", "z"]),
        ("q", 0, ["y", "z", "x"]),
        ("p", 1, ["z", "x", "y"]),
        ("q", 1, ["x", "y", "z"]),
    ]
    rows = [{"set": "p", "seed": 0, "side": side} for side in "xyz"] + [{"set": "q", "seed": 0, "side": "z"}]
    assert list(planned(["p", "q"], [0], ["x", "y", "z"], rows)) == [("q", 0, ["y", "x"])]


def test_results_of_another_time_or_machine_are_not_added_to(load, tmp_path):
    pytest.importorskip("torch")
    module = load("training")
    setting = module.Setting(None, Path("python"), Path("train.py"), 1, 60.0)
    row = {"budget_s": 60.0, "threads": 1, "machine": {"cpu": "A CPU"}}
    module.ensure_alike([row], setting, {"cpu": "A CPU"}, tmp_path)
    for changed in ({"budget_s": 20.0}, {"threads": 2}, {"machine": {"cpu": "Another"}}):
        with pytest.raises(SystemExit, match="give another file with --json"):
            module.ensure_alike([row | changed], setting, {"cpu": "A CPU"}, tmp_path)


def test_a_process_that_fails_is_said_with_its_last_lines(load, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    module = load("training")
    program = tmp_path / "peer.py"
    program.write_text("import sys\nprint('last words')\nsys.exit('no images')")
    monkeypatch.setattr(module, "program_of", lambda side, setting: [module.sys.executable, str(program)])
    setting = module.Setting(None, Path("python"), Path("train.py"), 1, 1.0)
    with pytest.raises(RuntimeError, match="ended with 1:\nlast words\n\nno images"):
        module.measured({"side": "yolo", "seconds": 1.0, "out": str(tmp_path / "out")}, setting)


def rows_of(right: dict[str, list[int]], **changes: Any) -> list[dict[str, Any]]:
    """Return the runs of one set, with these numbers of 100 test images right of each side, by seed."""
    row = {"set": "a set, of images", "seconds": 60.0, "epochs": 9, "test_images": 100, "train_images": 50}
    row |= {"val_images": 10, "classes": 2, "resolution": 32, "budget_s": 60.0, "target_s": 60.0, "threads": 1}
    row |= {"imports_s": 2.0, "setup_s": 1.0, "after_s": 0.5, "curve": [[10.0, 0.5], [20.0, 0.9]]}
    row |= {"network": "RegNetX-4MF", "other_cores": 0.0, "version": "1", "limit": "minutes", "val_top1": 0.5}
    row["machine"] = {"cpu": "A CPU", "cores": 2, "system": "Linux", "python": "3.11", "versions": {"torch": "2"}}
    return [
        {**row, "side": side, "seed": seed, "right": value, **changes}
        for side, values in right.items()
        for seed, value in enumerate(values)
    ]


def test_the_page_says_where_the_default_is_not_ahead(page):
    rows = rows_of({"default": [60, 70], "yolo": [50, 60], "timm": [70, 70]})
    assert page.verdict(rows, "yolo", "ultralytics") == "`train` is ahead of ultralytics on 1 of 1 folders."
    assert page.verdict(rows, "timm", "timm") == (
        "`train` is ahead of timm on 0 of 1 folders; not on a set with of images (-5.0)."
    )
    assert page.verdict(rows_of({"default": [60, 70], "timm": [65, 50]}), "timm", "timm") == (
        "`train` is ahead of timm on 1 of 1 folders; not in every seed on a set with of images (1 of 2)."
    )


@pytest.mark.parametrize(("right", "said"), [([61, 70], "on 1 of 1 folders."), ([65, 72], "on 0 of 1 folders; not on")])
def test_the_page_says_where_a_tuned_setting_is_more_than_a_point_better(page, right, said):
    assert said in page.tuned_verdict(rows_of({"default": [60, 70], "tuned A": right}))


def test_the_tuned_setting_is_chosen_on_validation_images_among_those_with_all_seeds(page):
    rows = rows_of({"default": [60, 70], "tuned A": [90, 90]}, val_top1=0.5)
    rows += rows_of({"tuned B": [10, 10]}, val_top1=0.6) + rows_of({"tuned C": [95]}, val_top1=0.99)
    assert page.tuned_of(rows, "a set, of images") == "tuned B"
    assert page.by_side(rows, page.shares).splitlines()[-1] == (
        "| a set, of images | 65.0 (60.0 to 70.0) | - | - | - | 10.0 (10.0 to 10.0) |"
    )


def test_the_time_to_a_target_says_which_runs_reach_it(page):
    rows = rows_of({"default": [60, 70]})
    assert page.reached(rows, 0.5) == "10.0 (10.0 to 10.0)"
    assert page.reached(rows, 0.95) == "not reached"
    rows[0]["curve"] = [[5.0, 0.96]]
    assert page.reached(rows, 0.95) == "5.0, 1 of 2 seeds"


def test_a_run_that_two_files_have_counts_once(page, tmp_path):
    rows = rows_of({"default": [60]}) + rows_of({"default": [90]})
    file = tmp_path / "both.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [row["right"] for row in page.read_rows(file)] == [60]


def test_the_page_says_what_limited_the_runs_and_what_ran_meanwhile(page):
    rows = rows_of({"default": [60]}, limit="epochs")
    assert page.limit_text(rows) == "as many epochs as take the time"
    assert page.limit_text(rows_of({"default": [60]})) == "the time"
    assert "Other programs" not in page.machine_text(rows)
    assert "kept 0.8 cores busy" in page.machine_text(rows_of({"default": [60]}, other_cores=0.8))


def test_the_page_is_written_from_the_results(page):
    results = page.RESULT.exists()
    assert page.PAGE.exists() is results
    assert not results or page.PAGE.read_text(encoding="utf-8") == page.page()


def test_a_page_of_one_run_has_every_part(page, tmp_path, monkeypatch):
    rows = rows_of({"default": [60], "yolo": [50], "tuned A": [61]})
    rows = [{**row, "set": "digits, 100 a class"} for row in rows]
    monkeypatch.setattr(page, "read_rows", lambda: rows)
    monkeypatch.setattr(page, "SPEED", tmp_path / "none")
    text = page.page()
    assert "| digits, 100 a class | 60.0 | - | 50.0 | - | 61.0 |" in text
    assert "| digits, 100 a class | 60 s, 9 | - | 60 s, 9 | - | 60 s, 9 |" in text
    assert "| digits, 100 a class: 95 % | not reached | - | not reached | - | not reached |" in text
    assert "| `train` | 2.0 | 1.0 | 0.5 |" in text
    assert "Images a second" not in text


def speeds(**rates: list[float]) -> list[dict[str, Any]]:
    """Return the rows of one resolution, with these images a second of each side by turn."""
    row = {"resolution": 64, "batch": 128, "images": 2560, "network": "RegNetY-4MF", "threads": 1, "before_s": 1.5}
    names = {"ours": "ours", "timm": "timm", "last": "timm, channels last"}
    return [
        {**row, "side": names[side], "round": turn, "rates": [rate, rate], "other_cores": 0.0}
        for side, values in rates.items()
        for turn, rate in enumerate(values)
    ]


def test_the_faster_way_of_timm_counts(load, page):
    rows = speeds(ours=[300.0, 330.0], timm=[200.0, 220.0], last=[180.0, 100.0])
    (summed,) = load("training_speed").summary(rows)
    assert summed == {
        "resolution": 64,
        "images_per_s": {"ours": 315.0, "timm": 210.0, "timm, channels last": 140.0},
        "faster": "timm",
        "ratio": {"value": 1.5, "low": 1.5, "high": 1.5},
    }
    part = page.speed_parts({"rows": rows, "summary": [summed]})
    assert "| RegNetY-4MF, 64 pixels, batch 128 | 315 | 210 (timm) | 1.50 (1.50 to 1.50) |" in part[-1]
    assert "1.5 s for 2,560 files" in part[1]


def test_the_speed_of_training_is_measured_on_files_that_differ(load, tmp_path):
    load("training_speed").write_images(tmp_path, 130, 24)
    files = list(tmp_path.rglob("*.jpg"))
    assert len(files) == 134
    assert len({path.read_bytes() for path in files}) == 134
    with Image.open(files[0]) as image:
        assert image.size == (32, 24)


@pytest.mark.slow
def test_a_tiny_run_of_ours_is_measured_once(load, sets, archives, tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch")
    module, file = load("training"), tmp_path / "training.jsonl"
    monkeypatch.setitem(sets.SETS, "MNIST, 100 a class", sets.ImageSet("mnist", 12, 5, resolution=16))
    monkeypatch.setattr(module, "BUDGETS", {16: 0.001})
    command = ["training.py", "--mnist", str(archives.mnist), "--glyphs", str(archives.glyphs)]
    command += ["--stamps", str(archives.stamps), "--peers", "none", "--timm", "none", "--json", str(file)]
    command += ["--set", "MNIST, 100 a class", "--seed", "1", "--seconds", "1"]
    monkeypatch.setattr("sys.argv", [*command, "--only", "old default", "--only", "default"])
    module.main()
    rows = {row["side"]: row for row in map(json.loads, file.read_text().splitlines())}
    assert set(rows) == {"default", "old default"}
    for row in rows.values():
        assert (row["train_images"], row["val_images"], row["test_images"], row["classes"]) == (120, 30, 50, 10)
        assert len(row["curve"]) == row["epochs"]
        assert row["process_s"] > row["imports_s"] + row["seconds"]
        assert 0 < row["curve"][-1][0] <= row["seconds"]
    assert rows["old default"]["recipe"]["batch_size"] == 30
    capsys.readouterr()
    module.main()
    assert capsys.readouterr().out == ""
    monkeypatch.setattr("sys.argv", [*command, "--only", "yolo"])
    with pytest.raises(FileNotFoundError):
        module.main()
