"""A finished sweep of tiny networks, swept once by the command itself, and the program in a process of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regnet_deploy.cli.main import run

SPACE = """
name: tiny
kind: anynet
stages: 2
depth: {values: [1, 2], across: free}
width: {values: [8, 16, 24], across: free}
bottleneck: {values: [1, 2], across: free}
group_width: {values: [4, 8], across: free}
"""
COLOURS = {"blue": (40, 60, 200), "green": (30, 180, 60), "red": (210, 40, 50)}
#: What `sweep` is given beside space, images and store.
SMALL = ["--n", "8", "--mmacs", "0.1:3", "--resolution", "16", "--epochs", "1", "--batch-size", "8", "--device", "cpu"]
SMALL += ["--threads", "1"]

Call = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def program() -> Call:
    """The program in a process of its own; ``prelude`` is Python that comes first."""

    def call(*arguments: object, prelude: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        code = f"{prelude}\nfrom regnet_deploy.cli.main import run; run()"
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"},
            timeout=200,
            cwd=cwd,
        )

    return call


@pytest.fixture
def here(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """The program in this process, which has imported what is heavy before."""

    def call(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        words = [str(argument) for argument in arguments]
        monkeypatch.chdir(cwd or Path.cwd())
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            run(words)
        printed, said = capfd.readouterr()
        assert isinstance(left.value.code, int)
        return subprocess.CompletedProcess(words, left.value.code, printed, said)

    return call


@pytest.fixture
def refused(program: Call, here: Call) -> Callable[..., str]:
    """Check that the program says one line, prints nothing and returns 2; return the line.

    With ``prelude`` it runs in a process of its own.
    """

    def call(*arguments: object, prelude: str = "", cwd: Path | None = None) -> str:
        done = program(*arguments, prelude=prelude, cwd=cwd) if prelude else here(*arguments, cwd=cwd)
        assert done.returncode == 2, done.stderr
        assert done.stdout == ""
        assert "Traceback" not in done.stderr
        (line,) = done.stderr.splitlines()
        assert line.startswith("regnet-deploy: ")
        return line

    return call


@pytest.fixture(scope="session")
def sweep_small() -> list[str]:
    return list(SMALL)


@pytest.fixture(scope="session")
def sweep_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 images to train on and 12 to validate with."""
    root, draw = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for part, count in (("train", 10), ("val", 4)):
        for name, colour in COLOURS.items():
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(colour + draw.normal(0, 90, (20, 18, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i:03d}.png")
    return root


@pytest.fixture(scope="session")
def sweep_space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("space") / "tiny.yaml"
    path.write_text(SPACE)
    return path


@pytest.fixture(scope="session")
def swept(
    program: Call, sweep_images: Path, sweep_space: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A finished sweep: its store, not to be changed, and what the command said."""
    pytest.importorskip("torch")
    store = tmp_path_factory.mktemp("swept") / "tiny.sweep"
    done = program("sweep", "--space", sweep_space, "--data", sweep_images, "--store", store, *SMALL, "--json")
    assert done.returncode == 0, done.stderr
    return store, done


@pytest.fixture
def store(swept: tuple[Path, object], tmp_path: Path) -> Path:
    """A finished sweep that the test may change."""
    return Path(shutil.copy(swept[0], tmp_path / "tiny.sweep"))
