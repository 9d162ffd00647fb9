"""The page of measurements says what the result files say, and no other page says otherwise."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_page_is_written_from_the_results():
    spec = importlib.util.spec_from_file_location("measurements", ROOT / "benchmarks" / "measurements.py")
    measurements = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(measurements)
    assert (ROOT / "docs" / "measurements.md").read_text(encoding="utf-8") == measurements.page()


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
