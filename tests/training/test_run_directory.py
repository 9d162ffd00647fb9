"""The run directory: one run at a time, and no training for a full disk."""

import os
import signal
import subprocess
import sys
import tempfile
from collections import namedtuple
from pathlib import Path

import pytest

from regnet_deploy.bundle import Bundle
from regnet_deploy.errors import BundleError, DataError, UsageError
from regnet_deploy.training import run_directory
from regnet_deploy.training.run_directory import (
    default_directory,
    ensure_free_space,
    ensure_usable,
    new_run_name,
    open_directory,
)

HOLD = """
import sys, time, os
from pathlib import Path
from regnet_deploy.training.run_directory import open_directory
with open_directory(Path(sys.argv[1])):
    child = os.fork()  # a loading process that outlives its parent
    if child:
        print(child, flush=True)
    time.sleep(60)
"""


def test_the_default_is_the_bundles_sibling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_directory("regnet-bundle") == tmp_path / "regnet-bundle.training"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert default_directory(".") == tmp_path / "here.training"


def test_a_second_run_is_refused_and_a_killed_one_is_not_in_the_way(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            with pytest.raises(DataError, match="another training is running in"), open_directory(tmp_path):
                pass
            process.kill()
            process.wait()
            with open_directory(tmp_path) as path:
                assert path == tmp_path
        finally:
            process.kill()
            os.kill(child, signal.SIGKILL)


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="give another --run-dir"), open_directory(tmp_path / "file" / "run"):
        pass


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("b", "is the bundle"),
        ("b/run", "is inside the bundle"),
        ("data", "is the folder of the images"),
        ("data/red", "is inside the folder of the images"),
        ("link/red", "is inside the folder of the images"),
        (".", r"has other files \(b\)"),
        ("notes", r"has other files \(run-tests.sh\)"),
        ("/", "has other files"),
    ],
)
def test_a_folder_of_something_else_is_no_run_directory(tmp_path: Path, place: str, reason: str) -> None:
    for folder in ("b", "data/red", "notes"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "data")
    (tmp_path / "notes" / "run-tests.sh").touch()
    with pytest.raises(UsageError, match=reason) as error:
        ensure_usable(tmp_path / place, tmp_path / "b", tmp_path / "data")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("place", ["new", "empty", "data/b.training", "used", "data/used.training"])
def test_new_empty_and_earlier_run_directories_can_be_used(tmp_path: Path, place: str) -> None:
    for folder in ("b", "data/red", "empty/lost+found"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("used", "data/used.training"):
        with open_directory(tmp_path / name) as used:
            (used / "checkpoint.safetensors").touch()
            (used / "mine.txt").touch()
    ensure_usable(tmp_path / place, tmp_path / "b", tmp_path / "data")


def test_there_is_room(bundle: Bundle, tmp_path: Path) -> None:
    before = sorted(bundle.path.iterdir())
    ensure_free_space(bundle, tmp_path)
    assert sorted(bundle.path.iterdir()) == before


@pytest.mark.parametrize(("full", "kind"), [("bundle", BundleError), ("run", DataError)])
def test_no_room_is_said_before_training(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str, kind: type[Exception]
) -> None:
    usage = namedtuple("usage", "total used free")
    run = tmp_path / "run"
    monkeypatch.setattr(
        run_directory.shutil, "disk_usage", lambda folder: usage(10**9, 0, 5 if folder.name == full else 10**9)
    )
    with pytest.raises(
        kind, match=f"{full} has 0 MB free and training needs .*: free some space first, nothing was trained"
    ):
        ensure_free_space(bundle, run)


def test_a_bundle_that_cannot_be_written_is_said_before_training(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(dir: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(BundleError, match="Read-only file system; nothing was changed"):
        ensure_free_space(bundle, tmp_path)


def test_every_new_run_has_a_folder_of_its_own(tmp_path: Path) -> None:
    names = []
    for _ in range(3):
        names.append(new_run_name(tmp_path))
        (tmp_path / names[-1]).mkdir()
    assert names == ["run-1", "run-2", "run-3"]
    (tmp_path / "run-x").mkdir()
    (tmp_path / "run-12").mkdir()
    assert new_run_name(tmp_path) == "run-13"
