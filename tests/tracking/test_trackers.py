"""Several trackers at once: one that fails is said once, and the others and the run go on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from regnet_deploy.errors import MissingExtra, UsageError
from regnet_deploy.tracking import trackers as module
from regnet_deploy.tracking.tracker import TrackedRun, TrackerError
from regnet_deploy.tracking.trackers import ensure_installed, ensure_known, open_trackers


class Recorder:
    """Keeps what it is told, and fails when it is told to."""

    place = "on the desk"

    def __init__(self) -> None:
        self.told: list[object] = []
        self.fails = False

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._tell((dict(values), step))

    def result(self, values: Mapping[str, str | int | float]) -> None:
        self._tell(dict(values))

    def close(self, status: str) -> None:
        self._tell(status)

    def _tell(self, what: object) -> None:
        if self.fails:
            raise TrackerError("no network")
        self.told.append(what)


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Recorder]]:
    both = {"mlflow": Recorder(), "wandb": Recorder()}
    table = {name: (name.upper(), lambda: pytest, lambda run, name=name: both[name]) for name in both}
    monkeypatch.setattr(module, "_TRACKERS", table)
    return both


@pytest.fixture
def run(tmp_path: Path) -> TrackedRun:
    return TrackedRun("bundle run-1", tmp_path, 0, {})


def test_all_are_told_everything(recorders: dict[str, Recorder], run: TrackedRun, recorded_progress) -> None:
    with open_trackers(["mlflow", "wandb", "mlflow"], run, recorded_progress) as trackers:
        trackers.scalars({"step/loss": 1.0}, 3)
        trackers.result({"final/val_top1": 0.5})
    told = [({"step/loss": 1.0}, 3), {"final/val_top1": 0.5}, "finished"]
    assert [recorder.told for recorder in recorders.values()] == [told, told]
    assert recorded_progress.messages == ["MLFLOW: on the desk", "WANDB: on the desk"]


def test_one_that_fails_is_said_once_and_nothing_else_changes(
    recorders: dict[str, Recorder], run: TrackedRun, recorded_progress
) -> None:
    with open_trackers(["mlflow", "wandb"], run, recorded_progress) as trackers:
        recorders["mlflow"].fails = True
        for step in range(3):
            trackers.scalars({"step/loss": 1.0}, step)
        recorders["mlflow"].fails = False
        trackers.scalars({"step/loss": 1.0}, 3)
    assert recorded_progress.messages[2:] == ["MLFLOW misses values of this run: no network; training goes on"]
    assert recorders["mlflow"].told == [({"step/loss": 1.0}, 3), "finished"]
    assert len(recorders["wandb"].told) == 5


def test_one_that_cannot_be_opened_is_left_out(
    recorders: dict[str, Recorder], run: TrackedRun, recorded_progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(run: TrackedRun) -> Recorder:
        raise TrackerError("no network")

    monkeypatch.setitem(module._TRACKERS, "mlflow", ("MLflow", lambda: pytest, refuse))
    with open_trackers(["mlflow", "wandb"], run, recorded_progress) as trackers:
        trackers.scalars({"step/loss": 1.0}, 0)
    assert recorded_progress.messages[0] == ("MLflow does not show this run: no network; training goes on without it")
    assert recorders["mlflow"].told == []
    assert recorders["wandb"].told == [({"step/loss": 1.0}, 0), "finished"]


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, "interrupted"), (UsageError, "failed")])
def test_they_are_told_how_a_run_ends(
    recorders: dict[str, Recorder], run: TrackedRun, recorded_progress, error: type[BaseException], status: str
) -> None:
    with pytest.raises(error), open_trackers(["wandb"], run, recorded_progress):
        raise error
    assert recorders["wandb"].told == [status]


def test_wrong_names_are_refused() -> None:
    with pytest.raises(UsageError, match="'comet' is no tracker: give tensorboard, mlflow, wandb"):
        ensure_known(["comet"])
    with pytest.raises(UsageError, match="track must be a tuple of names"):
        ensure_known("mlflow")


def test_a_library_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mlflow", "wandb"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
        with pytest.raises(MissingExtra, match=rf"pip install 'regnet-deploy\[{name}\]'"):
            ensure_installed([name])
