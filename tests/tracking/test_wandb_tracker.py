"""Weights & Biases without a network: what its files on the disk have."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("wandb", reason="needs W&B (extra [wandb])")

#: W&B starts a process and threads, which the process of the tests is spared.
_PROGRAM = """
import sys
from pathlib import Path
from regnet_deploy.tracking.tracker import TrackedRun
from regnet_deploy.tracking.wandb_tracker import open_wandb
step, status = int(sys.argv[1]), sys.argv[2]
tracker = open_wandb(TrackedRun("bundle run-1", Path("run-1"), step, {"recipe/lr": 0.1, "data/digest": "0123"}))
print(tracker.place)
tracker.scalars({"step/loss": 2.0}, step + 1)
tracker.scalars({"step/loss": 1.0, "epoch/val_top1": 0.5}, step + 2)
tracker.result({"final/val_top1": 0.5, "bundle_sha256": "abcd"})
tracker.close(status)
"""


def track(folder: Path, step: int = 0, status: str = "finished", **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment = {**kept, "HOME": str(folder), "NETRC": str(folder / "netrc"), **variables}
    command = [sys.executable, "-c", _PROGRAM, str(step), status]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def records(file: Path) -> list[Any]:
    """Return the records of an offline run: a log of LevelDB with messages of W&B's protocol."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, found, part = file.read_bytes(), 7, [], b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            found.append(Record.FromString(part))
            part = b""
    return found


def test_an_offline_run_has_its_parameters_values_and_result(tmp_path: Path) -> None:
    result = track(tmp_path, WANDB_MODE="offline")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert result.stdout.startswith("offline, to be sent with: wandb sync ")
    (file,) = (tmp_path / "run-1" / "wandb").glob("offline-run-*/*.wandb")
    found = records(file)
    (run,) = (each.run for each in found if each.HasField("run"))
    assert (run.project, run.display_name) == ("regnet-deploy", "bundle run-1")
    config = {item.key or item.nested_key[0]: item.value_json for item in run.config.update}
    assert (config["recipe/lr"], config["data/digest"]) == ("0.1", '"0123"')
    rows = [
        {item.key or item.nested_key[0]: json.loads(item.value_json) for item in each.history.item}
        for each in found
        if each.HasField("history")
    ]
    assert [(row["step"], row["step/loss"]) for row in rows] == [(1, 2.0), (2, 1.0)]
    summary = {
        item.key or item.nested_key[0]: item.value_json
        for each in found
        if each.HasField("summary")
        for item in each.summary.update
    }
    assert (summary["bundle_sha256"], summary["final/val_top1"]) == ('"abcd"', "0.5")


def test_a_run_that_continues_has_the_same_number(tmp_path: Path) -> None:
    assert track(tmp_path, 0, "interrupted", WANDB_MODE="offline").returncode == 0
    assert track(tmp_path, 2, WANDB_MODE="offline").returncode == 0
    names = {file.name for file in (tmp_path / "run-1" / "wandb").glob("offline-run-*/*.wandb")}
    assert names == {f"run-{json.loads((tmp_path / 'run-1' / 'wandb.json').read_bytes())['run_id']}.wandb"}


def test_without_a_key_it_says_what_to_do(tmp_path: Path) -> None:
    result = track(tmp_path)
    assert "regnet_deploy.errors.UsageError: W&B cannot be used: No API key configured" in result.stderr
    assert "WANDB_MODE=offline keeps the run on the disk" in result.stderr


def test_a_wrong_variable_is_one_line(tmp_path: Path) -> None:
    result = track(tmp_path, WANDB_MODE="offlin")
    assert "regnet_deploy.errors.UsageError: W&B cannot be used" in result.stderr
