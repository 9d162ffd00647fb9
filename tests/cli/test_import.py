"""`regnet-deploy import` and `weights` as they are typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_weights import X, as_library, weights_of
from hub_server import COMMIT, HubServer

from regnet_deploy.space.published import find_published


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.save({"state_dict": as_library("torchvision", weights_of(X), X), "epoch": 3}, tmp_path / "a.pth")
    return tmp_path / "a.pth"


def test_a_file_becomes_a_bundle_that_is_exported_and_predicts(cli: Any, file: Path, tmp_path: Path) -> None:
    done = cli("import", "a.pth", "-o", "b", "--resolution", 32, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "of torchvision: depths 1 1 2, widths 8 24 40" in done.stdout
    assert done.stderr.endswith("wrote b - next: regnet-deploy export b\n")
    assert "preprocessing as in the default test of torchvision" in done.stderr
    assert "the 5 classes have no names" in done.stderr
    exported = cli("export", "b", "--onnx", cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    assert "random" not in exported.stderr
    shown = cli("show", "b", cwd=tmp_path).stdout
    assert "Imported weights" in shown
    assert "a.pth, of torchvision (torch zip)" in shown


def test_weights_that_are_given_back_come_with_what_their_file_does_not_say(
    cli: Any, file: Path, tmp_path: Path
) -> None:
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\ne\n")
    options = [
        "--resolution",
        32,
        "--resize",
        36,
        "--stem-stride",
        1,
        "--labels",
        "labels.txt",
        "--std",
        "0.2,0.25,0.5",
    ]
    done = cli("import", "a.pth", "-o", "b", *options, cwd=tmp_path)
    assert "have no names" not in done.stderr
    given = cli("export-weights", "b", "--to", "torchvision", "-o", "back.pth", "--json", cwd=tmp_path)
    assert given.returncode == 0, given.stderr
    assert "short side of 36 pixels (bilinear), and their center of 32 x 32" in given.stderr
    assert "deviation 0.2 0.25 0.5 of RGB" in given.stderr
    assert "the stem has stride 1, where torchvision builds networks with 2" in given.stderr
    data = json.loads(given.stdout)
    assert (data["preprocessing"]["resize"], data["labels"]) == (36, ["a", "b", "c", "d", "e"])
    cli("import", "back.pth", "-o", "c", *options, cwd=tmp_path)
    first, second = (json.loads((tmp_path / name / "bundle.json").read_text()) for name in "bc")
    assert first["files"] == second["files"]


def test_a_gray_network_is_imported_and_given_back(cli: Any, tmp_path: Path) -> None:
    gray = replace(X, input_channels=1)
    torch.save(as_library("timm", weights_of(gray), gray), tmp_path / "a.pth")
    options = ("--resolution", 32, "--mean", "0.13", "--std", "0.31", "-o", "b")
    imported = json.loads(cli("import", "a.pth", *options, "--json", cwd=tmp_path).stdout)
    assert imported["architecture"]["input_channels"] == 1
    assert (imported["preprocessing"]["colours"], imported["preprocessing"]["mean"]) == ("L", [0.13])
    given = cli("export-weights", "b", "--to", "timm", "-o", "back.pth", cwd=tmp_path)
    assert "deviation 0.31 of gray in 0..1" in given.stderr
    assert "the stem takes one channel, where timm builds networks of RGB without in_chans=1" in given.stderr


def test_json_is_one_document(cli: Any, file: Path, tmp_path: Path) -> None:
    data = json.loads(cli("import", file, "-o", tmp_path / "b", "--json").stdout)
    assert data["architecture"]["widths"] == [8, 24, 40]
    assert data["imported"]["source"] == "torchvision"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.pth"], "cannot read none.pth: No such file"),
        (["a.pth", "--from", "vissl"], "a.pth has the names of torchvision, not of vissl"),
        (["a.pth", "--weights", "regnetx_003"], "no public weights 'regnetx_003'"),
        (["a.pth", "--mean", "0.5,0.5"], "three numbers for red, green and blue"),
        (["a.pth", "--std", "0.5,nan,0.5"], "not in the range"),
        (["a.pth", "--std", "0.5,0,0.5"], "not in the range 0.001<=x<=1"),
        (["a.pth", "--resolution", 64, "--resize", 32], "--resize 32 is smaller than the input of the network"),
        (["a.pth", "--labels", "none.txt"], "cannot read none.txt"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    cli_error: Callable[..., str], file: Path, tmp_path: Path, arguments: list[Any], said: str
) -> None:
    assert said in cli_error("import", *arguments, cwd=tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["a.pth"]


def test_a_repository_is_downloaded_because_it_is_named(
    cli: Any, cli_error: Callable[..., str], file: Path, tmp_path: Path, hub: HubServer
) -> None:
    hub.files["me/net/pytorch_model.bin"] = file.read_bytes()
    done = cli("import", "hf:me/net", "-o", "b", "--resolution", 32, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "of torchvision: depths 1 1 2" in done.stdout
    assert f"hf:me/net@{COMMIT}" in cli("show", "b", cwd=tmp_path).stdout
    asked = len(hub.requests)
    assert "already holds weights" in cli_error("import", "hf:me/net", "-o", "b", cwd=tmp_path)
    assert len(hub.requests) == asked  # nothing is downloaded that could not be used
    assert "has no model.safetensors and no pytorch_model.bin" in cli_error("import", "hf:me/none", cwd=tmp_path)
    assert not (tmp_path / "regnet-bundle").exists()


def test_public_weights_are_downloaded_by_name_with_or_without_the_option(
    cli: Any, cli_error: Callable[..., str], tmp_path: Path, hub: HubServer
) -> None:
    network = find_published("regnetx_002").network
    weights = tmp_path / "w.pth"
    torch.save(as_library("timm", weights_of(network, 1000), network), weights)
    hub.files["timm/regnetx_002.pycls_in1k/pytorch_model.bin"] = weights.read_bytes()
    for arguments in (["regnetx_002.pycls_in1k"], ["--weights", "regnetx_002.pycls_in1k"]):
        done = cli("import", *arguments, "-o", "b", "--force", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "Public weights: regnetx_002.pycls_in1k, license MIT, 68.76 % top-1" in done.stdout
        assert "regnet-deploy evaluate b --data DIR --expect\n" in done.stderr
    assert "give a file, hf:OWNER/NAME, an http or https address, or the name" in cli_error("import", cwd=tmp_path)


def test_weights_are_listed_by_a_part_of_their_name(cli: Any, cli_error: Callable[..., str]) -> None:
    done = cli("weights", "y_016")
    assert "regnety_016.tv2_in1k" in done.stdout
    assert "80.67" in done.stdout
    assert len(json.loads(cli("weights", "--json").stdout)) == 196
    assert "no public weights have 'resnet' in their name" in cli_error("weights", "resnet")
