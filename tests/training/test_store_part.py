"""Processes that a launcher starts again read nothing that those before them have left in its store."""

import datetime
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from regnet_deploy.training.store_part import part_of_this_start

PATIENT, IMPATIENT = datetime.timedelta(seconds=60), datetime.timedelta(milliseconds=100)


def _start(shared: Any, delays: list[float]) -> list[Any]:
    """Start as many processes as there are delays, in threads; return their parts of the store."""

    def join(rank: int) -> Any:
        time.sleep(delays[rank])
        return part_of_this_start(shared, rank, len(delays), PATIENT)

    with ThreadPoolExecutor(len(delays)) as pool:
        return list(pool.map(join, range(len(delays))))


@pytest.mark.parametrize("delays", [[0.0, 0.2, 0.2], [0.2, 0.0, 0.0], [0.1, 0.0, 0.2], [0.0, 0.0]])
def test_processes_that_start_share_a_part_that_is_empty(delays: list[float]) -> None:
    shared = dist.HashStore()
    for part in _start(shared, [0.0, 0.0, 0.0]):
        part.set("0", "address of a process that has ended")
    parts = _start(shared, delays)
    for rank, part in enumerate(parts):
        assert not part.check(["0"])
        part.set(f"own {rank}", str(rank))
    for part in parts:
        assert [part.get(f"own {rank}") for rank in range(len(parts))] == [b"0", b"1", b"2"][: len(parts)]


def test_processes_that_do_not_come_are_an_error() -> None:
    shared = dist.HashStore()
    _start(shared, [0.0, 0.0])
    with pytest.raises(RuntimeError, match="1 of 2 processes have started"):
        part_of_this_start(shared, 0, 2, IMPATIENT)
    with pytest.raises(RuntimeError):
        part_of_this_start(dist.HashStore(), 1, 2, IMPATIENT)


RESTARTED = """
import os, signal, sys, time
from regnet_deploy.training.distributed import process_group

again, rank = os.environ["TORCHELASTIC_RESTART_COUNT"] != "0", int(os.environ["RANK"])
if again and rank:  # the first process is early, and would find the addresses of those before
    time.sleep(3)
with process_group("cpu") as group:
    if not again and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    print(f"sum {group.sum([rank])}", flush=True)
"""


@pytest.mark.slow
def test_torchrun_connects_the_processes_that_it_starts_again(tmp_path: Path) -> None:
    (tmp_path / "restarted.py").write_text(RESTARTED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", "1", str(tmp_path / "restarted.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("sum [1.0]") == 2
