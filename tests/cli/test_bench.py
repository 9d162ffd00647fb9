"""The command `bench` on a real server."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from regnet_deploy.bundle import update_bundle
from regnet_deploy.loading.servers import running_server


@pytest.fixture(scope="module")
def url(_exported: Path) -> Iterator[str]:
    """A server of the bundle."""
    with running_server(_exported, ["--variant", "onnx-fp32"]) as url:
        yield url


def test_rates_are_told_as_a_table_with_a_picture(here: Any, exported_bundle: Path, url: str, tmp_path: Path):
    picture, words = tmp_path / "rates.png", ["--rate", "20,40", "--duration", "0.4", "--warmup", "0.1"]
    done = here("bench", exported_bundle, "--url", url, *words, "--plot", picture)
    assert done.returncode == 0, done.stderr
    assert "16 golden images as tensors" in done.stdout
    assert "wrote" in done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("kind", ["tensor", "image"])
def test_rates_as_json_add_up_and_answers_are_right(here: Any, exported_bundle: Path, url: str, kind: str):
    words = ["--rate", "30", "--duration", "0.5", "--warmup", "0", "--arrivals", "constant", "--kind", kind, "--json"]
    done = here("bench", exported_bundle, "--url", url, *words)
    (row,) = json.loads(done.stdout)["rates"]
    assert row["requests"] == row["ok"] == row["latency"]["count"] == 15
    assert row["offered"] == 30


def test_rates_of_its_own_follow_the_capacity(here: Any, exported_bundle: Path, url: str):
    done = here("bench", exported_bundle, "--url", url, "--duration", "0.1", "--warmup", "0", "--json")
    assert "capacity: " in done.stderr
    assert len(json.loads(done.stdout)["rates"]) == 8


def test_a_closed_loop_tells_the_capacity(here: Any, exported_bundle: Path, url: str):
    done = here("bench", exported_bundle, "--url", url, "--closed", "2", "--duration", "0.2", "--warmup", "0")
    assert done.returncode == 0
    assert "2 in flight" in done.stdout


@pytest.mark.slow
def test_an_interrupted_run_prints_what_it_has(exported_bundle: Path, url: str):
    words = ["bench", str(exported_bundle), "--url", url, "--rate", "50,60", "--duration", "60", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "regnet_deploy", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    time.sleep(6)
    process.send_signal(signal.SIGINT)
    printed, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert said.endswith("regnet-deploy: interrupted\n")
    (row,) = json.loads(printed)["rates"]
    assert row["interrupted"]
    assert row["offered"] == 50


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--rate", "fast"], "'fast' is neither auto nor a list of rates such as 20,50,100"),
        (["--rate", "10,-1"], "holds a rate that is not above 0"),
        (["--rate", "10", "--closed", "4"], "give one of them"),
        (["--closed", "4", "--plot", "x.png"], "--plot draws latency by rate"),
        (["--plot", "x.gif"], "a picture is written as"),
        (["--url", "ftp://x"], "--url 'ftp://x' is not the address of a server"),
        (["--url", "http://127.0.0.1:1"], "no server answers at http://127.0.0.1:1"),
        (["--token-file", "nowhere"], "cannot read the token file nowhere"),
        (["--images", "nowhere"], "no image folder at nowhere"),
        (["--duration", "nan"], "--duration"),
    ],
)
def test_what_cannot_be_is_one_line(refused: Any, exported_bundle: Path, tmp_path: Path, words: list[str], says: str):
    assert says in refused("bench", exported_bundle, *words, cwd=tmp_path)


def test_a_wrong_model_and_a_bundle_without_golden_set_are_one_line(refused: Any, exported_bundle: Path, url: str):
    assert "no model 'other'" in refused("bench", exported_bundle, "--url", url, "--model", "other")
    update_bundle(exported_bundle, {}, drop=("golden", "golden.safetensors"))
    assert "export --onnx" in refused("bench", exported_bundle, "--url", url)
