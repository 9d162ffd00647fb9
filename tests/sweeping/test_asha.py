"""A search on Ray Tune: recipes that are behind end early, and those that end have the results that they have here."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from regnet_deploy.bundle import Bundle, Manifest, create_bundle
from regnet_deploy.bundle.manifest import Architecture
from regnet_deploy.errors import MissingExtra
from regnet_deploy.images.preprocessing import default_preprocessing
from regnet_deploy.populations.reader import read_trials
from regnet_deploy.populations.store import DONE, STOPPED, Trial, read_store
from regnet_deploy.sweeping.asha import load_ray_tune
from regnet_deploy.sweeping.ray_executor import RayExecutor
from regnet_deploy.sweeping.recipe_search import search_recipe
from regnet_deploy.sweeping.recipe_space import parse_space
from regnet_deploy.sweeping.trial import run_trial

#: What Ray leaves open or is deprecated in it is Ray's.
pytestmark = [
    pytest.mark.alone,  # Ray gives its processes 30 s to start
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

EPOCHS = 4


@pytest.fixture
def ray_tune(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Ray Tune, with workers that find this package; two clusters that start at once may time out."""
    for module in ("ray", "pandas", "pyarrow", "tensorboardX"):
        pytest.importorskip(module, reason="needs Ray Tune (extra [tune])")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), *sys.path[1:]]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with (tmp_path_factory.getbasetemp().parent / "ray.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield load_ray_tune()
        pytest.importorskip("ray").shutdown()


@pytest.fixture
def bundle(trials: list[Trial], tmp_path: Path) -> Bundle:
    architecture = Architecture.of(trials[0].network, name="tiny", classes=3, resolution=16)
    return create_bundle(tmp_path / "b", Manifest(architecture=architecture, preprocessing=default_preprocessing(16)))


def test_recipes_that_are_behind_end_early_and_a_search_that_was_killed_continues(
    ray_tune: Any, bundle: Bundle, options: Any, images: Any, recorded_progress: Any, tmp_path: Path
) -> None:
    path = tmp_path / "a.sweep"
    space = parse_space({"lr": "1e-6,0.2"})
    given = {"epochs": EPOCHS, "batch_size": 8, "lr": 0.1, "pixel_probe": False, "flip_probe": False}

    def search() -> Any:
        return search_recipe(bundle, given, space, 5, options(executor=RayExecutor()), recorded_progress)

    found = search()
    with read_store(path) as store:
        trials, outcomes, identity = store.trials(), store.outcomes(), store.identity
    assert identity["halving"] == "asynchronous"
    assert [trial.epochs for trial in trials] == [EPOCHS] * 5
    assert {outcome.state for outcome in outcomes.values()} == {DONE, STOPPED}
    for trial in trials:
        outcome = outcomes[trial.number]
        here = run_trial(trial, images, found.base, options().execution)
        history = [epoch["val_loss"] for epoch in here.history]
        assert [epoch["val_loss"] for epoch in outcome.history] == history[: len(outcome.history)]
        assert outcome.error == (here.error if outcome.state == DONE else None)
        assert (outcome.state == STOPPED) == (len(outcome.history) < EPOCHS)
    assert EPOCHS in found.tried[0].errors
    assert found.tried[0].error == min(outcome.error for outcome in outcomes.values() if outcome.error is not None)
    assert any("of 4 epochs" in line for line in recorded_progress.messages)
    assert len(read_trials(path)) == sum(outcome.state == DONE for outcome in outcomes.values())

    with sqlite3.connect(path) as connection:  # as if it had been killed before these two ended
        connection.execute("UPDATE trials SET state = 'planned', error = NULL, outcome = NULL WHERE number IN (0, 3)")
    connection.close()
    recorded_progress.messages.clear()
    again = search()
    assert sum(line.startswith("recipe ") for line in recorded_progress.messages) == 2
    with read_store(path) as store:
        assert store.outcomes().keys() == outcomes.keys()
        assert {n: store.outcomes()[n] for n in (1, 2, 4)} == {n: outcomes[n] for n in (1, 2, 4)}
    assert len(again.tried) == 5


@pytest.mark.parametrize("module", ["ray", "pandas", "pyarrow", "tensorboardX"])
def test_what_ray_tune_needs_is_one_line(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=r"pip install 'regnet-deploy\[tune\]'"):
        load_ray_tune()
