"""Ranks candidates by the error that evidence predicts, and explains how far the prediction can be trusted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from regnet_deploy.selection.budget import Budget
from regnet_deploy.selection.candidate_table import CandidateTable
from regnet_deploy.selection.evidence import Evidence
from regnet_deploy.selection.trial_set import TrialSet

#: Up to this relative distance from the MACs of the trials, a candidate does not count as extrapolated in MACs.
_NEAR = 0.05


@dataclass(frozen=True)
class EvidenceRanking:
    """How evidence ranks the candidates of a budget.

    The predictions are columns of the table of candidates. They hold at the MACs and under the conditions of the first
    trial set.

    Attributes:
        evidence: the evidence.
        decides: whether the evidence ranks the candidates: it predicts well enough, and some candidates are within the
            shapes of its trials.
        error_of_best_score: predicted error of the candidate with the best score, percent.
    """

    evidence: Evidence
    decides: bool
    error_of_best_score: float

    def reason(self, candidates: CandidateTable, compared: str) -> str:
        """Return why the first candidate is the best; ``compared`` is the number and kind of the candidates."""
        error, rmse = _predicted_error(candidates), self.evidence.regression.rmse
        return (
            f"lowest predicted error of {compared}, among those within the shapes of the trials: {error:.2f} % "
            f"± {rmse:.2f} at the MACs of the sweep, by a regression on {self.evidence.trials:,} trials; it predicts "
            f"{self.error_of_best_score:.2f} % for the most likely candidate under the trends of the published networks"
        )

    def notes(self, budget: Budget, candidates: CandidateTable) -> list[str]:
        """Return facts about the evidence that the user should know, one line each."""
        sources = ", ".join(map(_source, self.evidence.trial_sets))
        read = [remark for each in self.evidence.trial_sets for remark in each.remarks]
        notes = [f"{sources}; {self._quality()}", *read, self._coverage(candidates)]
        return [*notes, *filter(None, (_other_conditions(each, budget) for each in self.evidence.trial_sets))]

    def to_json(self, budget: Budget, candidates: CandidateTable) -> dict[str, Any]:
        """Return JSON data."""
        assert candidates.extrapolated is not None  # by rank_by_evidence
        factor = macs_extrapolation(self.evidence, int(candidates.reference_macs[0]))
        return {
            **self.evidence.to_json(),
            "decides": self.decides,
            "predicted_error": round(_predicted_error(candidates), 4),
            "predicted_error_of_the_likeliest": round(self.error_of_best_score, 4),
            "extrapolation_in_macs": round(factor, 4),
            "candidates_within": int((~candidates.extrapolated).sum()),
            "notes": self.notes(budget, candidates),
        }

    def _coverage(self, candidates: CandidateTable) -> str:
        """Return how far the candidates are from the trials."""
        assert candidates.extrapolated is not None  # by rank_by_evidence
        least, most = self.evidence.reference_macs
        reference_macs = int(candidates.reference_macs[0])
        factor = macs_extrapolation(self.evidence, reference_macs)
        text = (
            f"predicted errors are at the MACs of the trials, {least / 1e9:.3g} to {most / 1e9:.3g} GMACs (224 pixels)"
        )
        if abs(factor - 1) > _NEAR:
            where, times = ("above", factor) if factor > 1 else ("below", 1 / factor)
            text += (
                f"; the first candidate has {reference_macs / 1e9:.3g}, a factor of {times:.3g} {where} them: the "
                "regression is extrapolated by shape, relative to how the shapes of published networks change with MACs"
            )
        inside = len(candidates) - int(candidates.extrapolated.sum())
        text += f"; {inside:,} of {len(candidates):,} candidates are within the shapes of the trials"
        return text + (", and ranked before the others" if self.decides and inside < len(candidates) else "")

    def _quality(self) -> str:
        """Return how well the regression predicts, compared with the alternatives, and what follows from it."""
        regression, prior = self.evidence.regression, self.evidence.prior
        text = (
            f"on trials left out of the fit the regression has a root mean square error of {regression.rmse:.2f} "
            f"points (it explains {regression.explained_variance * 100:.0f} % of the variance, rank correlation "
            f"{regression.spearman:.2f}), "
        )
        if prior is not None:
            text += f"a line through the trend score {prior.rmse:.2f} (rank correlation {prior.spearman:.2f}), "
        text += f"the mean {self.evidence.mean.rmse:.2f}"
        if prior is None:
            text += " (no trend score: w_0, w_a and w_m of the trials are not known)"
        if self.decides:
            return f"{text}: the regression is better and ranks the candidates"
        if self.evidence.decides:
            return (
                f"{text}: the regression is better, but no candidate is within the shapes of the trials, so the trend "
                "score ranks the candidates"
            )
        return f"{text}: the regression is not significantly better, so the trend score ranks the candidates"


def rank_by_evidence(evidence: Evidence, candidates: CandidateTable) -> tuple[CandidateTable, EvidenceRanking]:
    """Predict the errors of candidates and, where the evidence decides, sort by them.

    Candidates within the shapes of the trials come first.

    Args:
        evidence: the evidence.
        candidates: the candidates, by descending score.
    """
    predicted, extrapolated = evidence.predict(candidates)
    candidates = replace(candidates, predicted_error=predicted, extrapolated=extrapolated)
    ranking = EvidenceRanking(evidence, evidence.decides and not bool(extrapolated.all()), float(predicted[0]))
    if ranking.decides:
        candidates = candidates.take(np.lexsort((-candidates.score, predicted, extrapolated)))
    return candidates, ranking


def macs_extrapolation(evidence: Evidence, reference_macs: int) -> float:
    """Return the factor by which MACs (at 224 pixels) are outside those of the trials: 1 inside, below 1 under them."""
    least, most = evidence.reference_macs
    return min(reference_macs / least, max(1.0, reference_macs / most))


def _predicted_error(candidates: CandidateTable) -> float:
    """Return the predicted error of the first candidate, percent."""
    assert candidates.predicted_error is not None  # by rank_by_evidence
    return float(candidates.predicted_error[0])


def _source(trials: TrialSet) -> str:
    """Return the number of trials of a file, and of those that were excluded."""
    excluded = ", ".join(f"{count:,} {reason}" for reason, count in trials.excluded.items())
    return f"{len(trials):,} trials of {trials.file}" + (f" (excluded: {excluded})" if excluded else "")


def _other_conditions(trials: TrialSet, budget: Budget) -> str | None:
    """Return how the conditions of trials differ from the budget; None where they do not."""
    different = [
        f"{there:,} {unit} (here {here:,})"
        for unit, there, here in (
            ("classes", trials.conditions.classes, budget.classes),
            ("pixels", trials.conditions.resolution, budget.resolution),
        )
        if there is not None and there != here
    ]
    return f"the trials of {trials.file} had {' and '.join(different)}" if different else None
