"""What trackers store beside their files, so that a run is continued in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from regnet_deploy.tracking.tracker import TrackedRun, TrackerError, one_line, store_run, stored_run


def test_what_is_stored_is_read_again_and_anything_else_is_nothing(tmp_path: Path) -> None:
    run = TrackedRun("bundle run-1", tmp_path / "run-1", 0, {})
    assert stored_run(run, "mlflow") == {}
    store_run(run, "mlflow", {"run_id": "0123"})
    assert stored_run(run, "mlflow") == {"run_id": "0123"}
    assert stored_run(run, "wandb") == {}
    for damaged in (b"", b"[]", b"{", b"\xff"):
        (tmp_path / "run-1" / "mlflow.json").write_bytes(damaged)
        assert stored_run(run, "mlflow") == {}


def test_a_folder_that_cannot_be_written_is_an_error_of_the_tracker(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrackerError, match="cannot write"):
        store_run(TrackedRun("bundle run-1", tmp_path / "file", 0, {}), "mlflow", {})


def test_errors_of_libraries_are_one_short_line() -> None:
    assert one_line(ValueError("a\n  b\tc")) == "a b c"
    assert one_line(ValueError()) == "ValueError"
    assert len(one_line(ValueError("x" * 1000))) == 500
