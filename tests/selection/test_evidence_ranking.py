"""Evidence that predicts orders the candidates within the shapes of its trials, and the output gives the reasons."""

from __future__ import annotations

import json

import numpy as np
import pytest

from regnet_deploy.selection.budget import Budget
from regnet_deploy.selection.candidate_table import CandidateTable
from regnet_deploy.selection.evidence import fit_evidence
from regnet_deploy.selection.evidence_ranking import macs_extrapolation, rank_by_evidence
from regnet_deploy.selection.trends import fit_trends, score_population
from regnet_deploy.selection.trial_set import TrialSet
from regnet_deploy.space.enumeration import ConstrainedSpace, regnets_between
from regnet_deploy.space.published import baselines


@pytest.fixture(scope="module")
def candidates():
    def make(macs=0.4e9, w_m_step=0.02):
        rows = regnets_between(0.995 * macs, 1.005 * macs, ConstrainedSpace("x"), w_m_step=w_m_step)
        score, w_a = score_population(fit_trends(baselines("x")), rows)
        return CandidateTable(**vars(rows), w_a=w_a, score=score).take(rows.distinct_rows(score))

    return make


@pytest.fixture
def evidence(population, laws):
    return lambda law, **options: fit_evidence(
        [TrialSet.of_trials(population(laws[law], **options), "x", "mine.csv")], "x"
    )


def test_evidence_that_predicts_orders_those_within_first(evidence, candidates):
    rows = candidates()
    ranked, ranking = rank_by_evidence(evidence("deep"), rows)
    assert ranking.decides
    assert sorted(map(tuple, ranked.widths)) == sorted(map(tuple, rows.widths))
    within = int((~ranked.extrapolated).sum())
    assert 0 < within < len(rows)
    assert not ranked.extrapolated[:within].any()
    assert (np.diff(ranked.predicted_error[:within]) >= 0).all()
    assert (np.diff(ranked.predicted_error[within:]) >= 0).all()
    assert ranked.d[0] > rows.d[0]  # the law is that deeper is better; the score prefers about 18
    assert ranked.predicted_error[0] < ranking.error_of_best_score
    assert "lowest predicted error of 7 networks" in ranking.reason(ranked, "7 networks")


def test_every_column_is_sorted_with_the_others(evidence, candidates):
    ranked, _ = rank_by_evidence(evidence("deep"), candidates())
    score = fit_trends(baselines("x")).log_likelihood(ranked.parameters_of_trends(), ranked.reference_macs)
    assert ranked.score == pytest.approx(score)
    assert ranked.predicted_error == pytest.approx(evidence("deep").predict(ranked)[0])
    assert (ranked.extrapolated == evidence("deep").predict(ranked)[1]).all()
    assert ((ranked.w_a_low <= ranked.w_a) & (ranked.w_a <= ranked.w_a_high)).all()


def test_noise_leaves_the_order_of_the_score(evidence, candidates):
    rows = candidates()
    ranked, ranking = rank_by_evidence(evidence("noise", seed=1), rows)
    assert not ranking.decides
    assert (ranked.widths == rows.widths).all()
    assert (ranked.score == rows.score).all()
    assert ranked.predicted_error[0] == ranking.error_of_best_score
    note = ranking.notes(Budget(0.4e9), ranked)[0]
    assert "the regression is not significantly better, so the trend score ranks the candidates" in note


def test_no_candidate_within_the_shapes_of_the_trials_leaves_the_order_of_the_score(evidence, candidates):
    rows = candidates()
    fitted = evidence("deep")
    outside = rows.take(fitted.predict(rows)[1])
    ranked, ranking = rank_by_evidence(fitted, outside)
    assert fitted.decides
    assert not ranking.decides
    assert (ranked.score == outside.score).all()
    assert "no candidate is within the shapes of the trials" in ranking.notes(Budget(0.4e9), ranked)[0]


def notes_at(evidence, candidates, macs):
    ranked, ranking = rank_by_evidence(evidence, candidates(macs, w_m_step=0.05))
    return ranking.notes(Budget(macs), ranked)


def test_the_notes_say_on_how_much_how_good_and_how_far(evidence, candidates):
    fitted = evidence("deep")
    notes = notes_at(fitted, candidates, 4e9)
    assert len(notes) == 2
    assert notes[0].startswith("60 trials of mine.csv; on trials left out of the fit the regression has a root mean")
    assert "a line through the trend score" in notes[0]
    assert "0.388 to 0.412 GMACs (224 pixels); the first candidate has 4" in notes[1]
    assert "a factor of 9.7" in notes[1]
    assert "above them: the regression is extrapolated" in notes[1]
    below = notes_at(fitted, candidates, 0.1e9)[1]
    assert "a factor of 3.8" in below or "a factor of 3.9" in below
    assert "below them" in below
    assert "extrapolated" not in notes_at(fitted, candidates, 0.4e9)[1]


def test_other_classes_and_another_resolution_are_said(evidence, candidates):
    ranked, ranking = rank_by_evidence(evidence("deep"), candidates())
    notes = ranking.notes(Budget(0.4e9, resolution=64, classes=10), ranked)
    assert notes[2] == "the trials of mine.csv had 1,000 classes (here 10) and 224 pixels (here 64)"


def test_the_record_is_json_with_file_figures_and_baselines(evidence, candidates):
    ranked, ranking = rank_by_evidence(evidence("deep"), candidates())
    data = json.loads(json.dumps(ranking.to_json(Budget(0.4e9), ranked), allow_nan=False))
    assert data["trials"] == 60
    assert data["sources"][0]["file"] == "mine.csv"
    assert data["decides"] is True
    assert set(data["left_out"]) == {"regression", "prior", "mean"}
    assert data["left_out"]["regression"]["rmse"] < data["left_out"]["mean"]["rmse"]
    assert data["extrapolation_in_macs"] == 1
    assert data["predicted_error"] == pytest.approx(ranked.predicted_error[0], abs=1e-4)
    assert data["candidates_within"] == (~ranked.extrapolated).sum()


def test_extrapolation_is_the_factor_beyond_the_nearest_end(evidence):
    fitted = evidence("deep")
    least, most = fitted.reference_macs
    assert macs_extrapolation(fitted, most * 3) == pytest.approx(3)
    assert macs_extrapolation(fitted, least // 2) == pytest.approx(0.5)
    assert macs_extrapolation(fitted, (least + most) // 2) == 1
