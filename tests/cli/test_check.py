"""`check` prints findings with what to do, and ends as its help says."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def data(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 2)):
        for label in ("cat", "dog"):
            folder = tmp_path / "data" / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "data"


def test_a_good_folder(cli: Callable[..., Any], data: Path) -> None:
    done = cli("check", data, "--strict")
    assert (done.returncode, done.stderr) == (0, "")
    assert "to train on: 40 usable images in 2 classes" in done.stdout
    assert "Nothing was found." in done.stdout


@pytest.mark.parametrize(("strict", "code"), [((), 0), (("--strict",), 1)])
def test_something_serious(cli: Callable[..., Any], data: Path, strict: tuple[str, ...], code: int) -> None:
    shutil.copy(data / "train/cat/0.png", data / "val/cat/copy.png")
    done = cli("check", data, *strict)
    assert done.returncode == code
    lines = done.stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("- 1 of 5 validation images are exact copies"))
    assert "Serious" in lines[:at]
    assert lines[at + 1] == "  delete them from one of the two splits before you believe an accuracy"
    assert lines[at + 2] == "    train/cat/0.png = val/cat/copy.png"


def test_what_is_only_to_be_looked_at_is_not_serious(cli: Callable[..., Any], data: Path) -> None:
    (data / "train/cat/0.png").write_bytes(b"")
    done = cli("check", data, "--strict")
    assert done.returncode == 0
    assert "Serious" not in done.stdout
    assert "1 of 44 files are broken images" in done.stdout


def test_json_is_alone_on_stdout(cli: Callable[..., Any], data: Path) -> None:
    done = cli("check", data, "--json", "--html", data.parent / "check.html")
    found = json.loads(done.stdout)
    assert found["findings"] == []
    assert done.stderr == f"wrote {data.parent / 'check.html'}\n"
    assert (data.parent / "check.html").read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize("name", ["no", "file"])
def test_what_is_no_folder_is_one_line(cli_error: Callable[..., str], data: Path, name: str) -> None:
    (data.parent / "file").touch()
    assert f"no image folder at {data.parent / name}" in cli_error("check", data.parent / name)


def test_a_missing_bundle_is_said_before_images_are_read(cli_error: Callable[..., str], data: Path) -> None:
    assert "no bundle" in cli_error("check", data, "--bundle", data.parent / "no")


def test_a_terminal_of_80_columns_shows_every_line_whole(data: Path, start_cli: Callable[..., Any]) -> None:
    shutil.copy(data / "train/cat/0.png", data / "val/cat/copy.png")
    (data / "train/cat/notes.txt").write_text("x")
    outer, inner = pty.openpty()
    process = start_cli("check", data, COLUMNS="80", stdout=inner, stderr=subprocess.DEVNULL, TERM="xterm")
    os.close(inner)
    shown = b""
    while True:
        try:
            block = os.read(outer, 4096)
        except OSError:
            break
        shown += block
    process.wait()
    os.close(outer)
    lines = shown.decode().replace("\r", "").split("\n")
    assert any("exact copies" in line for line in lines)
    plain = [line.replace("\x1b[1m", "").replace("\x1b[0m", "") for line in lines if str(data) not in line]
    assert max(map(len, plain)) <= 80


def test_an_interrupted_check_continues_where_it_was(data: Path, start_cli: Callable[..., Any], tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    for i in range(200):
        Image.fromarray(draw.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(data / f"train/cat/more{i}.png")
    slow = (
        "import time\nfrom regnet_deploy.images import image_check as m\none = m.check_image\n"
        "def slow(source, index):\n    time.sleep(0.02)\n    return one(source, index)\nm.check_image = slow"
    )
    cache = tmp_path / "cache"
    process = start_cli("check", data, prelude=slow, XDG_CACHE_HOME=str(cache))
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size for path in cache.rglob("checked-*")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip() == "regnet-deploy: interrupted: what was read is kept, and the same command continues"
    (kept,) = cache.rglob("checked-*")
    before = len(kept.read_text().splitlines())
    assert 0 < before < 244
    done = start_cli("check", data, "--json", XDG_CACHE_HOME=str(cache))
    printed, _ = done.communicate(timeout=60)
    assert json.loads(printed)["usable"] == 244
    assert len(kept.read_text().splitlines()) == 244


def test_names_of_files_move_no_cursor(cli: Callable[..., Any], data: Path) -> None:
    (data / "train/cat" / "a\nb\x1b[31m.png").write_bytes(b"")
    (data / "val/cat" / "c\nd.png").write_bytes((data / "train/cat/0.png").read_bytes())
    shown = cli("check", data).stdout
    assert "\x1b" not in shown
    assert "    train/cat/a\\nb\\x1b[31m.png (empty file)" in shown.splitlines()
    assert "    train/cat/0.png = val/cat/c\\nd.png" in shown.splitlines()
