"""TensorBoard reads what is written, and a resumed run hides what was written beyond its checkpoint."""

from pathlib import Path

import pytest

from regnet_deploy.errors import DataError
from regnet_deploy.training.tensorboard import open_tensorboard

event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def read(directory: Path) -> dict[str, list[tuple[int, float]]]:
    events = event_accumulator.EventAccumulator(str(directory), purge_orphaned_data=True)
    events.Reload()
    return {tag: [(value.step, value.value) for value in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_reads_it(tmp_path: Path) -> None:
    with open_tensorboard(tmp_path, 0) as metrics:
        metrics.scalars({"epoch/val_top1": 0.5, "epoch/lr": 0.25}, 10)
        metrics.scalars({"epoch/val_top1": 0.75}, 20)
    assert read(tmp_path) == {"epoch/val_top1": [(10, 0.5), (20, 0.75)], "epoch/lr": [(10, 0.25)]}
    assert [path.name.startswith("events.out.tfevents.") for path in tmp_path.iterdir()] == [True]


def test_every_value_is_there_when_the_process_is_not_any_more(tmp_path: Path) -> None:
    with open_tensorboard(tmp_path, 0) as metrics:
        metrics.scalars({"step/loss": 0.5}, 1)
        assert read(tmp_path) == {"step/loss": [(1, 0.5)]}


def test_what_lies_beyond_the_checkpoint_is_hidden(tmp_path: Path) -> None:
    with open_tensorboard(tmp_path, 0) as metrics:
        for step in (1, 2, 3, 4):
            metrics.scalars({"step/loss": float(step)}, step)
    for file in tmp_path.iterdir():
        file.rename(file.with_name(file.name.replace(".tfevents.", ".tfevents.0")))  # read before the next one
    with open_tensorboard(tmp_path, 3) as metrics:
        metrics.scalars({"step/loss": 30.0}, 3)
    assert read(tmp_path) == {"step/loss": [(1, 1.0), (2, 2.0), (3, 30.0)]}


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="give the same command again"), open_tensorboard(tmp_path / "none", 0):
        pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regnet_deploy.training.tensorboard.socket.gethostname", lambda: "host")
    monkeypatch.setattr("regnet_deploy.training.tensorboard.os.getpid", lambda: 1)
    monkeypatch.setattr("regnet_deploy.training.tensorboard.time.time", lambda: 0.0)
    (tmp_path / "events.out.tfevents.0000000000.host.1").symlink_to("/dev/full")
    with pytest.raises(DataError, match="No space left on device"), open_tensorboard(tmp_path, 0):
        pass
