"""A finished sweep of tiny networks, swept once by the command itself, and the ways to run the program."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


@pytest.fixture(scope="session")
def start_cli() -> Callable[..., subprocess.Popen[str]]:
    """Start the program in a process of its own.

    ``prelude`` is Python that runs first, names in capitals are environment variables, others are options of Popen.
    """

    def start(*arguments: object, prelude: str = "", **options: Any) -> subprocess.Popen[str]:
        code = f"{prelude}\nfrom regnet_deploy.cli.main import run; run()"
        environment = {name: options.pop(name) for name in list(options) if name.isupper()}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160", **environment},
            **{**pipes, **options},
        )

    return start


@pytest.fixture(scope="session")
def cli_process(start_cli: Callable[..., subprocess.Popen[str]]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the program in a process of its own; the options are those of ``start_cli``."""

    def call(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        with start_cli(*arguments, **options) as process:
            try:
                printed, errors = process.communicate(timeout=200)
            except BaseException:
                process.kill()
                raise
        return subprocess.CompletedProcess([], process.returncode, printed, errors)

    return call


@pytest.fixture
def cli(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the program in this process, which has imported the heavy libraries already."""

    def call(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        words = [str(argument) for argument in arguments]
        capfd.readouterr()
        with monkeypatch.context() as patch:
            if cwd is not None:
                patch.chdir(cwd)
            with pytest.raises(SystemExit) as left:
                run(words)
        printed, errors = capfd.readouterr()
        assert isinstance(left.value.code, int)
        return subprocess.CompletedProcess(words, left.value.code, printed, errors)

    return call


@pytest.fixture
def cli_error(cli: Any, cli_process: Any) -> Callable[..., str]:
    """Run the program, check that it prints one line to stderr, nothing to stdout, and returns 2; return the line.

    With ``prelude`` it runs in a process of its own.
    """

    def call(*arguments: object, code: int = 2, prelude: str = "", cwd: Path | None = None) -> str:
        options: dict[str, Any] = {"prelude": prelude} if prelude else {}
        done = (cli_process if prelude else cli)(*arguments, cwd=cwd, **options)
        assert done.returncode == code, done.stderr
        assert done.stdout == ""
        assert "Traceback" not in done.stderr
        (line,) = done.stderr.splitlines()
        assert line.startswith("regnet-deploy: ")
        return str(line)

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
    cli_process: Any, sweep_images: Path, sweep_space: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A finished sweep: its store, not to be changed, and what the command said."""
    pytest.importorskip("torch")
    store = tmp_path_factory.mktemp("swept") / "tiny.sweep"
    done = cli_process("sweep", "--space", sweep_space, "--data", sweep_images, "--store", store, *SMALL, "--json")
    assert done.returncode == 0, done.stderr
    return store, done


@pytest.fixture
def store(swept: tuple[Path, object], tmp_path: Path) -> Path:
    """A finished sweep that the test may change."""
    return Path(shutil.copy(swept[0], tmp_path / "tiny.sweep"))
