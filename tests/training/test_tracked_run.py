"""What trackers are told of a run, from its start to the digest of its bundle."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from regnet_deploy.bundle import Bundle
from regnet_deploy.errors import UsageError
from regnet_deploy.models.weights import FILE
from regnet_deploy.tracking import trackers as trackers_module
from regnet_deploy.tracking.tracker import TrackedRun, TrackerError
from regnet_deploy.training import train
from regnet_deploy.training.recipe import Recipe
from regnet_deploy.training.run_directory import default_directory
from regnet_deploy.training.train import TrainOptions
from regnet_deploy.training.trainer import Trainer


class Recorder:
    place = ""

    def __init__(self) -> None:
        self.runs: list[TrackedRun] = []
        self.scalar_values: list[tuple[str, int]] = []
        self.results: list[dict[str, object]] = []
        self.ends: list[str] = []
        self.fails = False

    def open(self, run: TrackedRun) -> Recorder:
        self.runs.append(run)
        return self

    def scalars(self, values: dict[str, float], step: int) -> None:
        if self.fails:
            raise TrackerError("no network")
        assert all(isinstance(value, float) for value in values.values())
        self.scalar_values += [(name, step) for name in values]

    def result(self, values: dict[str, object]) -> None:
        self.results.append(values)

    def close(self, status: str) -> None:
        self.ends.append(status)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    monkeypatch.setitem(trackers_module._TRACKERS, "wandb", ("W&B", lambda: pytest, made.open))
    return made


def tracked(options: TrainOptions) -> TrainOptions:
    return dataclasses.replace(options, track=("wandb",))


def test_a_run_tells_recipe_data_execution_metrics_and_the_digest_of_its_bundle(
    bundle: Bundle, data: Path, recipe: Recipe, options: TrainOptions, recorded_progress, recorder: Recorder
) -> None:
    trained = train.train(bundle.path, data, recipe, tracked(options), recorded_progress)
    (run,) = recorder.runs
    assert (run.name, run.directory.name, run.resumed_at) == (f"{bundle.path.name} run-1", "run-1", 0)
    told = run.parameters
    assert (told["recipe/lr"], told["recipe/epochs"]) == (recipe.lr, recipe.epochs)
    assert (told["data/digest"], told["data/folder"]) == (trained.training.data.digest, data.name)
    assert (told["execution/precision"], told["execution/device"]) == ("fp32", "cpu")
    assert not any(str(data) in str(value) for value in told.values())  # no paths of this machine
    last = max(step for _, step in recorder.scalar_values)
    assert ("epoch/val_top1", last) in recorder.scalar_values
    assert {"step/loss", "epoch/train_loss", "epoch/lr"} <= {name for name, _ in recorder.scalar_values}
    (result,) = recorder.results
    assert result["final/val_top1"] == trained.training.best.val_top1
    assert (result["bundle_sha256"], result["weights_sha256"]) == (trained.digest, trained.files[FILE].sha256)
    assert recorder.ends == ["finished"]
    assert not list((default_directory(bundle.path) / "run-1").glob("events*"))  # only what was asked for


def test_a_run_that_continues_is_opened_as_the_same_run_and_finish_ends_it(
    bundle: Bundle,
    data: Path,
    recipe: Recipe,
    options: TrainOptions,
    recorded_progress,
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Stop(BaseException):
        pass

    step, left = Trainer.step, [0]

    def stopping(self: Trainer, *arguments: object) -> object:
        left[0] -= 1
        if not left[0]:
            raise Stop
        return step(self, *arguments)

    long = dataclasses.replace(recipe, epochs=6)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stopping)
        for left[0] in (6, 6):
            with pytest.raises(Stop):
                train.train(bundle.path, data, long, tracked(options), recorded_progress)
    ended = train.train(
        bundle.path, None, recipe, dataclasses.replace(tracked(options), finish=True), recorded_progress
    )
    assert {(run.name, run.directory) for run in recorder.runs} == {(recorder.runs[0].name, recorder.runs[0].directory)}
    assert all(dict(run.parameters) == dict(recorder.runs[0].parameters) for run in recorder.runs)
    assert 0 == recorder.runs[0].resumed_at < recorder.runs[1].resumed_at < recorder.runs[2].resumed_at
    assert recorder.ends == ["failed", "failed", "finished"]
    assert recorder.results[0]["bundle_sha256"] == ended.digest


def test_a_tracker_that_fails_does_not_end_the_training(
    bundle: Bundle, data: Path, recipe: Recipe, options: TrainOptions, recorded_progress, recorder: Recorder
) -> None:
    plain = train.train(bundle.path, data, recipe, options, recorded_progress)
    recorder.fails = True
    again = dataclasses.replace(tracked(options), restart=True)
    trained = train.train(bundle.path, data, recipe, again, recorded_progress)
    assert recorded_progress.text.count("W&B misses values of this run: no network; training goes on") == 1
    assert trained.files[FILE].sha256 == plain.files[FILE].sha256


def test_a_tracker_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UsageError, match="'comet' is no tracker"):
        TrainOptions(track=("comet",))


def test_names_that_are_not_utf_8_are_told_with_question_marks(
    bundle: Bundle, data: Path, recipe: Recipe, options: TrainOptions, recorder: Recorder, tmp_path: Path
) -> None:
    odd = bundle.path.rename(tmp_path / "b\udcff")
    train.train(odd, data.rename(tmp_path / "d\udcff"), recipe, tracked(options))
    (run,) = recorder.runs
    assert run.name == "b? run-1"
    assert run.parameters["bundle"] == "b?"
    assert run.parameters["data/folder"] == "d?"
