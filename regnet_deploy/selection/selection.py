"""From a budget to ranked candidates: find them all, score them, say why the first is first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.errors import UsageError
from regnet_deploy.selection.budget import Budget
from regnet_deploy.selection.evidence import family_of, read_evidence
from regnet_deploy.selection.evidence_ranking import EvidenceRanking, rank_by_evidence
from regnet_deploy.selection.expectation import Expectation, expected_error
from regnet_deploy.selection.measured_ranking import MeasuredRanking
from regnet_deploy.selection.trends import Trends, fit_trends, score_population
from regnet_deploy.space.complexity import network_complexity
from regnet_deploy.space.enumeration import W_M_STEP, regnets_between, regnets_nearest
from regnet_deploy.space.network import REFERENCE_RESOLUTION, Network
from regnet_deploy.space.population import Population
from regnet_deploy.space.published import PublishedNetwork, baselines
from regnet_deploy.space.regnet import RegNet

#: What share of the space a selection looked at.
SEARCHED = (
    "the whole constrained space was searched, nothing drawn or skipped: every d, g and w_0 (steps of 8), "
    f"w_m in steps of {W_M_STEP}, every slope w_a"
)


@dataclass(frozen=True)
class Candidate:
    """A network with its generating parameters, its counts at the budget's resolution, and its score.

    ``regnet`` and ``score`` are None for a published network of which only the stages are known, ``predicted_error``
    (percent) where no evidence decides, ``measured_error`` (percent) where it was not trained.
    """

    regnet: RegNet | None
    network: Network
    macs: int
    parameters: int
    activations: int
    reference_macs: int
    score: float | None
    predicted_error: float | None = None
    measured_error: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return JSON data."""
        generated = {name: getattr(self.regnet, name, None) for name in ("w_0", "w_a", "w_m", "g")}
        return {
            "family": self.network.family,
            "d": sum(self.network.depths),
            **generated,
            "b": self.network.bottlenecks[0],
            "depths": list(self.network.depths),
            "widths": list(self.network.widths),
            "group_widths": list(self.network.group_widths),
            "macs": self.macs,
            "parameters": self.parameters,
            "activations": self.activations,
            "score": None if self.score is None else round(self.score, 4),
            **({} if self.predicted_error is None else {"predicted_error": round(self.predicted_error, 4)}),
            **({} if self.measured_error is None else {"measured_error": round(self.measured_error, 4)}),
        }


@dataclass(frozen=True)
class Selection:
    """The ranked candidates of a budget (best first), with what to expect.

    ``other`` is what to expect of the other family, where the choice of the family was left open; ``weighed`` is what
    evidence says, and ``measured`` what training the first candidates said, where there is some.
    """

    budget: Budget
    family: str
    population: Population
    scores: NDArray[np.float64]
    slopes: NDArray[np.float64]
    trends: Trends
    expectation: Expectation
    other: Expectation | None = None
    weighed: EvidenceRanking | None = None
    measured: MeasuredRanking | None = None

    @property
    def considered(self) -> int:
        """Number of distinct networks that met the budget."""
        return len(self.population)

    @property
    def pick(self) -> Candidate:
        """The best candidate."""
        return self.candidate(0)

    def candidate(self, rank: int) -> Candidate:
        """Return the candidate of a rank, 0 being the best."""
        row = self.population
        regnet = RegNet(
            d=int(row.d[rank]),
            w_0=int(row.w_0[rank]),
            w_a=round(float(self.slopes[rank]), 6),
            w_m=round(float(row.w_m[rank]), 3),
            g=int(row.g[rank]),
            family=self.family,
        )
        network = regnet.network(self.budget.stride)
        counted = tuple(tuple(rows[rank].tolist()) for rows in (row.depths, row.widths, row.group_widths))
        if (network.depths, network.widths, network.group_widths) != counted:
            raise AssertionError(f"{regnet} does not generate the network that was counted: {counted}")
        return Candidate(
            regnet=regnet,
            network=network,
            macs=int(row.macs[rank]),
            parameters=int(row.parameters[rank]),
            activations=int(row.activations[rank]),
            reference_macs=int(row.reference_macs[rank]),
            score=float(self.scores[rank]),
            predicted_error=self.weighed.error_of(rank) if self.weighed and self.weighed.decides else None,
            measured_error=None if self.measured is None else self.measured.error_of(rank),
        )

    def reason(self) -> str:
        """Say in words why the pick was picked."""
        candidates = f"{self.considered:,} distinct RegNet{self.family.upper()}s"
        if self.measured is not None:
            return self.measured.reason()
        if self.weighed is not None and self.weighed.decides:
            return self.weighed.reason(candidates)
        pick = self.pick
        gmacs = pick.reference_macs / 1e9
        d, w_0, w_a, w_m, g = np.exp(self.trends.expected(float(pick.reference_macs)))
        return (
            f"likeliest of {candidates} under the trends of the 12 published ones: at "
            f"{gmacs:.3g} GMACs (224 pixels) they expect "
            f"d={d:.0f}, w_0={w_0:.0f}, w_a={w_a:.1f}, w_m={w_m:.2f}, g={g:.0f}"
        )


def select(budget: Budget, evidence: Sequence[Path] = ()) -> Selection:
    """Return the candidates of a budget, ranked.

    Args:
        budget: what they must meet.
        evidence: trained populations (stores of sweeps, CSV files) that rank them instead of the published networks,
            if they predict errors better. They also decide the family, where the budget leaves it open.

    Raises:
        UsageError: no network of the space meets the budget (the nearest one is named), or a population is no evidence.
        DataError: a population cannot be read.
    """
    family = budget.family
    if family == "any":
        family = family_of(evidence) or default_family(budget)
    learnt = read_evidence(evidence, family) if evidence else None
    space: dict[str, Any] = {
        "family": family,
        "bounds": budget.bounds,
        "resolution": budget.resolution,
        "stem_stride": budget.stride,
        "classes": budget.classes,
    }
    lowest, highest = budget.macs * (1 - budget.tolerance), budget.macs * (1 + budget.tolerance)
    rows = regnets_between(lowest, highest, **space)
    if not len(rows):
        raise UsageError(_nothing(budget, regnets_nearest(budget.macs, **space)))
    rows = _within_limits(budget, rows)
    trends = fit_trends(baselines(family))
    scores, slopes = score_population(trends, rows)
    order, scores = rows.distinct_rows(scores)
    weighed = None
    if learnt is not None:
        again, weighed = rank_by_evidence(learnt, rows.take(order), scores)
        order, scores = order[again], scores[again]
    population = rows.take(order)
    return Selection(
        budget=budget,
        family=family,
        population=population,
        scores=scores,
        slopes=slopes[order],
        trends=trends,
        expectation=expected_error(family, float(population.reference_macs[0])),
        other=expected_error("xy".replace(family, ""), float(population.reference_macs[0]))
        if budget.family == "any"
        else None,
        weighed=weighed,
    )


def ranked_by_measurement(
    selection: Selection, order: Sequence[int], errors: Sequence[Mapping[int, float]], data: str
) -> Selection:
    """Return the selection with its tried candidates in the order of what was measured, the others after them.

    Args:
        selection: as it was.
        order: ranks of all that were tried, the best first.
        errors: of each of them, in this order: epochs -> top-1 error, percent.
        data: the images, in words.
    """
    rest = np.delete(np.arange(selection.considered), list(order))
    rows = np.concatenate([np.asarray(order, dtype=np.int64), rest])
    weighed = selection.weighed
    if weighed is not None:
        weighed = replace(weighed, predicted=weighed.predicted[rows], beyond=weighed.beyond[rows])
    return replace(
        selection,
        population=selection.population.take(rows),
        scores=selection.scores[rows],
        slopes=selection.slopes[rows],
        weighed=weighed,
        measured=MeasuredRanking(tuple(errors), tuple(rank + 1 for rank in order), data),
    )


def default_family(budget: Budget) -> str:
    """Return the family with the lower expected error at about this budget."""
    at_reference = budget.macs * (REFERENCE_RESOLUTION / budget.resolution) ** 2 / (4 if budget.stride == 1 else 1)
    return min("yx", key=lambda family: expected_error(family, at_reference).top1_error)


def published_candidate(published: PublishedNetwork, budget: Budget) -> Candidate:
    """Return a published network as a candidate at the resolution, stem and classes of a budget (its MACs ignored)."""
    network = Network(**{**vars(published.network), "stem_stride": budget.stride})
    here = network_complexity(network, budget.resolution, budget.classes).total
    there = network_complexity(published.network, REFERENCE_RESOLUTION, 1000).total
    regnet = score = None
    if published.w_0 is not None and published.w_a is not None and published.w_m is not None:
        regnet = RegNet(published.d, published.w_0, published.w_a, published.w_m, published.g, family=published.family)
        trends = fit_trends(baselines(published.family))
        score = float(trends.log_likelihood(regnet.parameters(), float(there.macs)))
    return Candidate(
        regnet=regnet,
        network=network,
        macs=int(here.macs),
        parameters=int(here.parameters),
        activations=int(here.activations),
        reference_macs=int(there.macs),
        score=score,
    )


def _within_limits(budget: Budget, rows: Population) -> Population:
    for name, option in (("parameters", "--max-params"), ("activations", "--max-acts")):
        limit = getattr(budget, f"max_{name}")
        if limit is None:
            continue
        counts = getattr(rows, name)
        if not (counts <= limit).any():
            raise UsageError(
                f"no candidate within {limit / 1e6:g} M {name}: at this budget the fewest are "
                f"{counts.min() / 1e6:.2f} M; raise {option} or lower --gflops"
            )
        rows = rows.take(counts <= limit)
    return rows


def _nothing(budget: Budget, nearest: Population) -> str:
    asked = (
        f"no RegNet of the space has {budget.macs / 1e9:g} GMACs within {budget.tolerance * 100:g} % "
        f"at {budget.resolution} pixels"
    )
    if not len(nearest):
        return f"{asked}, nor near it with these bounds: widen --depth, --group-width or the other bounds"
    return f"{asked}; the nearest has {nearest.macs[0] / 1e9:.6g}: ask for that, or for more tolerance"
