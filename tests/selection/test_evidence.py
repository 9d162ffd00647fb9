"""Evidence is judged by what it left out, decides where it predicts, and does not where it cannot."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from regnet_deploy.errors import UsageError
from regnet_deploy.populations.trials import Trials
from regnet_deploy.selection.evidence import fit_evidence, read_evidence, trend_scores
from regnet_deploy.selection.ridge_regression import leave_one_out
from regnet_deploy.selection.shape_features import REGRESSORS, fit_baseline, regressors
from regnet_deploy.selection.trends import fit_trends
from regnet_deploy.selection.trial_set import TrialSet
from regnet_deploy.space.enumeration import ConstrainedSpace, regnets_between
from regnet_deploy.space.published import baselines


@pytest.fixture
def trial_set(population, laws):
    return lambda law, **options: TrialSet.of_trials(population(laws[law], **options), "x", f"{law}.csv")


@pytest.mark.parametrize("law", ["deep", "groups"])
def test_a_planted_law_is_recovered(trial_set, law):
    evidence = fit_evidence([trial_set(law)], "x")
    assert evidence.decides
    assert evidence.regression.rmse < 0.3  # the noise alone is 0.1
    assert evidence.regression.explained_variance > 0.9
    assert evidence.regression.spearman > 0.9
    assert evidence.regression.rmse < evidence.prior.rmse
    assert evidence.trials == 60


def test_the_coefficients_name_what_was_planted(trial_set):
    depth = fit_evidence([trial_set("deep", n=200)], "x").to_json()["points_per_deviation"]
    assert set(depth) == set(REGRESSORS)
    assert min(depth, key=depth.get) == "depth"


@pytest.mark.parametrize("seed", range(8))
def test_noise_does_not_decide(trial_set, seed):
    evidence = fit_evidence([trial_set("noise", n=30, seed=seed)], "x")
    assert not evidence.decides
    assert evidence.regression.explained_variance < 0.2


def test_the_figures_are_those_of_the_left_out_predictions(trial_set):
    trials = trial_set("deep", n=25)
    evidence = fit_evidence([trials], "x")
    group = np.zeros(25, dtype=int)
    predicted = leave_one_out(regressors(fit_baseline("x").shapes(trials.stages)), trials.errors, group)
    mean = (trials.errors.sum() - trials.errors) / 24
    squares, of_mean = ((each - trials.errors) ** 2 for each in (predicted, mean))
    assert evidence.regression.rmse == pytest.approx(np.sqrt(squares.mean()))
    assert evidence.regression.explained_variance == pytest.approx(1 - squares.sum() / of_mean.sum())
    assert evidence.regression.spearman == pytest.approx(stats.spearmanr(predicted, trials.errors).statistic)
    assert evidence.mean.rmse == pytest.approx(np.sqrt(of_mean.mean()))
    assert evidence.mean.spearman is None
    assert evidence.mean.explained_variance == 0


def test_the_prior_is_a_line_through_the_score_left_out_and_the_rank_of_the_score(trial_set):
    trials = trial_set("deep", n=25)
    evidence = fit_evidence([trials], "x")
    scores = trend_scores([trials], "x")
    assert scores == pytest.approx(fit_trends(baselines("x")).log_likelihood(trials.parameters, trials.reference_macs))
    misses = []
    for i in range(25):
        kept = np.arange(25) != i
        slope, level = np.polyfit(scores[kept], trials.errors[kept], 1)
        misses.append(level + slope * scores[i] - trials.errors[i])
    assert evidence.prior.rmse == pytest.approx(np.sqrt(np.mean(np.square(misses))))
    assert evidence.prior.spearman == pytest.approx(stats.spearmanr(-scores, trials.errors).statistic)


def test_where_the_prior_is_the_law_the_regression_does_not_decide(population):
    scores = {}

    def law(columns, noise):
        parameters = np.stack([columns[name] for name in ("d", "w_0", "w_a", "w_m", "g")], axis=1)
        scores["of"] = fit_trends(baselines("x")).log_likelihood(parameters, columns["macs"])
        return 40 - scores["of"] + 0.1 * noise

    evidence = fit_evidence([TrialSet.of_trials(population(law), "x", "a.csv")], "x")
    assert evidence.prior.rmse < 0.2
    assert evidence.prior.spearman > 0.99
    assert not evidence.decides


def test_without_the_parameters_of_a_line_there_is_no_prior_and_the_mean_is_to_beat(population, laws):
    made = population(laws["deep"])
    anynets = Trials("AnyNetX_E", made.error, {"d": made.columns["d"]}, made.networks)
    evidence = fit_evidence([TrialSet.of_trials(anynets, "x", "a.csv")], "x")
    assert evidence.prior is None
    assert evidence.to_json()["left_out"]["prior"] is None
    assert evidence.decides


def test_two_sweeps_share_what_matters_and_each_has_its_level(trial_set):
    first, second = trial_set("deep", n=30), trial_set("deep", n=30, seed=1, macs=0.8e9)
    harder = replace(second, errors=second.errors + 25)
    alone, both = fit_evidence([first], "x"), fit_evidence([first, harder], "x")
    assert both.regression.rmse < 0.3
    assert both.mean.rmse < 3  # not the 12 points that a mean of both would miss by
    assert both.regression.spearman > 0.9
    assert both.reference_macs[1] > 1.9 * alone.reference_macs[0]
    rows = regnets_between(0.399e9, 0.401e9, ConstrainedSpace("x"), w_m_step=0.1)
    assert both.predict(rows)[0] == pytest.approx(alone.predict(rows)[0], abs=1.0)


def test_predictions_of_candidates_follow_the_law_within_what_was_swept(trial_set):
    evidence = fit_evidence([trial_set("deep", n=100)], "x")
    rows = regnets_between(0.399e9, 0.401e9, ConstrainedSpace("x"), w_m_step=0.02)
    predicted, extrapolated = evidence.predict(rows)
    assert 0 < extrapolated.mean() < 0.9
    truth = 40 - 6 * np.log(rows.d / 20)
    assert np.abs(predicted - truth)[~extrapolated].max() < 0.5


def test_depth_means_the_same_at_ten_times_the_macs(trial_set):
    evidence = fit_evidence([trial_set("deep", n=200)], "x")
    rows = regnets_between(3.99e9, 4.01e9, ConstrainedSpace("x"), w_m_step=0.02)
    predicted, extrapolated = evidence.predict(rows)
    assert (~extrapolated).any()
    assert stats.spearmanr(predicted[~extrapolated], rows.d[~extrapolated]).statistic < -0.9


def test_equal_errors_decide_nothing(population):
    evidence = fit_evidence([TrialSet.of_trials(population(lambda columns, noise: 40 + 0 * noise), "x", "a.csv")], "x")
    assert not evidence.decides
    assert evidence.regression.rmse == pytest.approx(0, abs=1e-9)
    assert evidence.regression.explained_variance == 0


def test_the_same_trials_from_two_files_are_refused(tmp_path, population, laws):
    made = population(laws["deep"], n=12)
    for name in ("a.csv", "b.csv"):
        lines = ["error,depths,widths,group_widths"]
        for error, network in zip(made.error, made.networks, strict=True):
            stages = (" ".join(map(str, getattr(network, n))) for n in ("depths", "widths", "group_widths"))
            lines.append(",".join([f"{error:.4f}", *stages]))
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    evidence = read_evidence([tmp_path / "a.csv"], "x")
    assert evidence.trials == 12
    assert len(evidence.trial_sets[0].sha256) == 64
    with pytest.raises(UsageError, match=r"a.csv and b.csv hold the same trials"):
        read_evidence([tmp_path / "a.csv", tmp_path / "b.csv"], "x")
