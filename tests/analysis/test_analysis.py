"""An analysis holds what every module of the room says, and gets by with what a source knows."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from regnet_deploy.analysis.analysis import analyze
from regnet_deploy.analysis.best_range import best_range, refined_ranges
from regnet_deploy.analysis.line_fit import fit_line
from regnet_deploy.errors import UsageError
from regnet_deploy.populations.trials import Trials
from regnet_deploy.space.spaces import AnyNetSpace


def bare(*errors, space="bare"):
    return Trials(space, np.array(errors, dtype=np.float64), {})


def test_everything_is_there(population):
    one, other = population("A", seed=1), population("B", seed=2, base=30.0)
    made = analyze([one, other], repeats=200, seed=3)
    assert [p.name for p in made.populations] == ["A", "B"]
    first = made.populations[0]
    assert [r.column for r in first.ranges] == ["w_1", "g", "d", "macs", "parameters", "activations", "e_fit"]
    assert [r.column for r in first.rankings] == [r.column for r in first.ranges]
    assert first.ranges[1] == best_range("g", one.columns["g"], one.error, repeats=200, seed=3)
    assert first.fits[5] == fit_line(one.networks[5])
    assert list(made.normalized) == ["macs", "parameters", "activations"]
    assert [(d.first, d.second, d.better) for d in made.distances] == [("A", "B", "B")]
    assert len(first.search.expected) == len(one)


def test_the_same_seed_is_the_same_analysis_and_the_ranges_are_those_of_refine(population):
    trials = population()
    made = analyze([trials], repeats=200)
    assert made.to_json() == analyze([trials], repeats=200).to_json()
    refined = refined_ranges(AnyNetSpace("A", stages=2), replace(trials, drawn=("w_1",)), repeats=200)
    ranges = {r.column: (r.low, r.median, r.high) for r in made.populations[0].ranges}
    assert refined == {"w_1": ranges["w_1"]}


def test_columns_that_are_asked_for_are_looked_at(population):
    made = analyze([population(), bare(30, 40)], repeats=50, columns=["ms", "b", "e_fit", "ms"])
    assert [r.column for r in made.populations[0].ranges] == ["ms", "b", "e_fit"]
    assert made.populations[0].ranges[0].n == 16
    assert [r.column for r in made.populations[0].rankings] == ["ms", "e_fit"]  # b does not vary
    assert made.populations[1].ranges == ()


def test_json_is_plain_and_says_its_units(population):
    made = analyze([population("A"), population("B", seed=1)], repeats=50)
    data = json.loads(json.dumps(made.to_json(), allow_nan=False))
    assert data["bootstrap"] == {"share": 0.25, "repeats": 50, "seed": 0}
    first = data["populations"][0]
    assert first["min_error_percent"] == min(first["errors_percent"])
    assert first["errors_percent"] == sorted(first["errors_percent"])
    assert set(first["best_ranges"][0]) == {"column", "n", "p2_5", "p50", "p97_5", "least", "most"}
    assert len(first["line_fits"]) == first["n"] == 24
    assert len(data["normalised"]["macs"]["bin_edges"]) == 11
    assert [p["name"] for p in data["normalised"]["macs"]["populations"]] == ["A", "B"]


def test_two_populations_of_one_name_are_counted():
    made = analyze([bare(30, 40), bare(31, 41), bare(32, 42)])
    assert [p.name for p in made.populations] == ["bare", "bare (2)", "bare (3)"]


def test_errors_alone_are_enough():
    made = analyze([bare(30, 40), bare(31, 41, 51, space="other")])
    assert [p.ranges + p.rankings + p.fits for p in made.populations] == [(), ()]
    assert made.normalized == {}


def test_equal_errors_rank_nothing_and_warn_of_nothing(population):
    trials = population()
    made = analyze([replace(trials, error=np.full(len(trials), 40.0))], repeats=50)
    assert made.populations[0].rankings == ()
    assert made.populations[0].distribution.median == 40
    assert made.populations[0].search.deviation.max() == 0
    json.dumps(made.to_json(), allow_nan=False)


def test_two_networks_are_enough(population):
    made = analyze([population(n=2)], repeats=50, min_networks=2)
    assert made.populations[0].rankings == ()
    assert made.populations[0].ranges
    json.dumps(made.to_json(), allow_nan=False)


def test_of_too_few_networks_the_errors_are_described_and_nothing_is_concluded(population):
    made = analyze([population("few", n=19), population("A", n=20), population("B", n=20, seed=1)], repeats=50)
    few, enough, _ = made.populations
    assert (few.ranges, few.rankings) == ((), ())
    assert few.distribution.n == 19
    assert enough.ranges
    assert enough.rankings
    assert [(d.first, d.second) for d in made.distances] == [("A", "B")]
    assert "few has too few networks, 19 of 20 that are needed" in " ".join(made.remarks)
    json.dumps(made.to_json(), allow_nan=False)


def test_remarks_of_the_source_are_kept(population):
    made = analyze([replace(population(), remarks=("left out: 3",))], repeats=50)
    assert "left out: 3" in made.remarks


@pytest.mark.parametrize(
    ("populations", "options", "message"),
    [
        ([], {}, "no population"),
        ([bare(30)], {}, "bare has 1 trained network; an analysis needs 2 or more"),
        ([bare(30, 40), bare(space="none")], {}, "none has 0 trained networks"),
        ([bare(30, float("nan"))], {}, "1 of 2 errors of bare are not numbers"),
        ([bare(30, 40)], {"columns": ["macs"]}, "no population has a column 'macs'"),
        ([bare(30, 40)], {"share": 0.0}, "bootstrap sample"),
        ([bare(30, 40)], {"repeats": 0}, "at least 1 repeat"),
    ],
)
def test_what_cannot_be_analyzed_is_one_line(populations, options, message):
    with pytest.raises(UsageError, match=message) as caught:
        analyze(populations, **options)
    assert "\n" not in str(caught.value)


def test_unsuccessful_networks_and_other_conditions_are_remarked(population):
    one = replace(population("A"), unsuccessful=6, conditions={"epochs": "1", "lr": "0.05", "resolution": "32"})
    other = replace(population("B", seed=1), conditions={"epochs": "100", "lr": "0.05", "flip": "True"})
    made = analyze([one, other], repeats=50)
    assert len(made.remarks) == 2
    assert made.remarks[0].startswith("A: 6 of 30 networks diverged or failed")
    assert made.remarks[1] == "the populations were trained under different conditions: they differ in epochs (1, 100)"
    assert made.to_json()["populations"][0]["lost"] == 6
    assert made.to_json()["remarks"] == list(made.remarks)
    assert analyze([population("A"), population("B", seed=1)], repeats=50).remarks == ()


@pytest.mark.parametrize("classes", ["cats", "0", "", "nan"])
def test_classes_that_are_no_number_of_classes_are_passed_over(classes):
    assert analyze([replace(bare(99.5, 99.9), conditions={"classes": classes})]).remarks[1:] == ()
