"""The wheel, installed in an empty environment, selects; what the extras promise holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_base_has_only_numpy_msgspec_and_the_libraries_of_the_command_line():
    assert [d.split(">")[0] for d in PROJECT["dependencies"]] == ["click", "msgspec", "numpy", "rich"]


def test_no_extra_but_cpu_and_gpu_names_an_onnxruntime():
    for name, wants in PROJECT["optional-dependencies"].items():
        if name not in ("cpu", "gpu"):
            assert not any("onnxruntime" in want for want in wants), name


def test_the_cpu_extra_has_the_fastest_runtime_of_x86_and_none_that_has_no_wheel():
    (openvino,) = (want for want in PROJECT["optional-dependencies"]["cpu"] if want.startswith("openvino"))
    assert openvino.endswith("; sys_platform == 'linux' and platform_machine == 'x86_64'")


def test_the_serving_extra_brings_no_torch():
    assert not any("torch" in want for want in PROJECT["optional-dependencies"]["serve"])


@pytest.fixture(scope="module")
def empty_environment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / "bin" / "python"
    install = [python, "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt"), str(wheel)]
    done = subprocess.run(install, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return python.parent


def run(environment, *arguments, cwd):
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [environment / "regnet-deploy", *arguments], cwd=cwd, capture_output=True, text=True, env=clean
    )


def test_the_wheel_selects_in_an_empty_environment(empty_environment, tmp_path):
    done = run(empty_environment, "select", "--gflops", "0.4", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["considered"] > 1000
    done = run(empty_environment, "select", "--published", "regnetx_002", "-o", "x", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (["train", "--data", "."], "train"),
        (["profile"], "profile"),
        (["export"], "export"),
        (["serve"], "serve"),
        (["select", "--gflops", "0.2", "-o", "p", "--plot", "a.png"], "plot"),
    ],
)
def test_a_missing_extra_is_one_line_that_names_the_pip_command(empty_environment, tmp_path, command, extra):
    assert run(empty_environment, "select", "--gflops", "0.2", cwd=tmp_path).returncode == 0
    done = run(empty_environment, *command, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert f"pip install 'regnet-deploy[{extra}" in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_every_help_works_without_any_extra(empty_environment, tmp_path):
    from regnet_deploy.cli.main import COMMANDS

    for name in COMMANDS:
        done = run(empty_environment, name, "--help", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
