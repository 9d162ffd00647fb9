"""A budget becomes the likeliest networks that meet it, or one line that says what exists."""

from __future__ import annotations

import numpy as np
import pytest

from regnet_deploy.errors import UsageError
from regnet_deploy.selection.budget import Budget
from regnet_deploy.selection.selection import published_candidate, select
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
        assert candidate.score <= selection.pick.score


@pytest.mark.parametrize("budget", [Budget(0.2e9), Budget(32e9, family="x"), Budget(16e6, resolution=32, classes=10)])
def test_every_candidate_is_the_network_that_its_parameters_generate(budget):
    selection = select(budget)
    for rank in range(selection.considered):
        selection.candidate(rank)  # raises where it is another one


def test_the_same_budget_gives_the_same_pick():
    assert select(Budget(0.2e9)).pick == select(Budget(0.2e9)).pick


def test_any_takes_the_family_with_the_lower_expected_error():
    selection = select(Budget(0.4e9))
    assert selection.family == "y"
    assert selection.pick.network.se_ratio == 0.25


def test_limits_hold_for_every_candidate():
    selection = select(Budget(0.4e9, max_parameters=4e6, max_activations=3.7e6, bounds=Bounds(d=(14, 16), g=(8, 8))))
    assert (selection.population.parameters <= 4e6).all()
    assert (selection.population.activations <= 3.7e6).all()
    assert set(selection.population.d) <= {14, 15, 16}
    assert set(selection.population.g) == {8}


def test_a_limit_that_none_meets_names_the_fewest():
    with pytest.raises(UsageError, match=r"no candidate within 0.1 M parameters: .* the fewest are \d"):
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
        ({"max_parameters": -1.0}, "max parameters must be above 0"),
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
    assert ranked.weighed.decides
    assert ranked.considered == plain.considered
    assert ranked.pick.regnet.g > plain.pick.regnet.g
    assert ranked.pick.predicted_error == pytest.approx(40 - np.log2(ranked.pick.regnet.g), abs=0.5)
    assert ranked.pick.predicted_error < ranked.weighed.likeliest
    assert "lowest predicted error of" in ranked.reason()
    for rank in (0, 1, ranked.considered // 2, ranked.considered - 1):
        candidate = ranked.candidate(rank)  # raises where it is another network than was counted
        total = network_complexity(candidate.network, 224, 1000).total
        assert (candidate.macs, candidate.parameters, candidate.activations) == tuple(map(int, total))


def test_evidence_of_noise_picks_as_without_it_and_shows_no_prediction(written, laws):
    budget = Budget(0.4e9, family="x")
    plain, ranked = select(budget), select(budget, [written(laws["noise"], n=40)])
    assert not ranked.weighed.decides
    assert ranked.pick.regnet == plain.pick.regnet
    assert ranked.reason() == plain.reason()
    assert (ranked.scores == plain.scores).all()
    assert ranked.pick.predicted_error is None
    assert ranked.weighed.error_of(0) == pytest.approx(40, abs=1)


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
    assert selection.weighed.decides
