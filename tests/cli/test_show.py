"""`show` prints the card as text or JSON, and writes the page."""

from __future__ import annotations

import json

import pytest


@pytest.fixture(scope="module")
def folder(cli_process, tmp_path_factory):
    folder = tmp_path_factory.mktemp("show")
    assert cli_process("select", "--gflops", "0.2", cwd=folder).returncode == 0
    return folder


def test_text(cli, folder):
    done = cli("show", cwd=folder)
    assert done.returncode == 0, done.stderr
    for title in ("Architecture", "Selection", "Training", "Complexity of one image", "Exports", "Written by"):
        assert title in done.stdout


def test_json(cli, folder):
    card = json.loads(cli("show", "--json", cwd=folder).stdout)
    assert card["architecture"]["resolution"] == 224
    assert [stage["stage"] for stage in card["stages"]] == ["stem", "s1", "s2", "s3", "s4", "head"]


def test_page(cli, folder):
    pytest.importorskip("matplotlib")
    done = cli("show", "--html", "card.html", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "card.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_page_that_cannot_be_written_is_one_line(cli, folder):
    pytest.importorskip("matplotlib")
    done = cli("show", "--html", "no/such/card.html", cwd=folder)
    assert done.returncode == 2
    assert "there is no folder no/such for card.html: create it first" in done.stderr
    assert len(done.stderr.splitlines()) == 1
