"""Killed with SIGKILL at any moment, a run ends with the very weights of one that was never interrupted."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from regnet_deploy.bundle import Bundle, create_bundle, find_damage, open_bundle

#: A checkpoint at every step.
ARGUMENTS = {
    "--batch-size": 8,
    "--crop-area": 0.5,
    "--device": "cpu",
    "--precision": "fp32",
    "--channels-last": "off",
    "--compile": "off",
    "--workers": 0,
    "--checkpoint-seconds": 0,
}


def start(bundle: Path, data: Path, epochs: int) -> subprocess.Popen[str]:
    arguments = [str(part) for pair in {**ARGUMENTS, "--epochs": epochs}.items() for part in pair]
    return subprocess.Popen(
        [sys.executable, "-m", "regnet_deploy", "train", str(bundle), "--data", str(data), *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(bundle: Path, data: Path, epochs: int) -> tuple[Bundle, str]:
    with start(bundle, data, epochs) as process:
        _, said = process.communicate(timeout=250)
    assert process.returncode == 0, said
    return open_bundle(bundle), said


def kill_after(bundle: Path, data: Path, epochs: int, seconds: float, line: str) -> str:
    """Start a run, wait for a line that starts so, then for so long, and kill the process; return what it had said."""
    said = ""
    with start(bundle, data, epochs) as process:
        assert process.stderr is not None
        for text in process.stderr:
            said += text
            if text.startswith(line):
                time.sleep(seconds)
                break
        os.kill(process.pid, signal.SIGKILL)
        said += process.stderr.read()
    return said


def kill_at(bundle: Bundle, data: Path, epochs: int, moments: list[tuple[str, float]]) -> str:
    said = ""
    for line, seconds in moments:
        said += kill_after(bundle.path, data, epochs, seconds, line)
        now = open_bundle(bundle.path)
        assert find_damage(now) == []
        assert now == bundle or "training" in now.parts
    return said


def test_a_killed_run_goes_on_to_the_same_bits(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    draw = random.Random(0)
    wanted, _ = finish(create_bundle(tmp_path / "whole", dict(bundle.parts)).path, data, 12)
    moments = [("epoch 3/", draw.uniform(0, 0.1)), ("epoch 7/", draw.uniform(0, 0.1))]
    said = kill_at(bundle, data, 12, moments)
    trained, said_last = finish(bundle.path, data, 12)
    assert "resuming at epoch" in said + said_last
    assert trained.files == wanted.files
    assert (
        trained.parts["training"]["history"][-1]["train_loss"] == wanted.parts["training"]["history"][-1]["train_loss"]
    )
    assert not (tmp_path / "bundle.training" / "checkpoint.safetensors").exists()


@pytest.mark.slow
def test_a_run_killed_again_and_again_goes_on_to_the_same_bits(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    draw = random.Random(1)
    wanted, _ = finish(create_bundle(tmp_path / "whole", dict(bundle.parts)).path, data, 40)
    lines = [
        "30 images",
        "running steps in",
        "resuming at",
        "epoch 5/",
        "epoch 12/",
        "epoch 20/",
        "epoch 24/",
        "epoch 25/",
    ]
    moments = [(line, draw.uniform(0, 0.3)) for line in lines for _ in range(3)]
    kill_at(bundle, data, 40, moments)
    trained, _ = finish(bundle.path, data, 40)
    assert trained.files == wanted.files
