"""A sweep trains what has no outcome yet, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from regnet_deploy.errors import DataError, UsageError
from regnet_deploy.populations.store import DIVERGED, DONE, FAILED, Trial, TrialOutcome, read_store
from regnet_deploy.space.sampling import Band
from regnet_deploy.space.spaces import AnyNetSpace
from regnet_deploy.sweeping.sweep import SweepStatus, report_oversized_batch, sweep
from regnet_deploy.sweeping.trial import run_locally, run_trial
from regnet_deploy.training.recipe import Recipe

Results = Callable[[dict[int, TrialOutcome]], dict[int, dict[str, Any]]]


class Scripted:
    """An executor whose outcomes are written down: by number, or done with an error of the number."""

    def __init__(self, states: dict[int, str] | None = None, stop_at: int | None = None) -> None:
        self.states, self.stop_at = states or {}, stop_at
        self.ran: list[int] = []

    def __call__(self, trials: Any, images: Any, recipe: Any, execution: Any, on_step: Any) -> Iterator[Any]:
        for trial in trials:
            if trial.number == self.stop_at:
                raise KeyboardInterrupt
            self.ran.append(trial.number)
            on_step(trial, 0.5, 100.0)
            state = self.states.get(trial.number, DONE)
            error = 10.0 + trial.number if state == DONE else None
            yield trial, TrialOutcome(state, error, message="" if state == DONE else f"no. {trial.number}", seconds=2.0)


@pytest.fixture
def call(space: AnyNetSpace, band: Band, options: Any, recorded_progress: Any) -> Callable[..., SweepStatus]:
    def run(executor: Any, n: int = 4, band: Band = band, seed: int = 0, **changes: Any) -> SweepStatus:
        return sweep(space, band, n, options(executor=executor, **changes), recorded_progress, seed=seed)

    return run


def stored(tmp_path: Path) -> dict[int, TrialOutcome]:
    with read_store(tmp_path / "a.sweep") as store:
        return store.outcomes()


def test_every_network_is_trained_and_kept(call: Any, tmp_path: Path) -> None:
    status = call(run_locally, n=3)
    found = stored(tmp_path)
    assert status.errors == {number: outcome.error for number, outcome in found.items()}
    assert sorted(status.errors) == [0, 1, 2]
    assert (status.planned, status.pending, status.diverged, status.failed) == (3, 0, 0, 0)
    assert status.seconds == pytest.approx(sum(outcome.seconds for outcome in found.values()))


def test_more_networks_are_the_same_ones_and_others_and_only_the_others_are_trained(call: Any, tmp_path: Path) -> None:
    call(Scripted(), n=3)
    with read_store(tmp_path / "a.sweep") as store:
        before = store.trials()
    later = Scripted()
    assert call(later, n=6).planned == 6
    assert later.ran == [3, 4, 5]
    with read_store(tmp_path / "a.sweep") as store:
        assert store.trials()[:3] == before
        assert len({trial.network for trial in store.trials()}) == 6


def test_a_finished_sweep_trains_nothing_and_loads_no_images(call: Any, recorded_progress: Any) -> None:
    first = call(Scripted())
    recorded_progress.steps.clear()
    again = Scripted()
    assert call(again) == first
    assert again.ran == []
    assert "loading images" not in dict(recorded_progress.steps)


def test_an_interrupted_sweep_continues(call: Any, tmp_path: Path, recorded_progress: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        call(Scripted(stop_at=2))
    assert sorted(stored(tmp_path)) == [0, 1]
    later = Scripted()
    assert call(later).pending == 0
    assert later.ran == [2, 3]
    assert any("2 of 4 trials have an outcome, 2 remain" in line for line in recorded_progress.messages)


def test_those_that_diverged_or_failed_are_left_alone_unless_asked_for(call: Any, recorded_progress: Any) -> None:
    status = call(Scripted({1: DIVERGED, 3: FAILED}), n=5)
    assert (status.diverged, status.failed, status.pending) == (1, 1, 0)
    assert status.messages == {3: "no. 3"}
    assert "3 of 5 trials done; 1 diverged; 1 failed; top-1 error best 10.00 %, median 12.00 %" in str(status)
    assert call(again := Scripted(), n=5) == status
    assert again.ran == []
    retried = call(again := Scripted(), n=5, retry=True)
    assert again.ran == [1, 3]
    assert (retried.diverged, retried.failed, len(retried.errors)) == (0, 0, 5)
    assert any("2 trials" in line and "again" in line for line in recorded_progress.messages)


def test_three_failures_at_the_start_stop(call: Any, tmp_path: Path) -> None:
    executor = Scripted(dict.fromkeys(range(9), FAILED))
    with pytest.raises(UsageError, match=r"3 trials failed in a row.*: no\. 2") as error:
        call(executor, n=9)
    assert "\n" not in str(error.value)
    assert executor.ran == [0, 1, 2]
    assert sorted(stored(tmp_path)) == [0, 1, 2]
    with pytest.raises(UsageError, match=r"3 trials failed in a row.*: no\. 5"):
        call(executor, n=9)  # given again it does not write the others off
    assert sorted(stored(tmp_path)) == [0, 1, 2, 3, 4, 5]
    assert call(again := Scripted(), n=9, retry=True).failed == 0
    assert again.ran == list(range(9))


def test_failures_among_others_are_results_until_ten_follow_each_other(call: Any) -> None:
    some = Scripted(dict.fromkeys(range(1, 8), FAILED))
    assert call(some, n=9).failed == 7
    many = Scripted(dict.fromkeys(range(10, 30), FAILED))
    with pytest.raises(UsageError, match=r"10 trials failed in a row"):
        call(many, n=30)


@pytest.mark.parametrize("states", [{0: FAILED, 1: FAILED, 3: FAILED}, {0: FAILED, 1: DIVERGED, 2: FAILED, 3: FAILED}])
def test_failures_beside_others_do_not_stop(call: Any, states: dict[int, str]) -> None:
    assert call(Scripted(states), n=6).pending == 0


def test_progress_tells_best_and_median(call: Any, recorded_progress: Any) -> None:
    call(Scripted({1: DIVERGED}), n=4)
    said = [line for line in recorded_progress.messages if line.startswith("trial ")]
    assert [line.split(":")[0] for line in said] == [f"trial {i} ({i + 1}/4)" for i in range(4)]
    assert "error 10.00 %" in said[0]
    assert "MMACs" in said[0]
    assert "diverged (no. 1)" in said[1]
    assert "best 10.00 %, median 12.00 %" in said[3]
    bars = [(done, total, note) for what, done, total, note in recorded_progress.updates if what == "trials"]
    assert bars[0][:2] == (0.5, 4)
    assert bars[-1][:2] == (4, 4)
    assert [done for done, *_ in bars] == sorted(done for done, *_ in bars)
    assert any("best 10.00 %, median 11.00 %; 100 images/s" in note for *_, note in bars)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"recipe": Recipe(epochs=3, batch_size=8, warmup_epochs=0)}, "recipe epochs is 3 and was 2"),
        ({"seed": 7}, "seed is 7 and was 0"),
        ({"band": Band(0.1e6, 2e6, 16, 3)}, "mmacs is [0.1, 2.0] and was [0.1, 3.0]"),
    ],
)
def test_a_store_of_another_sweep_is_refused(call: Any, change: dict[str, Any], said: str) -> None:
    call(Scripted())
    executor = Scripted()
    with pytest.raises(UsageError) as error:
        call(executor, n=6, **change)
    assert said in str(error.value)
    assert executor.ran == []


def test_more_threads_or_another_executor_are_the_same_sweep(call: Any) -> None:
    call(Scripted(stop_at=9))
    assert call(again := Scripted(), n=5, threads=2).pending == 0
    assert again.ran == [4]


def test_a_place_for_the_store_is_looked_at_before_the_images(
    space: AnyNetSpace, band: Band, options: Any, tmp_path: Path, recorded_progress: Any
) -> None:
    (tmp_path / "recorded_progress.txt").write_text("not a store")
    for path in (tmp_path / "none" / "a.sweep", tmp_path, tmp_path / "recorded_progress.txt"):
        with pytest.raises((DataError, UsageError)):
            sweep(space, band, 4, options(data=tmp_path / "no-images", store=path), recorded_progress)
    assert [each.name for each in tmp_path.iterdir()] == ["recorded_progress.txt"]
    assert (tmp_path / "recorded_progress.txt").read_text() == "not a store"


def test_a_batch_larger_than_the_data_is_said(recorded_progress: Any) -> None:
    class Folder:
        train = [None] * 30

    report_oversized_batch(Recipe(batch_size=500), Folder(), recorded_progress)
    report_oversized_batch(Recipe(batch_size=30), Folder(), recorded_progress)
    (line,) = recorded_progress.messages
    assert line.startswith("--batch-size 500 is more than the 30 training images: a step has 30")


def test_a_space_with_too_few_networks_is_refused(call: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="networks"):
        call(Scripted(), band=Band(900e6, 1000e6, 16, 3))
    assert not (tmp_path / "a.sweep").exists()


def test_the_images_of_the_folder_can_be_held_out(
    space: AnyNetSpace, band: Band, data: Path, options: Any, tmp_path: Path, recorded_progress: Any
) -> None:
    made = options(executor=Scripted(), val_split=0.25)
    with pytest.raises(UsageError, match="has validation images of its own"):
        sweep(space, band, 1, made, recorded_progress)
    sweep(space, band, 1, replace(made, data=data / "train"), recorded_progress)
    with read_store(tmp_path / "a.sweep") as store:
        known = store.identity["data"]
    assert known["train_images"] + known["val_images"] == 30


def test_a_trial_in_a_sweep_is_the_trial_alone(
    call: Any, trials: list[Trial], images: Any, recipe: Recipe, execution: Any, tmp_path: Path, results: Results
) -> None:
    call(run_locally, n=2)
    assert results({1: stored(tmp_path)[1]}) == results({1: run_trial(trials[1], images, recipe, execution)})
