"""A population is read from a store or from CSV, whichever the file is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from regnet_deploy.errors import DataError
from regnet_deploy.populations.reader import find_trial, read_trials, trials_of
from regnet_deploy.populations.store import DIVERGED, DONE, FAILED, Store, Trial, TrialOutcome, open_store

Make = Callable[..., Trial]


def fill(path: Path, identity: dict[str, object], trials: list[Trial], found: dict[int, TrialOutcome]) -> Path:
    with open_store(path, identity) as store:
        store.add(trials)
        for number, outcome in found.items():
            store.record(number, outcome)
    return path


def test_of_a_store_what_is_done_counts(
    tmp_path: Path, make_trial: Make, outcomes: dict[str, TrialOutcome], identity: dict[str, object]
) -> None:
    found = {
        0: replace(outcomes[DONE], error=30.0),
        1: outcomes[DIVERGED],
        2: replace(outcomes[DONE], error=20.0),
        3: outcomes[FAILED],
    }
    path = fill(tmp_path / "a.sweep", identity, [make_trial(number) for number in range(6)], found)
    trials = read_trials(path)
    assert trials.space == "tiny"
    assert trials.error.tolist() == [30, 20]
    assert trials.unsuccessful == 2
    assert trials.networks == (make_trial(0).network, make_trial(2).network)
    assert trials.drawn == ("d_1", "d_2", "w_m")
    assert trials.columns["macs"].tolist() == [1000, 1002]
    assert trials.columns["parameters"].tolist() == [100, 102]
    assert trials.columns["activations"].tolist() == [10, 12]
    assert trials.columns["w_m"].tolist() == [2.1, 2.1 + 2 / 3]
    assert trials.columns["d"].tolist() == [3, 5]
    assert trials.columns["w_1"].tolist() == [8, 24]
    assert all(len(values) == 2 for values in trials.columns.values())


def test_what_was_drawn_stands_before_what_the_stages_say(
    tmp_path: Path, make_trial: Make, outcomes: dict[str, TrialOutcome], identity: dict[str, object]
) -> None:
    drawn = replace(make_trial(0), drawn={"w_1": 7.5})
    path = fill(tmp_path / "a.sweep", identity, [drawn], {0: outcomes[DONE]})
    trials = read_trials(path)
    assert trials.columns["w_1"].tolist() == [7.5]
    assert trials.columns["w_2"].tolist() == [16]


def test_of_rounds_the_one_of_most_epochs_counts(
    tmp_path: Path, make_trial: Make, outcomes: dict[str, TrialOutcome], identity: dict[str, object]
) -> None:
    plan = [make_trial(0, 1), make_trial(1, 1), make_trial(2, 3), make_trial(3, 3), make_trial(4, 9)]
    found = {0: outcomes[DONE], 1: outcomes[DIVERGED], 2: outcomes[FAILED], 3: outcomes[DONE]}
    trials = read_trials(fill(tmp_path / "a.sweep", identity, plan, found))
    assert trials.columns["macs"].tolist() == [1003]  # those of 9 epochs have no outcome yet
    assert trials.unsuccessful == 1


def test_a_store_without_a_space_is_called_by_its_file(
    tmp_path: Path, make_trial: Make, outcomes: dict[str, TrialOutcome], identity: dict[str, object]
) -> None:
    identity = {"tried": 1, **{name: value for name, value in identity.items() if name != "space"}}
    path = fill(tmp_path / "halved.sweep", identity, [make_trial(0)], {0: outcomes[DONE]})
    assert read_trials(path).space == "halved"


def test_a_store_is_read_while_a_sweep_holds_it(
    tmp_path: Path, make_trial: Make, outcomes: dict[str, TrialOutcome], identity: dict[str, object]
) -> None:
    path = tmp_path / "a.sweep"
    with open_store(path, identity) as store:
        assert isinstance(store, Store)
        store.add([make_trial(number) for number in range(3)])
        for number in range(3):
            store.record(number, outcomes[DONE])
            assert len(read_trials(path)) == len(trials_of(store)) == number + 1


def test_csv_is_read_whatever_its_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.sweep"
    path.write_text("error,macs\n10,1\n20,2\n")
    trials = read_trials(path)
    assert trials.space == "mine"
    np.testing.assert_array_equal(trials.columns["macs"], [1, 2])


def test_nothing_done_is_one_line(
    tmp_path: Path, make_trial: Make, outcomes: dict[str, TrialOutcome], identity: dict[str, object]
) -> None:
    plan = [make_trial(0), make_trial(1)]
    path = fill(tmp_path / "a.sweep", identity, plan, {})
    with pytest.raises(DataError, match=r"a\.sweep has no completed trial$"):
        read_trials(path)
    fill(path, identity, plan, {0: outcomes[DIVERGED], 1: outcomes[FAILED]})
    with pytest.raises(DataError, match=r"has no completed trial \(2 diverged or failed\)$"):
        read_trials(path)
    (tmp_path / "lost.csv").write_text("state,error\nfailed,\n")
    with pytest.raises(DataError, match=r"has no completed trial \(1 diverged or failed\)$"):
        read_trials(tmp_path / "lost.csv")


def test_no_file_and_a_folder_are_one_line(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none", tmp_path / ("n" * 300)):
        with pytest.raises(DataError, match=r"^no population at .*give the store of `regnet-deploy sweep`, or a CSV"):
            read_trials(path)
        with pytest.raises(DataError, match=r"^no store of a sweep at .*creates one"):
            find_trial(path, None)
