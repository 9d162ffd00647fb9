"""Candidates for a limit of time: plausible networks near it, with their expectation and predicted time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.errors import UsageError
from regnet_deploy.latency.calibration import MIN_GROUP_WIDTH, Calibration
from regnet_deploy.latency.measurement import Measurement
from regnet_deploy.latency.operators import operator_work
from regnet_deploy.selection.budget import Budget
from regnet_deploy.selection.candidate_table import CandidateTable
from regnet_deploy.selection.trends import ErrorCurve, Trends, fit_error, fit_trends, score_population
from regnet_deploy.space.complexity import complexity, network_complexity
from regnet_deploy.space.enumeration import LARGE_MACS, ConstrainedSpace, regnets_between
from regnet_deploy.space.network import REFERENCE_CLASSES, REFERENCE_RESOLUTION, Network
from regnet_deploy.space.published import PublishedNetwork, baselines

Float = NDArray[np.float64]

#: A measured time must be below the limit by this share: another process differs by about as much.
MARGIN = 0.02
#: MACs at 224 pixels between which networks are searched, and the step from one level to the next.
_LEAST_MACS, _MOST_MACS, _COARSE, _FINE = 2e7, 3.2e10, 1.3, 1.04
#: Networks of a level and family that are kept, the fastest by prediction.
_KEPT = 40
#: Step of w_m in the search; neighbors differ too little in their time for a finer one.
_W_M_STEP, _COARSE_W_M_STEP = 0.04, 0.2
#: Measured networks may be slower than predicted by this factor: candidates are searched down to so many fewer MACs.
_SLOWER = 2.5


@dataclass(frozen=True)
class TimeLimits:
    """What a network must keep on this machine, and what it must be as good as.

    Attributes:
        p50_ms: largest median of the time of a batch.
        p99_ms: largest 99th percentile.
        images_per_second: smallest throughput of inferences back to back.
        macs: largest number of MACs for one image.
        like: a published network: the fastest network is searched whose expected error is not above its own.
    """

    p50_ms: float | None = None
    p99_ms: float | None = None
    images_per_second: float | None = None
    macs: float | None = None
    like: PublishedNetwork | None = None

    def __post_init__(self) -> None:
        """Check the limits.

        Raises:
            UsageError: there is none, or one is not a number above 0.
        """
        values = {name: getattr(self, name) for name in ("p50_ms", "p99_ms", "images_per_second", "macs")}
        for name, value in values.items():
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name} must be a number above 0, got {value:g}")
        if self.like is None and all(values[name] is None for name in ("p50_ms", "p99_ms", "images_per_second")):
            raise UsageError("give a limit of time, such as --latency-ms 5, or --like NAME")

    def longest_ms(self, batch: int) -> float:
        """Return the longest median that keeps the limits on median and throughput, and can keep that on p99."""
        limits = [self.p50_ms, self.p99_ms]
        if self.images_per_second is not None:
            limits.append(1000 * batch / self.images_per_second)
        return min((limit for limit in limits if limit is not None), default=math.inf)

    def used(self, measured: Measurement) -> float:
        """Return which share of the tightest limit of time a measured network uses; above 1 it does not keep it."""
        shares = [0.0]
        if self.p50_ms is not None:
            shares.append(measured.times.p50_ms / self.p50_ms)
        if self.p99_ms is not None:
            shares.append(measured.times.p99_ms / self.p99_ms)
        if self.images_per_second is not None:
            shares.append(self.images_per_second / measured.images_per_second)
        return max(shares)

    def keeps(self, measured: Measurement, margin: float = 0.0) -> bool:
        """Tell whether a measured network keeps the limits of time, with a margin as a share of them."""
        return self.used(measured) <= 1 - margin

    @property
    def conditions(self) -> str:
        """What the network must keep, in words; empty if that is only to be like a published one."""
        parts = []
        if self.p50_ms is not None:
            parts.append(f"at most {self.p50_ms:g} ms")
        if self.p99_ms is not None:
            parts.append(f"at most {self.p99_ms:g} ms in the 99th percentile")
        if self.images_per_second is not None:
            parts.append(f"at least {self.images_per_second:g} images/s")
        if self.macs is not None:
            parts.append(f"at most {self.macs / 1e9:g} GMACs")
        return " and ".join(parts)

    def __str__(self) -> str:
        """Return them in words, with what is the best among the networks that keep them."""
        objective = "lowest expected error"
        if self.like is not None:
            objective = f"fastest with an expected error not above that of {self.like.architecture_name}"
        return f"{objective} with {self.conditions}" if self.conditions else objective


@dataclass(frozen=True, eq=False)
class Candidate:
    """A candidate: a row of a table, with its expectation and predicted time.

    Attributes:
        table: of all candidates of its level.
        row: its row.
        network: the network.
        error: top-1 error to expect of its family at its MACs, percent.
        predicted_ms: time that the latency model predicts, ms.
        extrapolated: whether it is outside of the networks that the model was fitted to.
        level: family and number of the level of MACs.
    """

    table: CandidateTable
    row: int
    network: Network
    error: float
    predicted_ms: float
    extrapolated: bool
    level: tuple[str, int]


def timed_candidates(budget: Budget, limits: TimeLimits, calibration: Calibration) -> tuple[list[Candidate], int]:
    """Return the candidates near the limits, and how many were compared."""
    setup, longest = calibration.setup, limits.longest_ms(calibration.setup.batch)
    families = "xy" if budget.family == "any" else budget.family
    options: list[Candidate] = []
    considered = 0
    error = math.inf if limits.like is None else _error_of(limits.like)
    for family in families:
        curve = fit_error(baselines(family))
        levels = _levels(_LEAST_MACS, _MOST_MACS, _COARSE)
        if limits.like is None:
            largest = _largest_level(levels, longest, family, budget, limits, calibration)
            if largest is None:
                continue
            low, high = largest / _SLOWER, largest * _COARSE
        else:
            if error <= curve.floor:
                continue  # no network of this family is as good
            low = _macs_of_error(curve, error)
            high = 1.25 * low
        for number, level in enumerate(_levels(low, high, _FINE)):
            found = _level_options(level, (family, number), budget, limits, calibration, curve)
            considered += found[1]
            options += found[0]
    options = [each for each in options if each.error <= error + 1e-9]
    if not options:
        conditions = limits.conditions or "an expected error like that"
        raise UsageError(
            f"no network of the space is predicted to keep {conditions}, with {setup}: raise the limit, lower "
            "--resolution, or widen the bounds"
        )
    return options, considered


def _level_options(
    level: float,
    name: tuple[str, int],
    budget: Budget,
    limits: TimeLimits,
    calibration: Calibration,
    curve: ErrorCurve,
) -> tuple[list[Candidate], int]:
    table, work = _candidates(level, _FINE, name[0], budget, limits, calibration)
    times, extrapolated = calibration.model.predict(work), calibration.model.extrapolated(work)
    options = []
    for row in np.argsort(times, kind="stable")[:_KEPT]:
        options.append(
            Candidate(
                table=table,
                row=int(row),
                network=table.regnet(int(row), name[0]).network(budget.stride, budget.input_channels),
                error=curve.at(float(table.reference_macs[row])),
                predicted_ms=float(times[row]),
                extrapolated=bool(extrapolated[row]),
                level=name,
            )
        )
    return options, len(table)


def _candidates(
    level: float,
    step: float,
    family: str,
    budget: Budget,
    limits: TimeLimits,
    calibration: Calibration,
    *,
    w_m_step: float = _W_M_STEP,
) -> tuple[CandidateTable, Float]:
    """Return plausible networks of about these MACs (at 224 pixels), and their work, ``(n, columns)``."""
    bounds = budget.bounds
    if bounds.g is None:
        bounds = replace(bounds, g=(MIN_GROUP_WIDTH, 128 if level < LARGE_MACS else 256))
    reference = ConstrainedSpace(family, bounds)
    population = regnets_between(level / step**0.5, level * step**0.5, reference, w_m_step=w_m_step)
    trends = fit_trends(baselines(family))
    score, w_a = score_population(trends, population)
    table = CandidateTable(**vars(population), w_a=w_a, score=score).take(population.distinct_rows(score))
    table = _counted(table.take(table.score >= _least_score(trends, family)), family, budget)
    largest = (limits.macs, budget.max_parameters, budget.max_activations)
    for limit, column in zip(largest, ("macs", "parameters", "activations"), strict=True):
        if limit is not None:
            table = table.take(getattr(table, column) <= limit)
    space = ConstrainedSpace(family, bounds, budget.resolution, budget.stride, budget.classes, budget.input_channels)
    work = operator_work(table.depths, table.widths, table.group_widths, 1.0, space.config, calibration.setup.batch)
    return table, work


def _counted(table: CandidateTable, family: str, budget: Budget) -> CandidateTable:
    """Return the table with MACs, parameters and activations at the resolution, stem and classes of the budget."""
    space = ConstrainedSpace(
        family, budget.bounds, budget.resolution, budget.stride, budget.classes, budget.input_channels
    )
    total = complexity(table.depths, table.widths, table.group_widths, 1.0, space.config).total
    return replace(table, macs=total.macs, parameters=total.parameters, activations=total.activations)


def _largest_level(
    levels: Sequence[float],
    longest: float,
    family: str,
    budget: Budget,
    limits: TimeLimits,
    calibration: Calibration,
) -> float | None:
    """Return the largest of ascending MACs at which a network is predicted to keep the limits; None if none is."""
    largest = None
    for level in levels:
        work = _candidates(level, _FINE, family, budget, limits, calibration, w_m_step=_COARSE_W_M_STEP)[1]
        times = calibration.model.predict(work)
        if len(times) and times.min() <= 1.05 * longest:
            largest = level
        elif len(times) and times.min() > 2 * longest:
            break  # a level without networks says nothing of the next one
    return largest


def _least_score(trends: Trends, family: str) -> float:
    """Return the score of the least likely published network."""
    scores = []
    for published in baselines(family):
        parameters = np.array([published.d, published.w_0, published.w_a, published.w_m, published.g], dtype=np.float64)
        scores.append(float(trends.log_likelihood(parameters, float(published.macs))))
    return min(scores)


def _levels(low: float, high: float, step: float) -> list[float]:
    """Return MACs from ``low`` to ``high``, each by the factor ``step`` above the one before."""
    return [float(each) for each in low * step ** np.arange(math.floor(math.log(high / low) / math.log(step)) + 1)]


def _error_of(published: PublishedNetwork) -> float:
    """Return the error to expect of the family of a published network at its MACs, percent."""
    return fit_error(baselines(published.family)).at(_reference_macs(published))


def _reference_macs(published: PublishedNetwork) -> float:
    return float(network_complexity(published.network, REFERENCE_RESOLUTION, REFERENCE_CLASSES).total.macs)


def _macs_of_error(curve: ErrorCurve, error: float) -> float:
    """Return the MACs at 224 pixels at which a family has this expected error."""
    return float(1e9 * ((error - curve.floor) / curve.scale) ** (-1 / curve.power))
