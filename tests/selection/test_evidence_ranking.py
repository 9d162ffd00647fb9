"""Candidates are ordered by evidence that predicts, within what was swept, and the output says on what grounds."""

from __future__ import annotations

import json

import numpy as np
import pytest

from regnet_deploy.selection.budget import Budget
from regnet_deploy.selection.evidence import fit_evidence
from regnet_deploy.selection.evidence_ranking import macs_extrapolation, rank_by_evidence
from regnet_deploy.selection.trends import fit_trends, score_population
from regnet_deploy.selection.trial_set import TrialSet
from regnet_deploy.space.enumeration import regnets_between
from regnet_deploy.space.published import baselines


@pytest.fixture(scope="module")
def candidates():
    def make(macs=0.4e9):
        rows = regnets_between(0.995 * macs, 1.005 * macs, family="x", w_m_step=0.02)
        order, scores = rows.distinct_rows(score_population(fit_trends(baselines("x")), rows)[0])
        return rows.take(order), scores

    return make


@pytest.fixture
def evidence(population, laws):
    return lambda law, **options: fit_evidence(
        [TrialSet.of_trials(population(laws[law], **options), "x", "mine.csv")], "x"
    )


def test_evidence_that_predicts_orders_those_within_first(evidence, candidates):
    rows, scores = candidates()
    order, weighed = rank_by_evidence(evidence("deep"), rows, scores)
    assert weighed.decides
    assert sorted(order) == list(range(len(rows)))
    within = int((~weighed.beyond).sum())
    assert 0 < within < len(rows)
    assert not weighed.beyond[:within].any()
    assert (np.diff(weighed.predicted[:within]) >= 0).all()
    assert (np.diff(weighed.predicted[within:]) >= 0).all()
    assert rows.d[order[0]] > rows.d[0]  # the law is that deeper is better; the score prefers about 18
    assert weighed.error_of(0) < weighed.likeliest
    assert "lowest predicted error of 7 networks" in weighed.reason("7 networks")


def test_noise_leaves_the_order_of_the_score(evidence, candidates):
    rows, scores = candidates()
    order, weighed = rank_by_evidence(evidence("noise", seed=1), rows, scores)
    assert not weighed.decides
    assert list(order) == list(range(len(rows)))
    assert weighed.error_of(0) == weighed.likeliest
    note = weighed.notes(Budget(0.4e9), 400_000_000)[0]
    assert "it is not better by more than chance would have it, so the score decides the order" in note


def test_no_candidate_within_what_was_swept_leaves_the_order_of_the_score(evidence, candidates):
    rows, scores = candidates()
    learnt = evidence("deep")
    beyond = learnt.predict(rows)[1]
    order, weighed = rank_by_evidence(learnt, rows.take(beyond), scores[beyond])
    assert learnt.decides
    assert not weighed.decides
    assert list(order) == list(range(beyond.sum()))
    assert "no candidate is within what was swept" in weighed.notes(Budget(0.4e9), 400_000_000)[0]


def test_the_notes_say_on_how_much_how_good_and_how_far(evidence):
    learnt = evidence("deep")
    rows = regnets_between(3.98e9, 4.02e9, family="x", w_m_step=0.05)
    scores = np.zeros(len(rows))
    notes = rank_by_evidence(learnt, rows, scores)[1].notes(Budget(4e9), 4_000_000_000)
    assert len(notes) == 2
    assert notes[0].startswith("60 trials of mine.csv; on trials left out the regression is 0.")
    assert "a line through the score of the trends" in notes[0]
    assert "0.388 to 0.412 GMACs (224 pixels); the pick has 4, a factor of 9.7" in notes[1]
    assert "above them: what is learnt is extrapolated" in notes[1]
    below = rank_by_evidence(learnt, rows, scores)[1].notes(Budget(0.1e9), 100_000_000)
    assert "a factor of 3.8" in below[1]
    assert "below them" in below[1]
    same = rank_by_evidence(learnt, rows, scores)[1].notes(Budget(0.4e9), 400_000_000)
    assert "extrapolated" not in same[1]


def test_other_classes_and_another_resolution_are_said(evidence, candidates):
    weighed = rank_by_evidence(evidence("deep"), *candidates())[1]
    notes = weighed.notes(Budget(0.4e9, resolution=64, classes=10), 400_000_000)
    assert notes[2] == "the trials of mine.csv were of 1,000 classes (here 10) and 224 pixels (here 64)"


def test_the_record_is_json_with_file_figures_and_baselines(evidence, candidates):
    weighed = rank_by_evidence(evidence("deep"), *candidates())[1]
    data = json.loads(json.dumps(weighed.to_json(Budget(0.4e9), 400_000_000), allow_nan=False))
    assert data["trials"] == 60
    assert data["sources"][0]["file"] == "mine.csv"
    assert data["decides"] is True
    assert set(data["left_out"]) == {"regression", "prior", "mean"}
    assert data["left_out"]["regression"]["rmse"] < data["left_out"]["mean"]["rmse"]
    assert data["extrapolation_in_macs"] == 1
    assert data["predicted_error"] == pytest.approx(weighed.predicted[0], abs=1e-4)


def test_extrapolation_is_the_factor_beyond_the_nearest_end(evidence):
    learnt = evidence("deep")
    least, most = learnt.reference_macs
    assert macs_extrapolation(learnt, most * 3) == pytest.approx(3)
    assert macs_extrapolation(learnt, least // 2) == pytest.approx(0.5)
    assert macs_extrapolation(learnt, (least + most) // 2) == 1
