"""Populations side by side: everything that the other modules of this room say of them, as one record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.analysis.bootstrap import REPEATS, SHARE, BestRange, best_range, check_bootstrap
from regnet_deploy.analysis.columns import COMPLEXITIES, check_columns, columns_of, default_columns
from regnet_deploy.analysis.edf import (
    ErrorDistribution,
    NormalizedDistribution,
    error_distribution,
    normalized_distributions,
)
from regnet_deploy.analysis.ks_distance import KsDistance, pairwise_distances
from regnet_deploy.analysis.line_fit import LineFit, fit_lines
from regnet_deploy.analysis.random_search import SearchCurve, search_curve
from regnet_deploy.analysis.rank_correlation import RankCorrelations, has_rank_columns, rank_correlations
from regnet_deploy.errors import UsageError
from regnet_deploy.populations.training_conditions import condition_differences
from regnet_deploy.populations.trials import Trials

Float = NDArray[np.float64]


@dataclass(frozen=True)
class PopulationAnalysis:
    """One population.

    Attributes:
        name: of the space or file; counted where two have the same.
        distribution: of its errors.
        ranges: where the best value of each column lies.
        rankings: how each column goes with the error, where both vary.
        search: what random search in it would give.
        fits: the line nearest to each network, in their order; empty where the networks are not known.
        lost: networks that diverged or failed and have no error; they are in none of the figures.
    """

    name: str
    distribution: ErrorDistribution
    ranges: tuple[BestRange, ...]
    rankings: tuple[RankCorrelations, ...]
    search: SearchCurve
    fits: tuple[LineFit, ...]
    lost: int

    def to_json(self) -> dict[str, Any]:
        """Return JSON data; errors in percent, other values in the unit of their column."""
        return {
            "name": self.name,
            **self.distribution.to_json(),
            "lost": self.lost,
            "errors_percent": self.distribution.errors.tolist(),
            "best_ranges": [made.to_json() for made in self.ranges],
            "rank_correlations": [made.to_json() for made in self.rankings],
            "random_search": self.search.to_json(),
            "line_fits": [fit.to_json() for fit in self.fits],
        }


@dataclass(frozen=True)
class Analysis:
    """What populations say of their spaces.

    Attributes:
        populations: each by itself.
        distances: each pair.
        normalised: name of a complexity -> the distributions, as if all populations had the same spread of it. Not
            there where they have no bin of it in common.
        share: networks that a repeat of the bootstrap drew, as a share of the population.
        repeats: of the bootstrap.
        seed: of all draws.
        remarks: what to know before the figures are believed, a sentence each.
    """

    populations: tuple[PopulationAnalysis, ...]
    distances: tuple[KsDistance, ...]
    normalised: dict[str, NormalizedDistribution]
    share: float
    repeats: int
    seed: int
    remarks: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return JSON data: errors in percent; MACs, parameters and activations in ones; widths in channels.

        ``line_fits`` are in the order of the networks, ``errors_percent`` ascend. Entry i of ``random_search`` is for
        i + 1 networks. ``p2_5``, ``p50`` and ``p97_5`` are percentiles of the bootstrap.
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
                        {"name": population.name, **weighed.to_json()}
                        for population, weighed in zip(self.populations, made.distributions, strict=True)
                    ],
                }
                for column, made in self.normalised.items()
            },
        }


def analyze(
    populations: Sequence[Trials],
    *,
    repeats: int = REPEATS,
    share: float = SHARE,
    seed: int = 0,
    columns: Sequence[str] | None = None,
) -> Analysis:
    """Analyse populations.

    Args:
        populations: one or more, of two networks or more each.
        repeats: of the bootstrap of best ranges.
        share: networks that each repeat draws, as a share of the population.
        seed: of all draws.
        columns: to look at; ``e_fit`` is one where the networks are known. Default: what was drawn, blocks, costs and
            e_fit, where they vary. A population is left out of a column that it does not have.

    Raises:
        UsageError: a population with fewer than two networks or with errors that are not numbers, a column that none
            has, or a bootstrap that cannot be drawn.
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
        wanted = default_columns(own, trials.drawn) if columns is None else dict.fromkeys(columns)
        looked_at = {column: own[column] for column in wanted if column in own and np.isfinite(own[column]).any()}
        ranges = [
            best_range(column, values, trials.error, share=share, repeats=repeats, seed=seed)
            for column, values in looked_at.items()
        ]
        rankings = [
            rank_correlations(column, values, trials.error, seed=seed)
            for column, values in looked_at.items()
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
                trials.lost,
            )
        )
    normalised = {}
    for column in COMPLEXITIES:
        if all(column in own for own in known):
            weighed = normalized_distributions(errors, [own[column] for own in known])
            if weighed is not None:
                normalised[column] = weighed
    distances = pairwise_distances(names, errors)
    return Analysis(tuple(made), distances, normalised, share, repeats, seed, _remarks(names, populations))


def _remarks(names: Sequence[str], populations: Sequence[Trials]) -> tuple[str, ...]:
    """Return what stands between the figures and a conclusion."""
    made = [
        f"{name}: {trials.lost} of {len(trials) + trials.lost} networks diverged or failed and are in none of the "
        "figures, which makes the population look better than it is"
        for name, trials in zip(names, populations, strict=True)
        if trials.lost
    ]
    made += [
        remark for name, trials in zip(names, populations, strict=True) for remark in _untaught(name, trials) if remark
    ]
    differ = condition_differences([trials.regime for trials in populations])
    if differ:
        made.append(f"the populations were not trained alike: they differ in {'; '.join(differ)}")
    return tuple(made)


def _untaught(name: str, trials: Trials) -> list[str]:
    """Say that networks have learnt nothing, or that errors look like shares."""
    made = []
    if "classes" in trials.regime:
        chance = 100 * (1 - 1 / float(trials.regime["classes"]))
        count = int((trials.error >= chance - 1).sum())
        if count > len(trials) / 10:
            made.append(
                f"{name}: {count} of {len(trials)} networks answer no better than chance ({chance:.1f} % error): they "
                "say little of the space; train longer, or with another rate"
            )
    if (trials.error <= 1).all() and (trials.error > 0).any():
        made.append(f"{name}: no error is above 1 %: if they are shares, multiply them by 100")
    return made


def _check(populations: Sequence[Trials]) -> None:
    if not populations:
        raise UsageError("there is no population to analyse; name one or more")
    for trials in populations:
        if len(trials) < 2:
            raise UsageError(
                f"{trials.space} has {len(trials)} trained network{'' if len(trials) == 1 else 's'}; an analysis takes "
                "2 or more: train more of them, or leave it out"
            )
        if not np.isfinite(trials.error).all():
            missing = int((~np.isfinite(trials.error)).sum())
            raise UsageError(
                f"{trials.space} has {missing} of {len(trials)} errors that are no numbers; leave them out"
            )


def _names(populations: Sequence[Trials]) -> list[str]:
    """Return the names of the spaces, the second of a name as ``name (2)`` and so on."""
    names: list[str] = []
    for trials in populations:
        name, count = trials.space, 1
        while name in names:
            count += 1
            name = f"{trials.space} ({count})"
        names.append(name)
    return names
