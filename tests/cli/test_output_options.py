"""Every option that names a file to write treats links, devices and suffixes alike."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from regnet_deploy.bundle import create_bundle
from regnet_deploy.bundle.manifest import Architecture
from regnet_deploy.cli.main import COMMANDS, load_command
from regnet_deploy.images.preprocessing import default_preprocessing
from regnet_deploy.space.network import Network

#: Options that name a file to write: (command, option) -> suffix, and other arguments of the command.
WRITTEN: dict[tuple[str, str], tuple[str, tuple[str, ...]]] = {
    ("show", "--html"): (".html", ("b",)),
    ("check", "--html"): (".html", ("images",)),
    ("analyze", "--html"): (".html", ("tiny.sweep",)),
    ("analyze", "--csv"): (".csv", ("tiny.sweep",)),
    ("analyze", "--refine"): (".yaml", ("tiny.sweep",)),
    ("select", "--plot"): (".svg", ("--gflops", "0.2", "-o", "new")),
    ("profile", "--plot"): (".svg", ("b",)),
    ("export", "--output"): (".onnx", ("b",)),
    ("bench", "--plot"): (".svg", ("b",)),
    ("measurements", "--export"): (".jsonl", ()),
    ("sweep", "--store"): ("", ("--space", "RegNetX", "--data", "images")),
    ("tune-training", "--store"): ("", ("b", "--data", "images")),
    ("tune-training", "--output"): (".yaml", ("b", "--data", "images")),
    ("select", "--store"): ("", ("--gflops", "0.2", "-o", "new", "--try", "2", "--data", "images")),
}
#: Options and arguments with a path that is read, or of a folder.
OTHERS = {
    *((command, "bundle_path") for command in COMMANDS),
    *((command, "--data") for command in ("train", "export", "evaluate", "sweep", "select", "tune-training")),
    *(("evaluate", option) for option in ("--csv", "--mistakes")),  # need images: tests/cli/test_evaluate.py
    *(("export", option) for option in ("--images", "--calibration")),
    *(("serve", option) for option in ("--token-file", "--tls-cert", "--tls-key")),
    *(("analyze", option) for option in ("files", "--figures")),
    ("predict", "paths"),
    ("check", "data"),
    *(("import", option) for option in ("file", "--labels", "--output")),
    ("select", "--output"),
    ("export-weights", "--output"),  # needs weights: tests/importing/test_export_weights.py
    ("select", "--evidence"),
    ("package", "--output"),
    ("measurements", "--merge"),
    ("train", "--run-dir"),
    ("tune-training", "--space"),
}


def path_options() -> set[tuple[str, str]]:
    found = set()
    for name in COMMANDS:
        command: click.Command = load_command(name)
        for parameter in command.params:
            if isinstance(parameter.type, click.Path):
                option = parameter.name if isinstance(parameter, click.Argument) else parameter.opts[-1]
                found.add((name, str(option)))
    return found


def test_every_option_with_a_path_is_known_here():
    assert path_options() - OTHERS == set(WRITTEN)


@pytest.fixture
def folder(store: Path, sweep_images: Path, tmp_path: Path) -> Path:
    network = Network((1,), (8,), (8,), (1.0,))
    architecture = Architecture.of(network, name="small", classes=3, resolution=16)
    parts = {"architecture": architecture.to_json(), "preprocessing": default_preprocessing(16).to_json()}
    create_bundle(tmp_path / "b", parts)
    shutil.copytree(sweep_images, tmp_path / "images")
    assert store.parent == tmp_path
    return tmp_path


@pytest.mark.parametrize(("command", "option"), WRITTEN)
def test_what_is_no_regular_file_and_another_format_are_refused_first(
    cli_error: Callable[..., str], folder: Path, command: str, option: str
):
    suffix, arguments = WRITTEN[command, option]
    os.mkfifo(folder / f"pipe{suffix}")
    (folder / f"link{suffix}").symlink_to(f"pipe{suffix}")
    (folder / f"null{suffix}").symlink_to("/dev/null")
    (folder / f"folder{suffix}").mkdir()
    names = sorted(os.listdir(folder))
    for name, said in (
        ("pipe", "is a pipe"),
        ("link", "leads to a pipe"),
        ("null", "leads to a device"),
        ("folder", "is a folder"),
        ("none/x", "there is no folder none"),
    ):
        line = cli_error(command, *arguments, option, f"{name}{suffix}", cwd=folder)
        assert said in line, line
    if suffix:
        for name in ("x.gif", "x"):
            assert f"got {name}" in cli_error(command, *arguments, option, name, cwd=folder)
    assert sorted(os.listdir(folder)) == names
    assert (folder / f"pipe{suffix}").is_fifo()


@pytest.mark.parametrize(
    ("command", "option"), [key for key in WRITTEN if key[0] not in ("bench", "sweep") and key[1] != "--store"]
)
def test_a_link_stays_and_its_file_is_written(cli: Any, folder: Path, command: str, option: str):
    suffix, arguments = WRITTEN[command, option]
    (folder / "site").mkdir()
    (folder / f"link{suffix}").symlink_to(f"site/there{suffix}")
    few = {"profile": ("--batch", "1", "--seconds", "0.05"), "analyze": ("--repeats", "20", "--min-networks", "2")}
    few["tune-training"] = ("--trials", "2", "--epochs", "1", "--device", "cpu")
    done = cli(command, *arguments, *few.get(command, ()), option, f"link{suffix}", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / f"link{suffix}").is_symlink()
    assert os.listdir(folder / "site") == [f"there{suffix}"]
    assert (folder / "site" / f"there{suffix}").stat().st_size > 30
