"""A budget becomes the likeliest networks that meet it, or one line that says what exists."""

import math

import numpy as np
import pytest

from regnet_deploy.errors import UsageError
from regnet_deploy.selection.budget import Budget
from regnet_deploy.selection.bundle_parts import selection_parts
from regnet_deploy.selection.selection import (
    MIN_DISTANCE,
    diverse_ranks,
    published_candidate,
    ranked_by_measurement,
    select,
)
from regnet_deploy.space.complexity import network_complexity
from regnet_deploy.space.enumeration import Bounds
from regnet_deploy.space.published import find_published


@pytest.mark.parametrize("budget", [Budget(0.4e9), Budget(0.4e9, family="x"), Budget(16e6, resolution=32, classes=10)])
def test_the_pick_meets_the_budget_and_counts_as_said(budget):
    selection = select(budget)
    for rank in (0, 1, selection.considered // 2, selection.considered - 1):
        candidate = selection.candidate(rank)
        total = network_complexity(candidate.network, budget.resolution, budget.classes).total
        assert (candidate.macs, candidate.parameters, candidate.activations) == tuple(map(int, total))
        assert abs(candidate.macs / budget.macs - 1) <= budget.tolerance
        assert candidate.score <= selection.best.score


@pytest.mark.parametrize("budget", [Budget(0.2e9), Budget(32e9, family="x"), Budget(16e6, resolution=32, classes=10)])
def test_every_candidate_is_the_network_that_its_parameters_generate(budget):
    selection = select(budget)
    for rank in range(selection.considered):
        selection.candidate(rank)  # raises where it is another one


def test_the_same_budget_gives_the_same_pick():
    assert select(Budget(0.2e9)).best == select(Budget(0.2e9)).best


def test_any_takes_the_family_with_the_lower_expected_error():
    selection = select(Budget(0.4e9))
    assert selection.family == "y"
    assert selection.best.network.se_ratio == 0.25


def test_an_expected_error_is_stated_where_the_published_ones_were_measured():
    assert select(Budget(macs=0.1e9)).expectation is not None
    for other in (Budget(macs=0.1e9, resolution=112), Budget(macs=1.6e9, stem_stride=1)):
        made = select(other)
        assert made.expectation is None
        assert made.other_expectation is None
        assert selection_parts(made).selection.expected_error is None


def test_limits_hold_for_every_candidate():
    selection = select(Budget(0.4e9, max_parameters=4e6, max_activations=3.7e6, bounds=Bounds(d=(14, 16), g=(8, 8))))
    assert (selection.candidates.parameters <= 4e6).all()
    assert (selection.candidates.activations <= 3.7e6).all()
    assert set(selection.candidates.d) <= {14, 15, 16}
    assert set(selection.candidates.g) == {8}


def test_a_limit_that_none_meets_names_the_fewest():
    with pytest.raises(UsageError, match=r"no candidate has at most 0.1 M parameters: the minimum .* is \d"):
        select(Budget(0.4e9, max_parameters=1e5))


@pytest.mark.parametrize(("gmacs", "nearest"), [(1e9, "157.7"), (1e-4, "0.021")])
def test_beyond_the_space_the_nearest_is_named(gmacs, nearest):
    with pytest.raises(UsageError, match=f"the nearest has {nearest}"):
        select(Budget(gmacs * 1e9, family="y"))


def test_a_tolerance_that_is_too_narrow_names_the_nearest():
    with pytest.raises(UsageError, match=r"within 1e-07 % at 224 pixels; the nearest has 4\.0000"):
        select(Budget(4e9, tolerance=1e-9))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"macs": 0.0}, "above 0, got 0"),
        ({"macs": -4e9}, "above 0, got -4"),
        ({"macs": float("nan")}, "above 0, got nan"),
        ({"macs": float("inf")}, "above 0, got inf"),
        ({"tolerance": 0.0}, "tolerance must be above 0"),
        ({"resolution": 8}, "resolution must be 16 to 2048 pixels, got 8"),
        ({"classes": 0}, "classes must be 1 to 1,000,000, got 0"),
        ({"family": "z"}, "family must be one of any, x, y, got z"),
        ({"max_parameters": -1.0}, "max parameters must be finite and above 0"),
        ({"max_activations": math.inf}, "max activations must be finite and above 0, got inf"),
    ],
)
def test_what_cannot_be_a_budget_is_refused(wrong, said):
    with pytest.raises(UsageError, match=said):
        Budget(**{"macs": 4e9, **wrong})


def test_a_published_network_keeps_its_stages_at_another_resolution():
    entry = find_published("RegNetX-400MF")
    candidate = published_candidate(entry, Budget(1.0, resolution=32, classes=10))
    assert candidate.network.depths == entry.network.depths
    assert candidate.network.stem_stride == 1
    assert candidate.reference_macs == entry.macs


@pytest.fixture
def written(tmp_path, population):
    """Return a function that writes made-up trials as CSV."""

    def write(law, **options):
        made = population(law, **options)
        names = ("macs", "parameters", "activations", "d", "w_0", "w_a", "w_m", "g")
        lines = [",".join(["error", *names, "depths", "widths", "group_widths", "se_ratio"])]
        for i, network in enumerate(made.networks):
            stages = (" ".join(map(str, getattr(network, name))) for name in ("depths", "widths", "group_widths"))
            numbers = (repr(float(made.columns[name][i])) for name in names)
            lines.append(",".join([f"{made.error[i]:.4f}", *numbers, *stages, str(network.se_ratio)]))
        path = tmp_path / "mine.csv"
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


def test_evidence_of_a_law_picks_by_the_law(written, laws):
    budget = Budget(0.4e9, family="x")
    plain, ranked = select(budget), select(budget, [written(laws["groups"], n=80)])
    assert ranked.evidence_ranking.decides
    assert ranked.considered == plain.considered
    assert ranked.best.regnet.g > plain.best.regnet.g
    assert ranked.best.predicted_error == pytest.approx(40 - np.log2(ranked.best.regnet.g), abs=0.5)
    assert ranked.best.predicted_error < ranked.evidence_ranking.error_of_best_score
    assert "lowest predicted error of" in ranked.reason()
    for rank in (0, 1, ranked.considered // 2, ranked.considered - 1):
        candidate = ranked.candidate(rank)  # raises where it is another network than was counted
        total = network_complexity(candidate.network, 224, 1000).total
        assert (candidate.macs, candidate.parameters, candidate.activations) == tuple(map(int, total))


def test_evidence_of_noise_picks_as_without_it_and_shows_no_prediction(written, laws):
    budget = Budget(0.4e9, family="x")
    plain, ranked = select(budget), select(budget, [written(laws["noise"], n=40)])
    assert not ranked.evidence_ranking.decides
    assert ranked.best.regnet == plain.best.regnet
    assert ranked.reason() == plain.reason()
    assert (ranked.candidates.score == plain.candidates.score).all()
    assert ranked.best.predicted_error is None
    assert ranked.candidates.predicted_error[0] == pytest.approx(40, abs=1)


def test_where_the_family_is_left_open_evidence_decides_it(written, laws):
    path = written(laws["deep"], n=40)
    assert select(Budget(0.4e9), [path]).family == "x"
    assert select(Budget(0.4e9)).family == "y"


def test_evidence_about_the_other_family_names_the_option(written, laws):
    path = written(laws["deep"], n=20)
    with pytest.raises(UsageError, match=r"mine.csv has 0 usable trials of RegNetYs .* with --family x it is evidence"):
        select(Budget(0.4e9, family="y"), [path])


def test_evidence_of_squeeze_and_excitation_is_about_its_family(written, laws):
    selection = select(Budget(0.4e9), [written(laws["deep"], n=40, family="y")])
    assert selection.family == "y"
    assert selection.evidence_ranking.decides


@pytest.fixture(scope="module")
def selection():
    return select(Budget(4e8, family="x"))


def points(selection, ranks):
    return np.log(selection.candidates.take(np.array(ranks)).parameters_of_trends()) / selection.trends.spread


def test_the_best_is_among_them_and_each_is_apart_from_the_others(selection):
    ranks = diverse_ranks(selection, 9)
    assert ranks[0] == 0
    assert len(set(ranks)) == 9
    assert ranks == sorted(ranks)
    found = points(selection, ranks)
    gaps = np.sqrt(((found[:, None] - found[None]) ** 2).sum(axis=2))
    assert gaps[np.triu_indices(9, 1)].min() >= MIN_DISTANCE


def test_whoever_is_passed_over_is_near_a_better_one(selection):
    ranks = diverse_ranks(selection, 5)
    passed = [rank for rank in range(ranks[-1]) if rank not in ranks]
    for rank in passed:
        better = [each for each in ranks if each < rank]
        gaps = np.sqrt(((points(selection, better) - points(selection, [rank])) ** 2).sum(axis=1))
        assert gaps.min() < MIN_DISTANCE


def test_more_than_there_are_shapes_takes_nearer_ones(selection):
    ranks = diverse_ranks(selection, 500)
    assert len(set(ranks)) == 500


def test_more_than_there_are_takes_all():
    few = select(Budget(4e8, family="x", tolerance=0.0001))
    assert diverse_ranks(few, few.considered + 5) == list(range(few.considered))


@pytest.fixture(scope="module")
def measured(selection):
    return ranked_by_measurement(selection, [30, 0, 8], [{1: 40.0, 3: 20.0}, {1: 41.0, 3: 21.5}, {1: 50.0}], "photos")


def test_the_order_is_that_of_what_was_measured_and_the_others_follow(selection, measured):
    before = [selection.candidate(rank).regnet for rank in range(40)]
    after = [measured.candidate(rank).regnet for rank in range(40)]
    assert after[:3] == [before[30], before[0], before[8]]
    assert after[3:] == [regnet for rank, regnet in enumerate(before) if rank not in (30, 0, 8)]
    assert measured.considered == selection.considered


def test_a_candidate_has_the_error_of_its_longest_training(measured):
    assert [measured.candidate(rank).measured_error for rank in range(4)] == [20.0, 21.5, 50.0, None]


def test_the_reason_says_what_was_measured_on_what(measured):
    reason = measured.reason()
    assert "20.00 % top-1 error after 3 epochs" in reason
    assert "trained on photos" in reason
    assert "rank before training was 31" in reason


def test_the_bundle_keeps_every_round(measured):
    tried = selection_parts(measured).selection.tried
    assert tried["data"] == "photos"
    assert tried["candidates"][0] == {"rank_before": 31, "errors_percent": {"1": 40.0, "3": 20.0}}
    assert [each["rank_before"] for each in tried["candidates"]] == [31, 1, 9]


def test_a_gray_budget_is_met_by_networks_of_one_channel():
    budget = Budget(macs=2e7, resolution=32, classes=10, family="x", input_channels=1)
    selection = select(budget)
    for rank in (0, len(selection.candidates) // 2, len(selection.candidates) - 1):
        found = selection.candidate(rank)
        assert found.network.input_channels == 1
        assert (found.macs, found.parameters, found.activations) == network_complexity(found.network, 32, 10).total
        assert abs(found.macs / budget.macs - 1) <= budget.tolerance
    assert select(Budget(macs=4e8, family="x", input_channels=1)).expectation is None  # published errors are of RGB
    with pytest.raises(UsageError, match=r"input channels must be 1 \(gray\) or 3 \(RGB\), got 2"):
        Budget(macs=2e7, input_channels=2)
