"""Recipes as YAML: the shipped ones hold, and all that is wrong with a file is said at once, with its lines."""

from pathlib import Path

import pytest

from regnet_deploy.errors import UsageError
from regnet_deploy.space.published import data_folder
from regnet_deploy.training.auto_recipe import scratch_recipe
from regnet_deploy.training.fine_tuning import fine_tuning_recipe
from regnet_deploy.training.recipe import Recipe
from regnet_deploy.training.recipe_file import NAMES, NamedRecipe, load_recipe, read_recipe, shipped_recipes


def read(text: str) -> NamedRecipe:
    return read_recipe(text, "my.yaml", "my.yaml")


def test_every_shipped_file_is_listed_and_says_what_it_is_and_where_it_is_from() -> None:
    assert sorted(path.stem for path in (data_folder() / "recipes").iterdir()) == sorted(NAMES)
    for recipe in shipped_recipes():
        assert recipe.name in NAMES
        assert len(recipe.summary) <= 56  # a line of the table
        assert recipe.source
        assert recipe.measured
        assert read_recipe(recipe.text, recipe.name, "") == recipe


def test_paper_is_the_recipe_of_the_defaults() -> None:
    assert load_recipe("paper").resolved() == Recipe()


def test_low_compute_is_that_of_sweeps() -> None:
    assert load_recipe("low-compute").resolved() == Recipe(epochs=10, lr=0.05, warmup_epochs=0)


@pytest.mark.parametrize("name", ["fast", "strong"])
def test_the_others_can_be_fitted_to_few_and_many_images(name: str) -> None:
    for images in (8, 1000, 1_281_167):
        fitted = load_recipe(name).with_values({"epochs": 3}).resolved()
        assert isinstance(fitted, Recipe)
        assert fitted.fitted(images).epochs == 3


def test_fast_trains_on_128_to_160_pixels_for_224() -> None:
    recipe = load_recipe("fast").resolved()
    assert isinstance(recipe, Recipe)
    assert (recipe.side(0, 224), recipe.side(39, 224)) == (128, 160)


def test_strong_is_torchvisions_where_both_say_something() -> None:
    recipe = load_recipe("strong").resolved()
    assert isinstance(recipe, Recipe)
    fitted = Recipe(**{**vars(recipe), "batch_size": 1024}).fitted(1_281_167)
    assert fitted.peak_rate == 0.5
    assert fitted.side(0, 224) == 176
    assert fitted.warmup_epochs == 5
    every_32 = 1 - (1 - 0.99998) * 8 * 128 * 32 / 600  # train.py: adjusts the decay by images and epochs
    assert fitted.ema_decay**32 == pytest.approx(every_32, abs=5e-5)


def test_recipes_by_rule_are_values_for_the_rules() -> None:
    assert load_recipe("auto").resolved() == {}
    assert load_recipe("fine-tune").resolved() == {"fine_tune": True}
    assert load_recipe("fine-tune").with_values({"epochs": 7}).resolved() == {"fine_tune": True, "epochs": 7}


def test_values_that_are_given_win_and_are_named() -> None:
    recipe = load_recipe("fast").with_values({"epochs": 50, "lr": 0.1, "seed": 3, "flip": None})
    assert recipe.title == "fast with other epochs, seed"
    resolved = recipe.resolved()
    assert isinstance(resolved, Recipe)
    assert (resolved.epochs, resolved.seed, resolved.flip) == (50, 3, True)
    assert load_recipe("fast").title == "fast"


def test_a_length_that_is_given_takes_the_place_of_that_of_the_file() -> None:
    recipe = read("values: {steps: 500, lr: 0.2}").with_values({"epochs": 20}).resolved()
    assert recipe == Recipe(epochs=20, lr=0.2)
    by_steps = load_recipe("fast").with_values({"steps": 45}).resolved()
    assert isinstance(by_steps, Recipe)
    assert by_steps.fitted(128 * 10).epochs == 5


@pytest.mark.parametrize("name", ["auto", "fine-tune"])
def test_values_win_over_rules(name: str) -> None:
    text = load_recipe(name).text.replace("values: {}", "values: {ema_window: 0.5, epochs: 10, label_smoothing: 0.1}")
    given = read(text).resolved()
    assert isinstance(given, dict)
    planned = fine_tuning_recipe(given, 100) if name == "fine-tune" else scratch_recipe(given, 100)
    assert (planned.epochs, planned.label_smoothing) == (10, 0.1)
    assert planned.fitted(100).ema_decay == pytest.approx(1 - 1 / (0.5 * 10 * (100 // planned.batch)), abs=1e-6)


def test_numbers_may_be_written_as_in_python() -> None:
    recipe = read("values: {lr: 1e-3, weight_decay: 5e-5, epochs: 3, mixup: 1}").resolved()
    assert recipe == Recipe(lr=0.001, weight_decay=5e-5, epochs=3, mixup=1)


def test_all_that_is_wrong_is_said_at_once_with_its_line() -> None:
    with pytest.raises(UsageError) as caught:
        read(
            "descripton: x\n"
            "rule: fine-tuning\n"
            "lr: 0.1\n"
            "values:\n"
            "  epoch: 3\n"
            "  lr: fast\n"
            "  flip: 1\n"
            "  label_smoothing: 1.5\n"
            "  optimizer: adam\n"
            "  batch_size: [8]\n"
        )
    said = str(caught.value)
    assert said.startswith("my.yaml: line 1: a recipe file has no key 'descripton' (did you mean description?)")
    for part in (
        "line 2: rule must be auto or fine-tune, got 'fine-tuning' (did you mean fine-tune?)",
        "line 3: a recipe file has no key 'lr' (it belongs under values:)",
        "line 5: a recipe has no value 'epoch' (did you mean epochs?)",
        "line 6: lr must be a number, got 'fast' (str)",
        "line 7: flip must be True or False, got 1 (int)",
        "line 8: the label smoothing must be 0 or more and below 1, got 1.5",
        "line 9: the optimizer must be sgd or adamw, got adam",
        "line 10: batch_size must be one value",
    ):
        assert part in said
    assert "\n" not in said


def test_contradictions_name_both_lines() -> None:
    with pytest.raises(
        UsageError, match=r"my.yaml: lines 2 and 3: warm-up epochs must be 0 to 4, got 5; lines .*window"
    ):
        read("values:\n  epochs: 5\n  warmup_epochs: 5\n  ema_window: 0.1\n  ema_decay: 0.9\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must have keys with values"),
        ("- 1", "must have keys with values"),
        ("values: 3", "line 1: values must be names with values"),
        ("values: {epochs: 3, epochs: 4}", "epochs is there 2 times"),
        ("values: {epochs: yes}", "epochs must be a whole number, got True"),
        ("values: {epochs: 3, minutes: 1}", "epochs and minutes say how long the run is: set one of them"),
        (f"values: {{lr: {'9' * 400}}}", "the learning rate must be above 0, got 999"),
        (f"values: {{epochs: {'9' * 400}}}", "epochs must be 1 or more, got 999"),
        ("values: {lr: .nan}", "learning rate must be above 0, got nan"),
        ("values: {epochs: 2.5}", "epochs must be a whole number, got 2.5"),
        ("values: {epochs: 2026-13-45}", "epochs must be a whole number, got '2026-13-45'"),
        ("values: {? [1]: 3}", "a recipe has no value 'a list or mapping'"),
        ("values: {epochs: 3", "my.yaml line 1 is not the YAML of a recipe"),
        ("a: &a [1]\nvalues: *a", "line 2 is not the YAML of a recipe: aliases"),
        ("a: " + "[" * 2000, "nested too deeply"),
        ("values: {seed: !!python/object:os.system {}}", "seed must be one value"),
        ("description: [a]", "line 1: description must be one value"),
        ("description: 3", "description must be a text, got 3"),
        ("\x00", "is not the YAML of a recipe"),
        ("x" * 50_001, "50,001 characters"),
    ],
)
def test_what_is_no_recipe_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(text)
    assert said in str(caught.value)


def test_a_value_that_is_a_list_is_said_once() -> None:
    with pytest.raises(UsageError) as caught:
        read("values: {mixup: [1]}")
    assert str(caught.value) == "my.yaml: line 1: mixup must be one value"


def test_names_and_files_that_do_not_exist_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no recipe 'stronk' \(did you mean strong\?\): give a name"):
        load_recipe("stronk")
    with pytest.raises(UsageError, match=r"cannot read the recipe none.yaml: No such file"):
        load_recipe("none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"description: \xff")
    with pytest.raises(UsageError, match="it is no UTF-8 text"):
        load_recipe(tmp_path / "latin.yaml")


def test_a_file_is_a_recipe_under_its_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(load_recipe("strong").text.replace("epochs: 600", "epochs: 60"))
    recipe = load_recipe(path)
    assert (recipe.name, recipe.values["epochs"]) == ("mine.yaml", 60)
