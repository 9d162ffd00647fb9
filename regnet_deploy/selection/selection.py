"""Selects networks for a compute budget: finds all candidates, ranks them, and states why the first is the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.bundle.manifest import ExpectedError
from regnet_deploy.errors import UsageError
from regnet_deploy.selection.budget import Budget
from regnet_deploy.selection.candidate_table import Candidate, CandidateTable
from regnet_deploy.selection.evidence import family_of, read_evidence
from regnet_deploy.selection.evidence_ranking import EvidenceRanking, rank_by_evidence
from regnet_deploy.selection.timed_ranking import SEARCHED_BY_TIME, TimedRanking
from regnet_deploy.selection.trends import Trends, expected_error, fit_trends, score_population
from regnet_deploy.space.complexity import network_complexity
from regnet_deploy.space.enumeration import W_M_STEP, ConstrainedSpace, regnets_between, regnets_nearest
from regnet_deploy.space.network import REFERENCE_RESOLUTION, default_stem_stride
from regnet_deploy.space.population import Population
from regnet_deploy.space.published import PublishedNetwork, baselines
from regnet_deploy.space.regnet import RegNet

Float = NDArray[np.float64]

#: The part of the space that a selection searches.
SEARCHED = (
    "the whole constrained space was searched, nothing sampled or skipped: every d, g and w_0 (steps of 8), "
    f"w_m in steps of {W_M_STEP}, every slope w_a"
)
#: Candidates count as different shapes from this distance on: the root of the sum of squares of the differences of
#: ln d, ln w_0, ln w_a, ln w_m and ln g, each divided by its standard deviation under the trends.
MIN_DISTANCE = 1.0


@dataclass(frozen=True)
class UnseenError:
    """Top-1 error of the chosen candidate on images by which nothing was chosen, percent.

    Attributes:
        error: the error.
        low: lower end of its 95 % interval (Wilson).
        high: upper end.
        images: number of images.
        digest: sha256 of them.
    """

    error: float
    low: float
    high: float
    images: int
    digest: str

    def __str__(self) -> str:
        """Return it in words."""
        return (
            f"{self.error:.2f} % on {self.images:,} test images, which no choice saw (95 % interval {self.low:.2f} to "
            f"{self.high:.2f} %)"
        )


@dataclass(frozen=True)
class MeasuredRanking:
    """The candidates that were trained, ranked by their measured error.

    Attributes:
        errors: for each trained candidate, the best first: epochs -> top-1 error, percent, of each of its rounds.
        ranks: the rank that each of them had before, from 1.
        data: the folder of images.
        test: error of the first on the images to test on; None if there are none.
    """

    errors: tuple[Mapping[int, float], ...]
    ranks: tuple[int, ...]
    data: str
    test: UnseenError | None = None

    def final_errors(self) -> list[float]:
        """Return the error of the longest training of each candidate, percent; NaN where none was completed."""
        return [known[max(known)] if known else float("nan") for known in self.errors]

    def reason(self) -> str:
        """Return why the first candidate is the best."""
        epochs = max(self.errors[0])
        rounds = sorted({each for known in self.errors for each in known})
        how = "" if len(rounds) == 1 else f" (rounds of {', '.join(map(str, rounds))} epochs; the best third continues)"
        return (
            f"lowest measured error of {len(self.errors)} candidates that were trained on {self.data}{how}: "
            f"{self.errors[0][epochs]:.2f} % top-1 error after {epochs} epoch{'s' * (epochs > 1)}; "
            f"its rank before training was {self.ranks[0]}{f'; {self.test}' if self.test else ''}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return JSON data; errors in percent."""
        return {
            "data": self.data,
            "candidates": [
                {"rank_before": rank, "errors_percent": {str(epochs): error for epochs, error in sorted(known.items())}}
                for rank, known in zip(self.ranks, self.errors, strict=True)
            ],
            **({"test": asdict(self.test)} if self.test else {}),
        }


@dataclass(frozen=True)
class Selection:
    """The ranked candidates of a budget.

    Attributes:
        budget: the budget that they meet.
        family: ``x`` or ``y``.
        candidates: all of them, the best first.
        trends: the trends that the scores are computed with.
        expectation: the error to expect of the family at this budget; None where no published network has the
            resolution and the stem of the budget.
        other_expectation: the same for the other family; None also where the budget names the family.
        evidence_ranking: the ranking by trained populations; None without evidence.
        measured_ranking: the ranking by training; None where no candidate was trained.
        timed_ranking: the ranking by measured time; None where no time was measured.
    """

    budget: Budget
    family: str
    candidates: CandidateTable
    trends: Trends
    expectation: ExpectedError | None
    other_expectation: ExpectedError | None = None
    evidence_ranking: EvidenceRanking | None = None
    measured_ranking: MeasuredRanking | None = None
    timed_ranking: TimedRanking | None = None

    @property
    def considered(self) -> int:
        """Number of distinct networks that meet the budget."""
        return len(self.candidates)

    @property
    def best(self) -> Candidate:
        """The first candidate."""
        return self.candidate(0)

    def candidate(self, rank: int) -> Candidate:
        """Return the candidate of a rank; 0 is the best."""
        rows = self.candidates
        regnet = rows.regnet(rank, self.family)
        network = regnet.network(self.budget.stride, self.budget.input_channels)
        counted = tuple(tuple(column[rank].tolist()) for column in (rows.depths, rows.widths, rows.group_widths))
        if (network.depths, network.widths, network.group_widths) != counted:
            raise AssertionError(f"{regnet} does not generate the network that was counted: {counted}")
        by_evidence = self.evidence_ranking is not None and self.evidence_ranking.decides
        return Candidate(
            regnet=regnet,
            network=network,
            macs=int(rows.macs[rank]),
            parameters=int(rows.parameters[rank]),
            activations=int(rows.activations[rank]),
            reference_macs=int(rows.reference_macs[rank]),
            score=float(rows.score[rank]),
            predicted_error=_value(rows.predicted_error, rank) if by_evidence else None,
            measured_error=_value(rows.measured_error, rank),
        )

    @property
    def searched(self) -> str:
        """Which networks were searched."""
        return SEARCHED if self.timed_ranking is None else SEARCHED_BY_TIME

    def reason(self) -> str:
        """Return why the first candidate is the best."""
        if self.measured_ranking is not None:
            return self.measured_ranking.reason()
        if self.timed_ranking is not None:
            return self.timed_ranking.reason()
        compared = f"{self.considered:,} distinct RegNet{self.family.upper()}s"
        if self.evidence_ranking is not None and self.evidence_ranking.decides:
            return self.evidence_ranking.reason(self.candidates, compared)
        reference_macs = float(self.candidates.reference_macs[0])
        d, w_0, w_a, w_m, g = np.exp(self.trends.expected(reference_macs))
        return (
            f"most likely of {compared} under the trends of the 12 published ones, which at "
            f"{reference_macs / 1e9:.3g} GMACs (224 pixels) predict "
            f"d={d:.0f}, w_0={w_0:.0f}, w_a={w_a:.1f}, w_m={w_m:.2f}, g={g:.0f}"
        )


def select(budget: Budget, evidence: Sequence[Path] = ()) -> Selection:
    """Return the ranked candidates of a budget.

    Args:
        budget: what the candidates must meet.
        evidence: trained populations (stores of sweeps, CSV files). They rank the candidates in place of the published
            networks if they predict errors better, and determine the family if the budget does not name one.

    Raises:
        UsageError: no network of the space meets the budget (the nearest one is named), or a population cannot be
            used as evidence.
        DataError: a population cannot be read.
    """
    family = budget.family
    if family == "any":
        family = family_of(evidence) or default_family(budget)
    fitted = read_evidence(evidence, family) if evidence else None
    space = ConstrainedSpace(
        family, budget.bounds, budget.resolution, budget.stride, budget.classes, budget.input_channels
    )
    lowest, highest = budget.macs * (1 - budget.tolerance), budget.macs * (1 + budget.tolerance)
    population = regnets_between(lowest, highest, space)
    if not len(population):
        raise UsageError(_no_candidate_message(budget, regnets_nearest(budget.macs, space)))
    population = _within_limits(budget, population)
    trends = fit_trends(baselines(family))
    score, w_a = score_population(trends, population)
    candidates = CandidateTable(**vars(population), w_a=w_a, score=score).take(population.distinct_rows(score))
    ranking = None
    if fitted is not None:
        candidates, ranking = rank_by_evidence(fitted, candidates)
    reference_macs = float(candidates.reference_macs[0])
    return Selection(
        budget=budget,
        family=family,
        candidates=candidates,
        trends=trends,
        expectation=budget_expectation(budget, family, reference_macs),
        other_expectation=(
            budget_expectation(budget, "xy".replace(family, ""), reference_macs) if budget.family == "any" else None
        ),
        evidence_ranking=ranking,
    )


def ranked_by_measurement(
    selection: Selection,
    order: Sequence[int],
    errors: Sequence[Mapping[int, float]],
    data: str,
    test: UnseenError | None = None,
) -> Selection:
    """Return the selection with the trained candidates first, by measured error, and the others after them.

    Args:
        selection: the selection whose candidates were trained.
        order: ranks of the trained candidates, the best first.
        errors: of each of them, in this order: epochs -> top-1 error, percent.
        data: the folder of images.
        test: error of the best one on the images to test on; None if there are none.
    """
    ranking = MeasuredRanking(tuple(errors), tuple(rank + 1 for rank in order), data, test)
    measured = np.full(selection.considered, np.nan)
    measured[list(order)] = ranking.final_errors()
    others = np.delete(np.arange(selection.considered), list(order))
    rows = np.concatenate([np.asarray(order, dtype=np.int64), others])
    candidates = replace(selection.candidates, measured_error=measured).take(rows)
    return replace(selection, candidates=candidates, measured_ranking=ranking)


def diverse_ranks(selection: Selection, n: int) -> list[int]:
    """Return ``n`` ranks, or all that exist: each is the best candidate that differs in shape from the better ones.

    Neighbors in the ranking differ by a block or by a step of w_m; training them would measure the noise of their
    seeds, not their difference. If there are fewer shapes than ``n``, the minimum distance is halved until there are
    enough.
    """
    points = np.log(selection.candidates.parameters_of_trends()) / selection.trends.spread
    n = min(n, selection.considered)
    ranks = [0]
    distance = MIN_DISTANCE
    while len(ranks) < n:
        nearest = _nearest_distance(points, ranks)
        while len(ranks) < n and (nearest >= distance).any():
            ranks.append(int(np.argmax(nearest >= distance)))
            nearest = np.minimum(nearest, _nearest_distance(points, ranks[-1:]))
        distance /= 2
    return sorted(ranks)


def budget_expectation(budget: Budget, family: str, reference_macs: float) -> ExpectedError | None:
    """Return the error to expect of a family, with its MACs at 224 pixels; None where the published errors do not tell.

    They were measured on RGB images at 224 pixels with a stem of stride 2. At another resolution, or on gray images,
    the same network has another error, which its MACs do not tell.
    """
    at_reference = budget.resolution == REFERENCE_RESOLUTION and budget.input_channels == 3
    if not at_reference or budget.stride != default_stem_stride(REFERENCE_RESOLUTION):
        return None
    return expected_error(family, reference_macs)


def default_family(budget: Budget) -> str:
    """Return the family with the lower expected error at this budget."""
    at_reference = budget.macs * (REFERENCE_RESOLUTION / budget.resolution) ** 2 / (4 if budget.stride == 1 else 1)
    return min("yx", key=lambda family: expected_error(family, at_reference).top1_error)


def published_candidate(published: PublishedNetwork, budget: Budget) -> Candidate:
    """Return a published network as a candidate, with the resolution, stem and classes of a budget (not its MACs)."""
    network = replace(published.network, stem_stride=budget.stride, input_channels=budget.input_channels)
    here = network_complexity(network, budget.resolution, budget.classes).total
    reference = network_complexity(published.network, REFERENCE_RESOLUTION, 1000).total
    regnet = score = None
    if published.w_0 is not None and published.w_a is not None and published.w_m is not None:
        regnet = RegNet(published.d, published.w_0, published.w_a, published.w_m, published.g, family=published.family)
        trends = fit_trends(baselines(published.family))
        score = float(trends.log_likelihood(regnet.parameters(), float(reference.macs)))
    return Candidate(
        regnet=regnet,
        network=network,
        macs=int(here.macs),
        parameters=int(here.parameters),
        activations=int(here.activations),
        reference_macs=int(reference.macs),
        score=score,
    )


def _value(column: Float | None, rank: int) -> float | None:
    """Return a value of a column; None where there is none."""
    return None if column is None or np.isnan(column[rank]) else float(column[rank])


def _nearest_distance(points: Float, ranks: list[int]) -> Float:
    """Return the distance of each point to the nearest of those at the given ranks, ``(n,)``."""
    gaps = points[:, None] - points[ranks][None]
    distances: Float = np.sqrt((gaps**2).sum(axis=2)).min(axis=1)
    return distances


def _within_limits(budget: Budget, population: Population) -> Population:
    for name, option in (("parameters", "--max-params"), ("activations", "--max-acts")):
        limit = getattr(budget, f"max_{name}")
        if limit is None:
            continue
        counts = getattr(population, name)
        if not (counts <= limit).any():
            raise UsageError(
                f"no candidate has at most {limit / 1e6:g} M {name}: the minimum at this budget is "
                f"{counts.min() / 1e6:.2f} M; raise {option} or lower --gflops"
            )
        population = population.take(counts <= limit)
    return population


def _no_candidate_message(budget: Budget, nearest: Population) -> str:
    missing = (
        f"no RegNet of the space has {budget.macs / 1e9:g} GMACs within {budget.tolerance * 100:g} % "
        f"at {budget.resolution} pixels"
    )
    if not len(nearest):
        return f"{missing}, and none is near it within these bounds: widen --depth, --group-width or the other bounds"
    return f"{missing}; the nearest has {nearest.macs[0] / 1e9:.6g} GMACs: set this budget or raise --tolerance"
