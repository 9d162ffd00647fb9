"""Evidence held against candidates: what it predicts of each, whether that orders them, and what to know about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.selection.budget import Budget
from regnet_deploy.selection.evidence import Evidence
from regnet_deploy.selection.trial_set import TrialSet
from regnet_deploy.space.population import Population

Float = NDArray[np.float64]
Int = NDArray[np.int64]

#: Candidates may be this far from the MACs of the trials, as a share, without its being called extrapolation.
_NEAR = 0.05


@dataclass(frozen=True)
class EvidenceRanking:
    """What evidence says of the candidates of a budget, in the order of their ranks.

    Attributes:
        evidence: the evidence.
        predicted: top-1 error of each, percent, at the MACs and under the conditions of the (first) sweep.
        beyond: whether the shape of each is beyond what was swept.
        likeliest: predicted error of the candidate that the score ranks first.
        decides: whether the evidence ordered them: it is good enough, and some candidate is within what was swept.
    """

    evidence: Evidence
    predicted: Float
    beyond: NDArray[np.bool_]
    likeliest: float
    decides: bool

    def error_of(self, rank: int) -> float:
        """Return the predicted error of a rank, percent."""
        return float(self.predicted[rank])

    def reason(self, candidates: str) -> str:
        """Say in words why the first is first; ``candidates`` says of how many and which."""
        error, off = self.error_of(0), self.evidence.regression.rmse
        return (
            f"lowest predicted error of {candidates}, as far as they are within what was swept: {error:.2f} % "
            f"± {off:.2f} at the sweep's MACs, by a regression on {self.evidence.trials:,} trials; it predicts "
            f"{self.likeliest:.2f} % for the likeliest under the trends of the published ones"
        )

    def notes(self, budget: Budget, reference_macs: int) -> list[str]:
        """Return what to know of the evidence, a line each.

        Args:
            budget: of the candidates.
            reference_macs: MACs of the pick at 224 pixels.
        """
        made = [f"{_trials(self.evidence.swept)}; {self._verdict()}", self._reach(reference_macs)]
        return [*made, *filter(None, (_other_conditions(each, budget) for each in self.evidence.swept))]

    def to_json(self, budget: Budget, reference_macs: int) -> dict[str, Any]:
        """Return JSON data; arguments as of :meth:`notes`."""
        return {
            **self.evidence.to_json(),
            "decides": self.decides,
            "predicted_error": round(self.error_of(0), 4),
            "predicted_error_of_the_likeliest": round(self.likeliest, 4),
            "extrapolation_in_macs": round(macs_extrapolation(self.evidence, reference_macs), 4),
            "candidates_within": int((~self.beyond).sum()),
            "notes": self.notes(budget, reference_macs),
        }

    def _reach(self, reference_macs: int) -> str:
        """Say how far the candidates are from the trials."""
        least, most = self.evidence.reference_macs
        factor = macs_extrapolation(self.evidence, reference_macs)
        told = (
            f"predicted errors are at the MACs of the trials, {least / 1e9:.3g} to {most / 1e9:.3g} GMACs (224 pixels)"
        )
        if abs(factor - 1) > _NEAR:
            where, times = ("above", factor) if factor > 1 else ("below", 1 / factor)
            told += (
                f"; the pick has {reference_macs / 1e9:.3g}, a factor of {times:.3g} {where} them: what is learnt is "
                "extrapolated to there by shape, as published networks change theirs with MACs"
            )
        inside = len(self.beyond) - int(self.beyond.sum())
        return f"{told}; {inside:,} of {len(self.beyond):,} candidates are within the shapes of the trials" + (
            ", and ranked before the others" if self.decides and self.beyond.any() else ""
        )

    def _verdict(self) -> str:
        """Say how good the regression is beside the others, and what follows."""
        regression, prior = self.evidence.regression, self.evidence.prior
        told = (
            f"on trials left out the regression is {regression.rmse:.2f} points off (root mean square; it explains "
            f"{regression.explained * 100:.0f} % of the variance, rank correlation {regression.spearman:.2f}), "
        )
        if prior is not None:
            told += f"a line through the score of the trends {prior.rmse:.2f} (rank correlation {prior.spearman:.2f}), "
        told += f"the mean {self.evidence.mean.rmse:.2f}"
        if prior is None:
            told += " (no score: w_0, w_a and w_m of the trials are not known)"
        if self.decides:
            return f"{told}: it is better, and decides the order"
        if self.evidence.decides:
            return f"{told}: it is better, but no candidate is within what was swept, so the score decides the order"
        return f"{told}: it is not better by more than chance would have it, so the score decides the order"


def rank_by_evidence(evidence: Evidence, candidates: Population, scores: Float) -> tuple[Int, EvidenceRanking]:
    """Predict the error of candidates and order them, by it where the evidence decides: those within first.

    Args:
        evidence: what is known.
        candidates: by falling score.
        scores: ``(n,)``.

    Returns:
        the order, ``(n,)``, and what is predicted in that order.
    """
    predicted, beyond = evidence.predict(candidates)
    decides = evidence.decides and not bool(beyond.all())
    order = np.lexsort((-scores, predicted, beyond)) if decides else np.arange(len(scores))
    return order, EvidenceRanking(evidence, predicted[order], beyond[order], float(predicted[0]), decides)


def macs_extrapolation(evidence: Evidence, reference_macs: int) -> float:
    """Return by which factor MACs are beyond those of the trials (at 224 pixels): 1 within, below 1 under them."""
    least, most = evidence.reference_macs
    return min(reference_macs / least, max(1.0, reference_macs / most))


def _trials(swept: tuple[TrialSet, ...]) -> str:
    return ", ".join(f"{len(each):,} trials of {each.file}{_left_aside(each)}" for each in swept)


def _left_aside(swept: TrialSet) -> str:
    others = ", ".join(f"{count:,} {reason}" for reason, count in swept.left_aside.items())
    return f" (left aside: {others})" if others else ""


def _other_conditions(swept: TrialSet, budget: Budget) -> str | None:
    known = swept.conditions
    different = [
        f"{there:,} {what} (here {here:,})"
        for what, there, here in (
            ("classes", known.classes, budget.classes),
            ("pixels", known.resolution, budget.resolution),
        )
        if there is not None and there != here
    ]
    return f"the trials of {swept.file} were of {' and '.join(different)}" if different else None
