"""Killed with SIGKILL at any moment, a sweep ends with the very results of one that was never interrupted."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from regnet_deploy.populations.store import Trial, TrialOutcome, read_store

Results = Callable[[dict[int, TrialOutcome]], dict[int, dict[str, Any]]]


@dataclass(frozen=True)
class Command:
    """`regnet-deploy sweep` with its options, but for the store."""

    arguments: tuple[str, ...]

    def start(self, store: Path, *more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "regnet_deploy", "sweep", "--store", str(store), *self.arguments, *more],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )

    def finish(self, store: Path, *more: str) -> str:
        with self.start(store, *more) as process:
            _, said = process.communicate(timeout=250)
        assert process.returncode == 0, said
        return said

    def kill(self, store: Path, *more: str, after: str = "", seconds: float = 0.0) -> str:
        """Start it, wait for a line that holds this, then so long, and kill it; return what it had said."""
        said = ""
        with self.start(store, *more) as process:
            assert process.stderr is not None
            for line in process.stderr if after else ():
                said += line
                if after in line:
                    break
            time.sleep(seconds)
            os.kill(process.pid, signal.SIGKILL)
            said += process.stderr.read()
        return said


@pytest.fixture
def command(data: Path, space_file: Path, as_options: list[str]) -> Callable[[int, int], Command]:
    def make(n: int, epochs: int = 2) -> Command:
        asked = ["--space", str(space_file), "--data", str(data), *as_options, "--n", str(n), "--epochs", str(epochs)]
        return Command(tuple(asked))

    return make


def read(store: Path) -> tuple[list[Trial], dict[int, TrialOutcome]]:
    with read_store(store) as opened:
        return opened.trials(), opened.outcomes()


def assert_subset(store: Path, wanted: Path, results: Results) -> int:
    """Check that what a killed sweep left is right as far as it goes; return how many outcomes there are."""
    if not store.exists():
        return 0
    (trials, found), (all_trials, all_found) = read(store), read(wanted)
    assert trials in ([], all_trials)
    assert results(found) == {number: results(all_found)[number] for number in found}
    return len(found)


def test_a_killed_sweep_goes_on_to_the_same_results(
    command: Callable[..., Command], results: Results, tmp_path: Path
) -> None:
    draw, sweep = random.Random(0), command(12)
    whole, killed = tmp_path / "whole.sweep", tmp_path / "killed.sweep"
    sweep.finish(whole, "--threads", "1")
    sweep.kill(killed, "--threads", "1", after="trial 2 ", seconds=draw.uniform(0, 0.1))
    done = assert_subset(killed, whole, results)
    assert done >= 3
    sweep.kill(killed, "--threads", "1", after="trial 7 ", seconds=draw.uniform(0, 0.1))
    assert assert_subset(killed, whole, results) >= 8
    said = sweep.finish(killed, "--threads", "1")
    assert "of 12 trials have an outcome" in said
    assert read(killed)[0] == read(whole)[0]
    assert results(read(killed)[1]) == results(read(whole)[1])
    assert not list(tmp_path.glob("*journal*"))


@pytest.mark.slow
def test_a_sweep_killed_again_and_again_goes_on_to_the_same_results(
    command: Callable[..., Command], results: Results, tmp_path: Path
) -> None:
    draw, sweep = random.Random(1), command(60, 6)
    whole, killed = tmp_path / "whole.sweep", tmp_path / "killed.sweep"
    sweep.finish(whole, "--threads", "1")
    done, kills = 0, 0
    while kills < 16 or (done < 60 and kills < 60):
        # By the clock, so that loading, drawing, planning and writing are hit too.
        sweep.kill(killed, "--threads", "1", seconds=draw.uniform(0.2, 5.0))
        now = assert_subset(killed, whole, results)
        assert now >= done
        done, kills = now, kills + 1
    sweep.finish(killed, "--threads", "1")
    assert read(killed)[0] == read(whole)[0]
    assert results(read(killed)[1]) == results(read(whole)[1])


def ended(pids: set[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.2)
    return False


def with_word(word: str, running: str = "") -> set[int]:
    """Processes in whose environment a word stands, and in whose command line another."""
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                environment, line = (folder / "environ").read_bytes(), (folder / "cmdline").read_bytes()
                if word.encode() in environment and running.encode() in line:
                    found.add(int(folder.name))
            except OSError:
                continue
    return found


@pytest.mark.slow
def test_on_ray_a_driver_that_is_killed_leaves_nothing_running_and_goes_on_to_the_same_results(
    command: Callable[..., Command], results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="needs Ray (extra [ray])")
    word = f"TEST_SWEEP_KILLED={tmp_path}"
    monkeypatch.setenv(*word.split("=", 1))
    draw, sweep = random.Random(2), command(24, 4)
    whole, killed = tmp_path / "whole.sweep", tmp_path / "killed.sweep"
    sweep.finish(whole, "--threads", "1")
    mine = with_word(word)
    done = 0
    for after in ("(2/24)", "(9/24)", "(18/24)"):
        sweep.kill(killed, "--ray", after=after, seconds=draw.uniform(0, 0.2))
        assert ended(with_word(word, "run_in_worker") - mine, 30), "trials outlive the sweep"
        now = assert_subset(killed, whole, results)
        assert now > done
        done = now
    sweep.finish(killed, "--ray")
    assert read(killed)[0] == read(whole)[0]
    assert results(read(killed)[1]) == results(read(whole)[1])
    assert ended(with_word(word) - mine, 100), "processes of Ray outlive the sweep"  # its agents look now and then
