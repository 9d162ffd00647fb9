"""MLflow, with its stores on the disk: SQLite and files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from regnet_deploy.errors import UsageError
from regnet_deploy.tracking import mlflow_tracker
from regnet_deploy.tracking.mlflow_tracker import open_mlflow
from regnet_deploy.tracking.tracker import TrackedRun, TrackerError

pytest.importorskip("mlflow", reason="needs MLflow (extra [mlflow])")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_NAME"):
        monkeypatch.delenv(name, raising=False)
    return


def new_run(folder: Path, resumed_at: int = 0) -> TrackedRun:
    return TrackedRun("bundle run-1", folder / "run-1", resumed_at, {"recipe/lr": 0.1, "data/digest": "0123"})


def runs(uri: str | None = None) -> list[Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    return list(client.search_runs([each.experiment_id for each in client.search_experiments()]))


def history(run_id: str, name: str, uri: str | None = None) -> list[tuple[int, float]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    return sorted((each.step, each.value) for each in client.get_metric_history(run_id, name))


def test_a_run_has_its_parameters_values_and_result(tmp_path: Path) -> None:
    tracker = open_mlflow(new_run(tmp_path))
    tracker.scalars({"step/loss": 2.0}, 1)
    tracker.scalars({"step/loss": 1.0, "epoch/val_top1": 0.5}, 2)
    tracker.result({"final/val_top1": 0.5, "bundle_sha256": "abcd"})
    tracker.close("finished")
    (run,) = runs()
    assert run.info.run_name == "bundle run-1"
    assert run.info.status == "FINISHED"
    assert run.data.params == {"recipe/lr": "0.1", "data/digest": "0123"}
    assert run.data.metrics == {"step/loss": 1.0, "epoch/val_top1": 0.5, "final/val_top1": 0.5}
    assert run.data.tags["bundle_sha256"] == "abcd"
    assert history(run.info.run_id, "step/loss") == [(1, 2.0), (2, 1.0)]
    assert tracker.place.startswith(f"run {run.info.run_id} of experiment regnet-deploy in file://")


def test_the_default_store_sqlite_works_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    tracker = open_mlflow(new_run(tmp_path))
    tracker.scalars({"step/loss": 2.0}, 1)
    tracker.close("interrupted")
    (run,) = runs()
    assert run.info.status == "KILLED"
    assert history(run.info.run_id, "step/loss") == [(1, 2.0)]
    tracker._client._tracking_client.store._dispose_engine()


def test_a_run_that_continues_is_the_same_run_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_mlflow(new_run(tmp_path))
    first.scalars({"step/loss": 3.0}, 1)
    first._send()  # then its process is killed
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another")  # of the next run that begins
    second = open_mlflow(new_run(tmp_path, 1))
    second.scalars({"step/loss": 2.0}, 2)
    second.close("finished")
    (run,) = runs()
    assert run.info.status == "FINISHED"
    assert history(run.info.run_id, "step/loss") == [(1, 3.0), (2, 2.0)]


def test_it_continues_where_it_was_when_the_store_is_not_named_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = (tmp_path / "store").as_uri()
    open_mlflow(new_run(tmp_path)).close("interrupted")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    open_mlflow(new_run(tmp_path)).close("finished")
    (run,) = runs(uri)
    assert run.info.status == "FINISHED"


def test_a_run_that_was_deleted_there_begins_anew(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    open_mlflow(new_run(tmp_path)).close("interrupted")
    (run,) = runs()
    store = MlflowClient()._tracking_client.store
    store._hard_delete_run(run.info.run_id)
    open_mlflow(new_run(tmp_path)).close("finished")
    (again,) = runs()
    assert again.info.run_id != run.info.run_id


def test_the_variables_of_mlflow_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    monkeypatch.setenv("MLFLOW_RUN_NAME", "Monday")
    tracker = open_mlflow(new_run(tmp_path))
    tracker.close("finished")
    assert "of experiment mine in" in tracker.place
    assert [run.info.run_name for run in runs()] == ["Monday"]
    (known,) = runs()
    monkeypatch.setenv("MLFLOW_RUN_ID", known.info.run_id)
    open_mlflow(TrackedRun("other run-1", tmp_path / "other", 0, {"network": "x"})).close("finished")
    assert MlflowClient().get_run(known.info.run_id).data.params["network"] == "x"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "77")
    with pytest.raises(UsageError, match="77"):
        open_mlflow(TrackedRun("third run-1", tmp_path / "third", 0, {}))


def test_what_could_not_be_sent_is_sent_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_tracker, "_INTERVAL_S", 0.0)
    tracker = open_mlflow(new_run(tmp_path))
    tracker._next_s = 0.0
    log_batch = tracker._client.log_batch

    def refuse(*arguments: Any, **named: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(tracker._client, "log_batch", refuse)
    with pytest.raises(TrackerError, match="no route to host"):
        tracker.scalars({"step/loss": 2.0}, 1)
    monkeypatch.setattr(tracker._client, "log_batch", log_batch)
    tracker.scalars({"step/loss": 1.0}, 2)
    tracker.close("finished")
    (run,) = runs()
    assert history(run.info.run_id, "step/loss") == [(1, 2.0), (2, 1.0)]


def test_a_server_that_does_not_answer_is_an_error_of_the_tracker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackerError, match=r"127\.0\.0\.1"):
        open_mlflow(new_run(tmp_path))


def test_a_store_that_mlflow_does_not_know_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://user:secret@x")
    with pytest.raises(UsageError, match=r"MLflow cannot use nowhere://x: .*set MLFLOW_TRACKING_URI") as error:
        open_mlflow(new_run(tmp_path))
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("sqlite:///{folder}/text.db", r"cannot use sqlite:///.*text.db: .*file is not a database; set MLFLOW_"),
        ("sqlite://relative/file.db", "Invalid SQLite URL"),
        ("sqlite+nothing:///file.db", "Can't load plugin"),
        ("mssql+nothing://user:secret@host/db", "cannot use mssql.nothing://host/db: "),
        ("http://[::1", "no address of a store"),
    ],
)
def test_a_store_that_cannot_be_one_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, said: str
) -> None:
    (tmp_path / "text.db").write_text("a text, longer than the head of a database; " * 4)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(folder=tmp_path))
    with pytest.raises(UsageError, match=said) as raised:
        open_mlflow(new_run(tmp_path))
    assert "\n" not in str(raised.value)
    assert "secret" not in str(raised.value)


def test_passwords_are_neither_shown_nor_stored() -> None:
    shown = mlflow_tracker._without_password
    assert shown("https://user:secret@host:5000/a?b=c") == "https://host:5000/a?b=c"
    assert shown("sqlite:////tmp/a@b/mlflow.db") == "sqlite:////tmp/a@b/mlflow.db"
    assert shown("postgresql+psycopg2://u:p@host/db") == "postgresql+psycopg2://host/db"
