"""Candidates in rounds: the better third goes on, an interrupted halving too."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regnet_deploy.bundle.training import Execution
from regnet_deploy.errors import DataError, UsageError
from regnet_deploy.populations.store import DIVERGED, DONE, FAILED, Trial, TrialOutcome, read_store
from regnet_deploy.progress import NoProgress
from regnet_deploy.selection.budget import Budget
from regnet_deploy.selection.selection import select
from regnet_deploy.sweeping.successive_halving import (
    FACTOR,
    HalvingResult,
    rounds,
    select_by_training,
    successive_halving,
)
from regnet_deploy.sweeping.sweep import SweepOptions
from regnet_deploy.sweeping.trial import run_locally
from regnet_deploy.training.recipe import Recipe


@pytest.mark.parametrize(
    ("candidates", "epochs", "wanted"),
    [
        (1, 9, [(1, 9)]),
        (3, 9, [(3, 9)]),
        (4, 9, [(4, 3), (2, 9)]),
        (9, 9, [(9, 3), (3, 9)]),
        (10, 9, [(10, 1), (4, 3), (2, 9)]),
        (27, 100, [(27, 11), (9, 33), (3, 100)]),
        (500, 10, [(500, 1), (7, 3), (3, 10)]),
        (9, 1, [(9, 1)]),
    ],
)
def test_rounds(candidates: int, epochs: int, wanted: list[tuple[int, int]]) -> None:
    assert rounds(candidates, epochs) == wanted


@given(st.integers(1, 500), st.integers(1, 300))
def test_rounds_shrink_and_lengthen_to_all_epochs(candidates: int, epochs: int) -> None:
    made = rounds(candidates, epochs)
    assert made[0][0] == candidates
    assert made[-1][0] <= FACTOR or len(made) == 1
    assert made[-1][1] == epochs
    assert all(a[0] > b[0] and 1 <= a[1] < b[1] for a, b in itertools.pairwise(made))


class ByCandidate:
    """An executor whose errors are written down: by candidate, or by candidate and epochs."""

    def __init__(self, errors: dict[Any, float | str], stop_after: int | None = None) -> None:
        self.errors, self.stop_after = errors, stop_after
        self.ran: list[tuple[int, int]] = []

    def __call__(self, trials: Any, images: Any, recipe: Any, execution: Any, on_step: Any) -> Iterator[Any]:
        for trial in trials:
            if len(self.ran) == self.stop_after:
                raise KeyboardInterrupt
            candidate = int(trial.drawn["candidate"])
            self.ran.append((candidate, trial.epochs))
            found = self.errors.get((candidate, trial.epochs), self.errors.get(candidate, 50.0))
            yield trial, TrialOutcome(found) if isinstance(found, str) else TrialOutcome(DONE, found)


@pytest.fixture
def call(trials: list[Trial], options: Any, recorded_progress: Any) -> Callable[..., list[HalvingResult]]:
    def run(executor: Any, epochs: int = 3, n: int = 6) -> list[HalvingResult]:
        longer = Recipe(epochs=epochs, batch_size=8, warmup_epochs=0)
        networks = [trial.network for trial in trials[:n]]
        return successive_halving(networks, 16, options(executor=executor, recipe=longer), recorded_progress)

    return run


def test_the_better_third_continues_and_the_best_of_the_last_round_wins(call: Any, recorded_progress: Any) -> None:
    executor = ByCandidate({4: 20.0, 1: 30.0, (4, 3): 25.0, (1, 3): 15.0})
    ranked = call(executor)
    assert executor.ran == [*((c, 1) for c in range(6)), (4, 3), (1, 3)]
    assert [each.candidate for each in ranked] == [1, 4, 0, 2, 3, 5]
    assert ranked[0].errors == {1: 30.0, 3: 15.0}
    assert ranked[2].errors == {1: 50.0}
    assert [line for line in recorded_progress.messages if "candidates" in line] == [
        "6 candidates, 1 epoch each",
        "2 candidates, 3 epochs each",
    ]


def test_ties_keep_the_order(call: Any) -> None:
    executor = ByCandidate({})
    assert [each.candidate for each in call(executor)] == list(range(6))
    assert executor.ran[6:] == [(0, 3), (1, 3)]


def test_those_that_diverged_or_failed_are_last_of_their_round(call: Any) -> None:
    executor = ByCandidate({0: DIVERGED, 1: FAILED, 5: 10.0, 2: 20.0, (5, 3): DIVERGED})
    ranked = call(executor)
    assert executor.ran[6:] == [(5, 3), (2, 3)]
    assert [each.candidate for each in ranked] == [2, 5, 3, 4, 0, 1]
    assert ranked[1].errors == {1: 10.0}
    assert ranked[-1].errors == {}


def test_interrupted_anywhere_it_continues_to_the_same_end(call: Any, tmp_path: Path) -> None:
    errors = {c: 60.0 - 7 * (c % 4) for c in range(6)}
    wanted = call(ByCandidate(errors))
    for stop in (0, 1, 5, 6, 7):
        (tmp_path / "a.sweep").unlink()
        first, second = ByCandidate(errors, stop), ByCandidate(errors)
        with pytest.raises(KeyboardInterrupt):
            call(first)
        assert call(second) == wanted
        assert len(first.ran) + len(second.ran) == 8
    assert call(again := ByCandidate(errors)) == wanted
    assert again.ran == []


def test_other_candidates_are_another_store(call: Any) -> None:
    call(ByCandidate({}))
    with pytest.raises(UsageError, match="tried is 5 and was 6"):
        call(ByCandidate({}), n=5)


def test_when_none_can_be_trained_it_says_so(call: Any) -> None:
    with pytest.raises(UsageError, match="none of the 2 candidates could be trained"):
        call(ByCandidate({0: DIVERGED, 1: DIVERGED}), n=2)


def test_a_place_for_the_store_is_looked_at_first(
    trials: list[Trial], options: Any, tmp_path: Path, recorded_progress: Any
) -> None:
    with pytest.raises((DataError, UsageError), match="is a folder"):
        successive_halving([trials[0].network], 16, options(store=tmp_path), recorded_progress)


def test_real_networks_are_trained_for_the_epochs_of_their_round(call: Any, tmp_path: Path) -> None:
    ranked = call(run_locally, n=4)
    with read_store(tmp_path / "a.sweep") as store:
        plan, found = store.trials(), store.outcomes()
    assert [trial.epochs for trial in plan] == [1, 1, 1, 1, 3, 3]
    assert [len(found[trial.number].history) for trial in plan] == [1, 1, 1, 1, 3, 3]
    assert all(trial.macs > 0 and trial.parameters > 0 and trial.activations > 0 for trial in plan)
    finals = {int(trial.drawn["candidate"]): found[trial.number].error for trial in plan[4:]}
    assert ranked[0].errors[3] == min(finals.values())


@pytest.mark.parametrize("share", [None, 0.2])
def test_the_chosen_candidate_is_reported_on_images_by_which_nothing_is_chosen(
    data: Path, tmp_path: Path, recipe: Recipe, execution: Execution, share: float | None
) -> None:
    folder = tmp_path / "images"
    shutil.copytree(data / "train" if share else data, folder)
    if share is None:
        shutil.copytree(data / "val", folder / "test")
    budget = Budget(macs=2e6, tolerance=0.1, family="x", resolution=16, classes=3, stem_stride=2)
    options = SweepOptions(folder, tmp_path / "a.tried", recipe, execution=execution, threads=1, test_split=share)
    chosen = select_by_training(select(budget), 2, options, NoProgress()).measured_ranking
    assert chosen is not None
    assert chosen.test is not None
    assert chosen.test.images == (6 if share else 12)
    assert chosen.test.low <= chosen.test.error <= chosen.test.high
    assert chosen.to_json()["test"]["digest"]
    assert "test images, which no choice saw (95 % interval" in chosen.reason()
    if share is None:
        assert chosen.test.error == pytest.approx(chosen.final_errors()[0])  # the same images as for validation
        shutil.rmtree(folder / "test")
        without = replace(options, store=tmp_path / "b.tried")
        other = select_by_training(select(budget), 2, without, NoProgress()).measured_ranking
        assert other is not None
        assert (other.test, other.errors, other.ranks) == (None, chosen.errors, chosen.ranks)
