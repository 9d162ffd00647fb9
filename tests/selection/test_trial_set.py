"""Of a file, the trials that can be evidence are taken, the others counted, and too few refused in one line."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from regnet_deploy.errors import DataError, UsageError
from regnet_deploy.populations.trials import Trials
from regnet_deploy.selection.trial_set import TrialConditions, TrialSet
from regnet_deploy.space.complexity import network_complexity
from regnet_deploy.space.network import Network
from regnet_deploy.space.published import baselines


@pytest.fixture
def trials(population, laws):
    return population(laws["deep"], n=20)


def with_rows(trials, networks, errors):
    n = len(networks)
    columns = {name: np.append(values, [np.nan] * n) for name, values in trials.columns.items()}
    return replace(
        trials, networks=(*trials.networks, *networks), error=np.append(trials.error, errors), columns=columns
    )


def test_all_of_a_population_of_the_family_is_taken(trials):
    trial_set = TrialSet.of_trials(trials, "x", "a.csv")
    assert len(trial_set) == 20
    assert trial_set.excluded == {}
    assert (trial_set.errors == trials.error).all()
    assert trial_set.parameters[:, 0] == pytest.approx(trials.columns["d"])
    assert trial_set.reference_macs == pytest.approx(trials.columns["macs"])


def test_what_is_no_evidence_is_counted_by_what_it_is(trials):
    x, y = baselines("x")[0].network, baselines("y")[0].network
    three = Network((1, 2, 3), (32, 64, 128), (8, 8, 8), (1.0,) * 3)
    one = Network((3,), (32,), (8,), (1.0,))
    plain = Network((1, 1, 1, 1), (32, 64, 128, 256), (32, 64, 128, 256), (1.0,) * 4, block="vr")
    more = with_rows(
        trials,
        [x, y, three, one, plain, trials.networks[0], trials.networks[1]],
        [np.nan, 30, 30, 30, 30, trials.error[0], 99],
    )
    trial_set = TrialSet.of_trials(more, "x", "a.csv")
    assert len(trial_set) == 21  # the last is a network that was trained again
    assert trial_set.excluded == {
        "without an error": 1,
        "of family Y": 1,
        "with 3 stages": 1,
        "with 1 stage": 1,
        "of family VR": 1,
        "duplicated": 1,
    }
    assert np.isfinite(trial_set.errors).all()


def test_too_few_are_refused_with_what_there_is(trials):
    few = replace(
        trials,
        networks=trials.networks[:9],
        error=trials.error[:9],
        columns={name: values[:9] for name, values in trials.columns.items()},
    )
    with pytest.raises(
        UsageError,
        match=r"^a.csv has 9 usable trials of RegNetXs with 4 stages; evidence needs at least 10",
    ):
        TrialSet.of_trials(few, "x", "a.csv")


def test_trials_of_the_other_family_are_refused_with_the_option_that_uses_them(trials):
    with pytest.raises(UsageError, match=r"has 0 usable trials of RegNetYs .*, 20 of family X; .*--family x it is"):
        TrialSet.of_trials(trials, "y", "a.csv")


def test_a_population_without_networks_is_refused():
    with pytest.raises(UsageError, match=r"a.csv does not describe its networks: evidence needs the depths, widths"):
        TrialSet.of_trials(Trials("a", np.arange(20.0), {}), "x", "a.csv")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="no population at"):
        TrialSet.read(tmp_path / "none.csv", "x")


@pytest.mark.parametrize(
    ("resolution", "classes", "stem_stride"), [(224, 1000, 2), (32, 10, 1), (64, 2, 1), (96, 37, 2), (33, 1, 1)]
)
def test_classes_and_resolution_follow_from_the_counts(trials, resolution, classes, stem_stride):
    networks = tuple(Network(**{**vars(network), "stem_stride": stem_stride}) for network in trials.networks)
    totals = [network_complexity(network, resolution, classes).total for network in networks]
    columns = {name: np.array([float(getattr(each, name)) for each in totals]) for name in ("macs", "parameters")}
    trial_set = TrialSet.of_trials(replace(trials, networks=networks, columns=columns), "x", "a.csv")
    assert trial_set.conditions == TrialConditions(classes, resolution)
    assert np.isnan(trial_set.parameters).all()


def test_counts_by_other_rules_tell_nothing(trials):
    odd = {**trials.columns, "parameters": trials.columns["parameters"] + 0.5}
    assert TrialSet.of_trials(replace(trials, columns=odd), "x", "a.csv").conditions == TrialConditions(None, None)
    odd = {**trials.columns, "macs": trials.columns["macs"] + 1}
    assert TrialSet.of_trials(replace(trials, columns=odd), "x", "a.csv").conditions == TrialConditions(1000, None)
    assert TrialSet.of_trials(replace(trials, columns={}), "x", "a.csv").conditions == TrialConditions(None, None)


def test_the_same_trials_in_two_files_are_noticed(trials, population, laws):
    trial_set = TrialSet.of_trials(trials, "x", "a.csv")
    rounded = TrialSet.of_trials(replace(trials, error=trials.error.round(4)), "x", "b.csv")
    other = TrialSet.of_trials(population(laws["deep"], n=20, seed=1), "x", "c.csv")
    assert trial_set.overlaps(rounded)
    assert not trial_set.overlaps(other)
