"""Ranges of the values of a recipe as text, and the recipes that are drawn from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from regnet_deploy.errors import UsageError
from regnet_deploy.sweeping.recipe_space import (
    check_space,
    default_space,
    draw_recipes,
    parse_space,
    read_space,
    recipe_with,
)
from regnet_deploy.training.recipe import Recipe

TEXTS = {
    "lr": "0.02:0.8:log",
    "crop_area": "0.1:0.9",
    "batch_size": "16:64",
    "label_smoothing": "0,0.1",
    "flip": "true,false",
}


def test_every_range_is_drawn_evenly_and_the_first_recipe_is_the_one_that_train_uses() -> None:
    space = parse_space(TEXTS)
    drawn = draw_recipes(space, 41, seed=3)
    assert drawn[0] == {}
    assert all(each.keys() == TEXTS.keys() for each in drawn[1:])
    areas = sorted(each["crop_area"] for each in drawn[1:])
    assert all(0.1 + 0.02 * i <= area <= 0.1 + 0.02 * (i + 1) + 1e-4 for i, area in enumerate(areas))
    rates = [each["lr"] for each in drawn[1:]]
    assert sum(rate < 0.1265 for rate in rates) == 20  # half of them are below the geometric mean
    assert all(isinstance(each["batch_size"], int) for each in drawn[1:])
    assert [sum(each["flip"] is value for each in drawn[1:]) for value in (True, False)] == [20, 20]
    assert [sum(each["label_smoothing"] == value for each in drawn[1:]) for value in (0.0, 0.1)] == [20, 20]


def test_the_seed_decides_the_draws() -> None:
    space = parse_space(TEXTS)
    assert draw_recipes(space, 5, seed=1) == draw_recipes(space, 5, seed=1)
    assert draw_recipes(space, 5, seed=1) != draw_recipes(space, 5, seed=2)


def test_the_default_space_is_around_the_rate_of_train() -> None:
    base = Recipe(lr=0.2)
    space = default_space(base)
    assert list(space) == ["lr", "weight_decay", "crop_area", "label_smoothing"]
    assert (space["lr"].low, space["lr"].high, space["lr"].log) == (0.025, 0.8, True)
    check_space(space, base)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("learning", "1:2", r"a recipe has no 'learning'.*it has batch_size, lr"),
        ("lr_", "1:2", r"\(did you mean lr\?\)"),
        ("epochs", "1:2", "epochs is the same for all recipes"),
        ("minutes", "1:2", "minutes is the same for all recipes"),
        ("lr", "1", None),
        ("lr", "2:1", "LOW has to be below HIGH"),
        ("lr", "0:1:log", "above 0 with log"),
        ("lr", "1:2:lin", "give LOW:HIGH"),
        ("lr", "a:b", "lr 'a': give a number"),
        ("lr", "nan:1", "lr 'nan': give a number"),
        ("batch_size", "1.5,2", "batch_size '1.5': give a whole number"),
        ("flip", "true:false", "give LOW:HIGH, LOW:HIGH:log, or values"),
        ("flip", "yes", "flip 'yes': give true or false"),
    ],
)
def test_wrong_ranges_are_one_line(name: str, text: str, said: str | None) -> None:
    if said is None:
        assert parse_space({name: text})[name].choices == (1.0,)
        return
    with pytest.raises(UsageError, match=said):
        parse_space({name: text})


def test_everything_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(UsageError, match=r"lr 'x'.*crop_area '2:1'"):
        parse_space({"lr": "x", "crop_area": "2:1"})
    with pytest.raises(UsageError, match=r"crop_area 1\.5: the crop area must be .*label_smoothing 1\.0: the label"):
        check_space(parse_space({"crop_area": "0.1:1.5", "label_smoothing": "0,1"}), Recipe())


def test_a_file_has_the_same_ranges(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text("lr: 1:30\nlabel_smoothing: [0, 0.1]\nflip: [true, false]\n")
    space = read_space(path)
    assert (space["lr"].low, space["lr"].high) == (1.0, 30.0)  # no number of base 60
    assert space["label_smoothing"].choices == (0.0, 0.1)
    assert space["flip"].choices == (True, False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lr: [", "is not YAML"),
        ("- lr", "has to be a mapping"),
        ("", "has to be a mapping"),
        ("lr: {low: 1}", r"space\.yaml: lr 'low': give a number"),
        ("1: 2", "a recipe has no '1'"),
    ],
)
def test_a_file_of_another_kind_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=said):
        read_space(path)
    with pytest.raises(UsageError, match="cannot read"):
        read_space(tmp_path / "none.yaml")


def test_a_rate_that_is_drawn_is_not_changed_by_trials_of_rates() -> None:
    base = Recipe(fine_tune=True, probe=True, flip_probe=True, lr_probe=True)
    changed = recipe_with(base, {"lr": 0.5, "flip": False})
    assert (changed.lr, changed.lr_probe, changed.flip, changed.flip_probe) == (0.5, False, False, False)
    assert recipe_with(base, {"weight_decay": 0.1}).lr_probe
