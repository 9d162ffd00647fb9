"""Event files: TensorBoard reads them, at every moment and after interruptions."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from tensorboard.backend.event_processing import event_accumulator

from regnet_deploy.tracking.tensorboard_tracker import TensorBoardTracker, open_tensorboard
from regnet_deploy.tracking.tracker import TrackedRun, TrackerError


def run(folder: Path, resumed_at: int = 0) -> TrackedRun:
    return TrackedRun("bundle run-1", folder, resumed_at, {"recipe/lr": 0.1, "data/split": "val/ of the folder"})


def events_of(directory: Path) -> event_accumulator.EventAccumulator:
    events = event_accumulator.EventAccumulator(str(directory), purge_orphaned_data=True)
    events.Reload()
    return events


def read_scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    events = events_of(directory)
    return {tag: [(value.step, value.value) for value in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_reads_it(tmp_path: Path) -> None:
    tracker = open_tensorboard(run(tmp_path))
    tracker.scalars({"epoch/val_top1": 0.5, "epoch/lr": 0.25}, 10)
    tracker.scalars({"epoch/val_top1": 0.75}, 20)
    tracker.result({"final/val_top1": 0.75, "bundle_sha256": "0123"})
    tracker.close("finished")
    assert read_scalars(tmp_path) == {"epoch/val_top1": [(10, 0.5), (20, 0.75)], "epoch/lr": [(10, 0.25)]}
    assert [path.name.startswith("events.out.tfevents.") for path in tmp_path.iterdir()] == [True]
    tables = {tag: events_of(tmp_path).Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in ("run", "final")}
    assert "| recipe/lr | 0.1 |" in tables["run"]
    assert "| bundle_sha256 | 0123 |" in tables["final"]


def test_every_value_is_there_when_the_process_is_not_any_more(tmp_path: Path) -> None:
    tracker = open_tensorboard(run(tmp_path))
    tracker.scalars({"step/loss": 0.5}, 1)
    assert read_scalars(tmp_path) == {"step/loss": [(1, 0.5)]}
    tracker.close("failed")


def test_what_lies_beyond_the_checkpoint_is_hidden(tmp_path: Path) -> None:
    tracker = open_tensorboard(run(tmp_path))
    for step in (1, 2, 3, 4):
        tracker.scalars({"step/loss": float(step)}, step)
    tracker.close("interrupted")
    for file in tmp_path.iterdir():
        file.rename(file.with_name(file.name.replace(".tfevents.", ".tfevents.0")))  # read before the next one
    tracker = open_tensorboard(run(tmp_path, 3))
    tracker.scalars({"step/loss": 30.0}, 3)
    tracker.close("finished")
    assert read_scalars(tmp_path) == {"step/loss": [(1, 1.0), (2, 2.0), (3, 30.0)]}


def test_a_file_that_cannot_be_written_is_an_error_of_the_tracker(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrackerError, match=r"cannot write .*file"):
        open_tensorboard(run(tmp_path / "file"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_so_is_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "regnet_deploy.tracking.tensorboard_tracker"
    monkeypatch.setattr(f"{module}.socket.gethostname", lambda: "host")
    monkeypatch.setattr(f"{module}.os.getpid", lambda: 1)
    monkeypatch.setattr(f"{module}.time.time", lambda: 0.0)
    (tmp_path / "events.out.tfevents.0000000000.host.1").symlink_to("/dev/full")
    with pytest.raises(TrackerError, match="No space left on device"):
        open_tensorboard(run(tmp_path))


class Filling(io.FileIO):
    """A file on a disk that becomes full in the middle of a record."""

    full = False

    def write(self, data: bytes) -> int:
        return super().write(data[: len(data) // 2] if self.full else data)


def test_a_record_that_was_written_in_part_does_not_hide_the_later_ones(tmp_path: Path) -> None:
    with Filling(tmp_path / "events.out.tfevents.0.host.1", "ab") as file:
        tracker = TensorBoardTracker(file, run(tmp_path))
        file.full = True
        with pytest.raises(TrackerError, match="No space left"):
            tracker.scalars({"step/loss": 1.0}, 1)
        file.full = False
        tracker.scalars({"step/loss": 2.0}, 2)
    assert read_scalars(tmp_path) == {"step/loss": [(2, 2.0)]}
