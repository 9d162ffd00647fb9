"""The search of a recipe: rounds of recipes for one network, stored like a sweep, and continued where it ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from regnet_deploy.bundle import Bundle, Manifest, create_bundle
from regnet_deploy.bundle.manifest import Architecture
from regnet_deploy.errors import UsageError
from regnet_deploy.images.preprocessing import default_preprocessing
from regnet_deploy.models.anynet import AnyNet
from regnet_deploy.models.weights import weights_to_bytes
from regnet_deploy.populations.reader import read_trials
from regnet_deploy.populations.store import DIVERGED, DONE, Trial, TrialOutcome, read_store
from regnet_deploy.sweeping.recipe_search import RecipeSearch, search_recipe
from regnet_deploy.sweeping.recipe_space import parse_space
from regnet_deploy.sweeping.trial import trial_recipe
from regnet_deploy.training.recipe import Recipe

SPACE = parse_space({"lr": "0.02:0.5:log", "label_smoothing": "0,0.1"})


@pytest.fixture
def bundle(trials: list[Trial], tmp_path: Path) -> Bundle:
    architecture = Architecture.of(trials[0].network, name="tiny", classes=3, resolution=16)
    return create_bundle(tmp_path / "b", Manifest(architecture=architecture, preprocessing=default_preprocessing(16)))


class ByValue:
    """An executor that finds recipes with a high rate best."""

    def __init__(self, stop_after: int | None = None, diverges_above: float = 9.0) -> None:
        self.ran: list[tuple[int, int]] = []
        self.stop_after, self.diverges_above = stop_after, diverges_above

    def __call__(self, trials: Any, images: Any, recipe: Any, execution: Any, on_step: Any) -> Iterator[Any]:
        for trial in trials:
            if len(self.ran) == self.stop_after:
                raise KeyboardInterrupt
            self.ran.append((trial.drawn["candidate"], trial.epochs))
            rate = trial_recipe(trial, recipe).lr
            test = None if images.test is None else {"top1": 0.5, "images": 10, "digest": images.test_digest}
            done = TrialOutcome(DONE, round(60 - 50 * rate, 6), test=test)
            yield trial, TrialOutcome(DIVERGED) if rate > self.diverges_above else done


@pytest.fixture
def search(bundle: Bundle, options: Any, recorded_progress: Any) -> Callable[..., RecipeSearch]:
    def run(executor: Any = None, n: int = 6, given: Any = None, space: Any = SPACE, **changes: Any) -> RecipeSearch:
        asked = {"epochs": 3, "batch_size": 8, "lr": 0.1} if given is None else given
        chosen = options(**({} if executor is None else {"executor": executor}), **changes)
        return search_recipe(bundle, asked, space, n, chosen, recorded_progress)

    return run


def test_the_best_third_has_all_epochs_and_the_best_of_them_wins(search: Any, recorded_progress: Any) -> None:
    executor = ByValue()
    found = search(executor)
    assert [epochs for _, epochs in executor.ran] == [1] * 6 + [3] * 2
    rates = [each.values.get("lr", 0.1) for each in found.tried]
    assert rates[0] == max(rates)
    assert found.best_values == {"lr": rates[0], "label_smoothing": found.tried[0].values["label_smoothing"]}
    assert not found.unseen
    assert "6 recipes, the first of them that of `train`: 6 for 1 epoch, 2 for 3 epochs" in recorded_progress.messages


def test_the_recipe_of_train_can_win(search: Any) -> None:
    found = search(ByValue(), space=parse_space({"lr": "0.01:0.05"}))
    assert (found.tried[0].values, found.best_values) == ({}, {"lr": 0.1})


def test_interrupted_anywhere_it_continues_to_the_same_end(search: Any, tmp_path: Path) -> None:
    wanted = search(ByValue())
    for stop in (0, 1, 6, 7):
        (tmp_path / "a.sweep").unlink()
        first, second = ByValue(stop), ByValue()
        with pytest.raises(KeyboardInterrupt):
            search(first)
        assert search(second) == wanted
        assert len(first.ran) + len(second.ran) == 8


def test_another_search_is_another_store(search: Any) -> None:
    search(ByValue())
    with pytest.raises(UsageError, match=r"varied lr is .*0\.02:0\.4:log.* and was .*0\.02:0\.5:log"):
        search(ByValue(), space=parse_space({"lr": "0.02:0.4:log", "label_smoothing": "0,0.1"}))
    with pytest.raises(UsageError, match="recipes is 5 and was 6"):
        search(ByValue(), n=5)


def test_the_store_is_a_population_that_analyze_reads(search: Any, tmp_path: Path) -> None:
    search(ByValue())
    trials = read_trials(tmp_path / "a.sweep")
    assert len(trials) == 2  # those of the last round
    assert {"lr", "label_smoothing"} <= set(trials.drawn)
    with read_store(tmp_path / "a.sweep") as store:
        assert "lr" not in store.trials()[0].drawn


def test_values_that_no_recipe_can_have_are_refused_before_any_training(search: Any) -> None:
    executor = ByValue()
    with pytest.raises(UsageError, match=r"crop_area 2\.0: the crop area must be above 0"):
        search(executor, space=parse_space({"crop_area": "0.5,2"}))
    assert executor.ran == []


def test_only_the_last_round_is_measured_on_images_that_no_choice_saw(search: Any) -> None:
    found = search(ByValue(), test_split=0.2)
    assert found.unseen
    assert [each.test is not None for each in found.tried] == [True, True, False, False, False, False]
    assert (found.tried[0].test.error, found.tried[0].test.images) == (50.0, 10)


def test_it_trains_networks_with_the_recipes_that_were_drawn(search: Any, tmp_path: Path) -> None:
    found = search(n=3, given={"epochs": 1, "batch_size": 8, "lr": 0.1}, space=parse_space({"lr": "0.01,2"}))
    with read_store(tmp_path / "a.sweep") as store:
        outcomes, trials = store.outcomes(), store.trials()
    rates = {trial.drawn.get("lr", 0.1): outcomes[trial.number].history[0]["lr"] for trial in trials}
    assert rates == {lr: pytest.approx(lr * 8 / 128) for lr in (0.1, 0.01, 2.0)}
    assert len(found.tried) == 3


def test_a_network_with_weights_is_fine_tuned_from_them(
    trials: list[Trial], tmp_path: Path, options: Any, recorded_progress: Any
) -> None:
    network = trials[0].network
    architecture = Architecture.of(network, name="tiny", classes=5, resolution=16)
    parts = Manifest(architecture=architecture, preprocessing=default_preprocessing(16), labels=tuple("abcde"))
    weights = weights_to_bytes(AnyNet(network, 5, seed=4).state_dict())
    bundle = create_bundle(tmp_path / "other", parts, {"weights.safetensors": weights})
    given = {"epochs": 2, "batch_size": 8}
    found = search_recipe(bundle, given, parse_space({"weight_decay": "0,0.001"}), 2, options(), recorded_progress)
    assert found.base.fine_tune
    assert found.base.probe
    assert all(each.errors for each in found.tried)
    assert "lr_probe" not in found.best_values
    with read_store(tmp_path / "a.sweep") as store:
        assert store.identity["start"] == bundle.files["weights.safetensors"].sha256


def test_a_shorter_training_has_a_shorter_warm_up_and_patience(trials: list[Trial]) -> None:
    recipe = Recipe(epochs=30, warmup_steps=60, patience=12)
    shorter = trial_recipe(replace(trials[0], epochs=10, drawn={"lr": 0.5, "candidate": 1}), recipe)
    assert (shorter.epochs, shorter.warmup_steps, shorter.patience, shorter.lr) == (10, 20, 4, 0.5)
    assert trial_recipe(replace(trials[0], epochs=30), recipe) == recipe
    whole = trial_recipe(replace(trials[0], epochs=2), Recipe(epochs=30, warmup_epochs=5))
    assert whole.warmup_epochs == 0
