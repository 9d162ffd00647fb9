"""``measurements``: what it lists, merges, exports and refuses."""

from __future__ import annotations

import json

import pytest
from timed_networks import made_up

from regnet_deploy.latency.measuring import Setup
from regnet_deploy.latency.store import open_measurements
from regnet_deploy.space.network import Network

NETWORK = Network((1, 2), (16, 32), (8, 8), (1.0, 1.0))


@pytest.fixture
def store(monkeypatch, tmp_path):
    path = tmp_path / "measurements.sqlite"
    monkeypatch.setenv("REGNET_DEPLOY_MEASUREMENTS", str(path))
    with open_measurements(path) as opened:
        opened.add(made_up(NETWORK, Setup(threads=1, resolution=32), 1.25))
    return path


def test_measurements_of_this_machine_are_listed(cli, store, tmp_path):
    done = cli("measurements", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 measurements in" in " ".join(done.stdout.split())
    assert "1.25" in done.stdout
    data = json.loads(cli("measurements", "--json", cwd=tmp_path).stdout)
    assert data[0]["network"]["widths"] == [16, 32]


def test_an_export_is_merged_into_another_store_once(cli, store, tmp_path, monkeypatch):
    assert cli("measurements", "--export", "all.jsonl", cwd=tmp_path).returncode == 0
    monkeypatch.setenv("REGNET_DEPLOY_MEASUREMENTS", str(tmp_path / "other.sqlite"))
    for added in (1, 0):
        done = cli("measurements", "--merge", "all.jsonl", "--machine", "all", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert f"added {added} measurements of all.jsonl" in done.stderr
    assert "1.25" in done.stdout


def test_an_empty_store_says_what_makes_measurements(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("REGNET_DEPLOY_MEASUREMENTS", str(tmp_path / "none.sqlite"))
    done = cli("measurements", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "regnet-deploy calibrate" in done.stdout
    assert not (tmp_path / "none.sqlite").exists()


@pytest.mark.parametrize(("name", "text"), [("no.jsonl", None), ("bad.jsonl", "not JSON"), ("dir", "")])
def test_files_that_are_no_measurements_are_one_line(cli, store, tmp_path, name, text):
    if text == "":
        (tmp_path / name).mkdir()
    elif text is not None:
        (tmp_path / name).write_text(text)
    done = cli("measurements", "--merge", name, cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
