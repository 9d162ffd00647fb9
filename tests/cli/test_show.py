"""`show` prints the card as text or JSON, and writes the page."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


def run(*arguments, cwd):
    return subprocess.run([sys.executable, "-m", "regnet_deploy", *arguments], cwd=cwd, capture_output=True, text=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("show")
    assert run("select", "--gflops", "0.2", cwd=folder).returncode == 0
    return folder


def test_text(folder):
    done = run("show", cwd=folder)
    assert done.returncode == 0, done.stderr
    for title in ("Architecture", "Selection", "Training", "Complexity of one image", "Exports", "Written by"):
        assert title in done.stdout


def test_json(folder):
    card = json.loads(run("show", "--json", cwd=folder).stdout)
    assert card["architecture"]["resolution"] == 224
    assert [stage["stage"] for stage in card["stages"]] == ["stem", "s1", "s2", "s3", "s4", "head"]


def test_page(folder):
    pytest.importorskip("matplotlib")
    done = run("show", "--html", "card.html", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "card.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_page_that_cannot_be_written_is_one_line(folder):
    pytest.importorskip("matplotlib")
    done = run("show", "--html", "no/such/card.html", cwd=folder)
    assert done.returncode == 2
    assert "cannot write no/such/card.html: No such file or directory" in done.stderr
    assert len(done.stderr.splitlines()) == 1
