"""The page of measurements says what the result files say, and no other page says otherwise."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

from regnet_deploy.populations.reader import read_trials
from regnet_deploy.space.known_spaces import known_spaces
from regnet_deploy.space.sampling import Band, draw_networks, networks_of

ROOT = Path(__file__).parents[1]


def test_the_page_is_written_from_the_results():
    assert (ROOT / "docs" / "measurements.md").read_text(encoding="utf-8") == load("measurements").page()


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_on_design_spaces_is_written_from_the_populations(monkeypatch):
    pytest.importorskip("scipy")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    page = (ROOT / "docs" / "design-spaces.md").read_text(encoding="utf-8")
    assert page == load("design_spaces").page()
    for figure in re.findall(r"\((figures/[^)]+)\)", page):
        assert (ROOT / "docs" / figure).is_file(), figure


def test_the_readme_quotes_the_ranking_that_was_measured():
    summary = json.loads((ROOT / "benchmarks" / "results" / "ranking.json").read_text(encoding="utf-8"))["summary"]
    shipped = summary["select's score"]
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"in the first {shipped['median']} % of their candidates (median; mean {shipped['mean']} %;" in readme


def test_the_page_on_selection_quotes_the_ranking_that_was_measured():
    summary = json.loads((ROOT / "benchmarks" / "results" / "ranking.json").read_text(encoding="utf-8"))["summary"]
    page = (ROOT / "docs" / "selection.md").read_text(encoding="utf-8")
    for row in summary.values():
        assert f"| {row['median']} | {row['mean']} |" in page


def test_sampling_is_a_hundred_times_as_fast_as_a_loop():
    results = json.loads((ROOT / "benchmarks" / "results" / "sampling.json").read_text(encoding="utf-8"))
    assert results["ratio"] >= 100
    assert results["compared"]["networks"] > 1000


def test_enough_candidates_were_found_in_less_than_two_seconds():
    results = json.loads((ROOT / "benchmarks" / "results" / "selection_time.json").read_text(encoding="utf-8"))
    for row in results["budgets"]:
        assert row["seconds"] < 2, row
        assert row["considered"] >= (1000 if row["gmacs"] >= 0.4 else 500), row


@pytest.mark.parametrize("space", ["AnyNetX_A", "AnyNetX_E", "RegNetX"])
def test_the_committed_populations_are_what_the_spaces_draw(space):
    trials = read_trials(ROOT / "profiles" / "populations" / f"glyphs32_{space}.csv")
    drawn = draw_networks(known_spaces()[space], 50, Band(4e6, 4.4e6, resolution=32, classes=62))
    assert trials.networks == tuple(networks_of(known_spaces()[space], drawn, 1))
    for name in ("macs", "parameters", "activations"):
        assert trials.columns[name].tolist() == getattr(drawn, name).tolist()


def test_the_page_on_precision_is_written_from_the_results(monkeypatch):
    pytest.importorskip("onnx")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    assert (ROOT / "docs" / "precision.md").read_text(encoding="utf-8") == load("precision_page").page()


def test_the_readme_quotes_the_speed_of_int8_that_was_measured(monkeypatch):
    pytest.importorskip("onnx")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = load("precision_page")
    low, median, high = module.speed_up(module.read("precision"), "int8-cpu", 1)
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"{low:.1f} to {high:.1f} times as fast as FP32 for one image (median {median:.1f})" in readme


def test_every_published_network_was_measured_in_every_precision():
    pytest.importorskip("onnx")
    from regnet_deploy.exporting.precision import PRECISIONS

    results = json.loads((ROOT / "benchmarks" / "results" / "precision.json").read_text(encoding="utf-8"))
    for part in ("errors", "deployed"):
        assert len(results[part]) == 18
        assert all(set(rows) == set(PRECISIONS) for rows in results[part].values())
