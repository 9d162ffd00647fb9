"""Compares trained populations: all statistics of this package, as one record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.analysis.best_range import (
    MIN_NETWORKS,
    REPEATS,
    SHARE,
    BestRange,
    best_range,
    check_bootstrap,
    too_few,
)
from regnet_deploy.analysis.columns import COMPLEXITIES, check_columns, columns_of, default_columns
from regnet_deploy.analysis.edf import (
    ErrorDistribution,
    KsDistance,
    NormalizedDistribution,
    error_distribution,
    normalized_distributions,
    pairwise_distances,
)
from regnet_deploy.analysis.line_fit import LineFit, fit_lines
from regnet_deploy.analysis.random_search import SearchCurve, search_curve
from regnet_deploy.analysis.rank_correlation import RankCorrelations, has_rank_columns, rank_correlations
from regnet_deploy.errors import UsageError
from regnet_deploy.populations.csv_rows import number
from regnet_deploy.populations.trials import Trials, condition_differences

Float = NDArray[np.float64]


@dataclass(frozen=True)
class PopulationAnalysis:
    """One population.

    Attributes:
        name: name of the space or file; numbered if several populations have the same.
        distribution: distribution of the errors.
        ranges: range of the best value of each column; empty where there are too few networks.
        rankings: rank correlation of each column with the error, where both vary; empty where there are too few
            networks.
        search: expected result of random search.
        fits: the best-fitting quantized line of each network; empty where the networks are not known.
        unsuccessful: number of networks that diverged or failed; no statistic includes them.
    """

    name: str
    distribution: ErrorDistribution
    ranges: tuple[BestRange, ...]
    rankings: tuple[RankCorrelations, ...]
    search: SearchCurve
    fits: tuple[LineFit, ...]
    unsuccessful: int

    def to_json(self) -> dict[str, Any]:
        """Return JSON data; errors in percent, other values in the unit of their column."""
        return {
            "name": self.name,
            **self.distribution.to_json(),
            "lost": self.unsuccessful,
            "errors_percent": self.distribution.errors.tolist(),
            "best_ranges": [made.to_json() for made in self.ranges],
            "rank_correlations": [made.to_json() for made in self.rankings],
            "random_search": self.search.to_json(),
            "line_fits": [fit.to_json() for fit in self.fits],
        }


@dataclass(frozen=True)
class Analysis:
    """The analysis of one or more populations.

    Attributes:
        populations: the analysis of each population.
        distances: the distance of each pair of populations that have enough networks.
        normalized: column of a complexity -> the error distributions, weighted so that all populations have the same
            distribution of it. Columns without a common bin are omitted.
        share: size of a bootstrap sample, as a fraction of the population.
        repeats: number of bootstrap samples.
        seed: seed of all draws.
        remarks: limitations of the results, one sentence each.
    """

    populations: tuple[PopulationAnalysis, ...]
    distances: tuple[KsDistance, ...]
    normalized: dict[str, NormalizedDistribution]
    share: float
    repeats: int
    seed: int
    remarks: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return JSON data: errors in percent; MACs, parameters and activations in ones; widths in channels.

        ``line_fits`` are in the order of the networks, ``errors_percent`` are ascending. Entry i of ``random_search``
        is for i + 1 networks. ``p2_5``, ``p50`` and ``p97_5`` are percentiles of the bootstrap.
        """
        return {
            "bootstrap": {"share": self.share, "repeats": self.repeats, "seed": self.seed},
            "remarks": list(self.remarks),
            "populations": [population.to_json() for population in self.populations],
            "distances": [made.to_json() for made in self.distances],
            "normalised": {
                column: {
                    "bin_edges": made.edges.tolist(),
                    "bin_shared": made.shared.tolist(),
                    "populations": [
                        {"name": population.name, **distribution.to_json()}
                        for population, distribution in zip(self.populations, made.distributions, strict=True)
                    ],
                }
                for column, made in self.normalized.items()
            },
        }


def analyze(
    populations: Sequence[Trials],
    *,
    repeats: int = REPEATS,
    share: float = SHARE,
    seed: int = 0,
    columns: Sequence[str] | None = None,
    min_networks: int = MIN_NETWORKS,
) -> Analysis:
    """Analyze populations.

    Of a population with fewer than ``min_networks`` networks the errors are described, and nothing is concluded: it has
    no ranges of the best, rank correlations and distances, and a remark says so.

    Args:
        populations: one or more populations of at least two networks.
        repeats: number of bootstrap samples.
        share: size of a bootstrap sample, as a fraction of the population.
        seed: seed of all draws.
        columns: the columns to analyze; ``e_fit`` is available where the networks are known. The default is every
            column of the drawn parameters, depth, costs and e_fit that varies. A population can lack a column.
        min_networks: smallest number of networks from which ranges, correlations and distances are computed.

    Raises:
        UsageError: a population has fewer than two networks or errors that are not numbers, no population has a
            column, or the values of the bootstrap are not valid.
        MissingExtra: scipy is not installed.
    """
    _check(populations)
    check_bootstrap(share, repeats)
    fits = [fit_lines(trials.networks) for trials in populations]
    known = [columns_of(trials, own) for trials, own in zip(populations, fits, strict=True)]
    if columns is not None:
        check_columns(columns, known)
    names = _names(populations)
    errors = [trials.error for trials in populations]
    made = []
    for name, trials, own_fits, own in zip(names, populations, fits, known, strict=True):
        selected = default_columns(own, trials.drawn) if columns is None else dict.fromkeys(columns)
        analyzed = {column: own[column] for column in selected if column in own and np.isfinite(own[column]).any()}
        if len(trials) < min_networks:
            analyzed = {}
        ranges = [
            best_range(column, values, trials.error, share=share, repeats=repeats, seed=seed)
            for column, values in analyzed.items()
        ]
        rankings = [
            rank_correlations(column, values, trials.error, seed=seed)
            for column, values in analyzed.items()
            if has_rank_columns(values, trials.error)
        ]
        made.append(
            PopulationAnalysis(
                name,
                error_distribution(trials.error),
                tuple(ranges),
                tuple(rankings),
                search_curve(trials.error),
                own_fits,
                trials.unsuccessful,
            )
        )
    normalized = {}
    for column in COMPLEXITIES:
        if all(column in own for own in known):
            distributions = normalized_distributions(errors, [own[column] for own in known])
            if distributions is not None:
                normalized[column] = distributions
    enough = [(name, each) for name, each in zip(names, errors, strict=True) if len(each) >= min_networks]
    distances = pairwise_distances([name for name, _ in enough], [each for _, each in enough])
    remarks = _remarks(names, populations, min_networks)
    return Analysis(tuple(made), distances, normalized, share, repeats, seed, remarks)


def _remarks(names: Sequence[str], populations: Sequence[Trials], min_networks: int) -> tuple[str, ...]:
    """Return the limitations of the results."""
    made = [remark for trials in populations for remark in trials.remarks]
    made += [
        f"{too_few(name, len(trials), min_networks)}: no ranges of the best, rank correlations and distances of it"
        for name, trials in zip(names, populations, strict=True)
        if len(trials) < min_networks
    ]
    made += [
        f"{name}: {trials.unsuccessful} of {len(trials) + trials.unsuccessful} networks diverged or failed; no "
        "statistic includes them, so the population looks better than it is"
        for name, trials in zip(names, populations, strict=True)
        if trials.unsuccessful
    ]
    made += [
        remark
        for name, trials in zip(names, populations, strict=True)
        for remark in _learning_remarks(name, trials)
        if remark
    ]
    differ = condition_differences(populations)
    if differ:
        made.append(f"the populations were trained under different conditions: they differ in {'; '.join(differ)}")
    return tuple(made)


def _learning_remarks(name: str, trials: Trials) -> list[str]:
    """Return remarks on networks that learned nothing, and on errors that look like fractions."""
    made = []
    classes = number(trials.conditions.get("classes", ""))  # of a CSV file, it can be any text
    if classes > 1:
        chance = 100 * (1 - 1 / classes)
        count = int((trials.error >= chance - 1).sum())
        if count > len(trials) / 10:
            made.append(
                f"{name}: {count} of {len(trials)} networks are no better than chance ({chance:.1f} % error), so they "
                "tell little about the space; train for more epochs, or with another learning rate"
            )
    if (trials.error <= 1).all() and (trials.error > 0).any():
        made.append(f"{name}: no error is above 1 %: if the errors are fractions, multiply them by 100")
    return made


def _check(populations: Sequence[Trials]) -> None:
    if not populations:
        raise UsageError("there is no population to analyze: give at least one")
    for trials in populations:
        if len(trials) < 2:
            raise UsageError(
                f"{trials.space} has {len(trials)} trained network{'' if len(trials) == 1 else 's'}; an analysis needs "
                "2 or more: train more networks, or omit the population"
            )
        if not np.isfinite(trials.error).all():
            missing = int((~np.isfinite(trials.error)).sum())
            raise UsageError(f"{missing} of {len(trials)} errors of {trials.space} are not numbers: remove these rows")


def _names(populations: Sequence[Trials]) -> list[str]:
    """Return the names of the spaces; the second space of the same name is called ``name (2)``, and so on."""
    names: list[str] = []
    for trials in populations:
        name, count = trials.space, 1
        while name in names:
            count += 1
            name = f"{trials.space} ({count})"
        names.append(name)
    return names
