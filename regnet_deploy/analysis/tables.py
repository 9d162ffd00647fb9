"""Formats an analysis as sections of tables, for the terminal and for the HTML page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from regnet_deploy.analysis.analysis import Analysis, PopulationAnalysis
from regnet_deploy.analysis.best_range import sample_size
from regnet_deploy.analysis.columns import COMPLEXITIES, format_value, label, short_label
from regnet_deploy.analysis.edf import ErrorDistribution
from regnet_deploy.analysis.rank_correlation import Correlation
from regnet_deploy.html import Section, Table
from regnet_deploy.populations.trials import Trials

#: From this p on, a distance does not show which population is better.
_SIGNIFICANT = 0.05
#: Number of networks in the table of the best ones.
_LISTED = 5
_OF_ERRORS = ("n", "min (%)", "mean (%)", "median (%)")


def comparison_sections(analysis: Analysis) -> list[Section]:
    """Return the sections that compare the populations: errors, distances, equal complexity, random search."""
    made = [_errors(analysis)]
    if analysis.distances:
        made.append(_distances(analysis))
    if len(analysis.populations) > 1 and analysis.normalized:
        made.append(_normalized(analysis))
    made.append(_search(analysis))
    return made


def population_section(analysis: Analysis, population: PopulationAnalysis, trials: Trials) -> Section:
    """Return the section of one population: ranges of the best values, rank correlations, the best networks."""
    drawn = sample_size(population.distribution.n, analysis.share)
    facts = []
    tables = []
    if population.ranges:
        facts.append(
            (
                "range of the best",
                f"95 % interval and median of the best of {drawn} networks, in {analysis.repeats:,} samples with "
                "replacement (bootstrap)",
            )
        )
        tables.append(_ranges(population))
    if population.rankings:
        facts.append(
            ("rank correlation", "with the error, and its 95 % interval; negative: larger values have lower errors")
        )
        tables.append(_rankings(population))
    if population.fits:
        e_fit = np.median([fit.e_fit for fit in population.fits])
        facts.append(("quantized line", f"median e_fit {e_fit:.3f}: mean |ln ratio| of fitted to real widths"))
    if trials.networks:
        tables.append(_best(population, trials))
    return Section(population.name, facts, tables)


def sections(analysis: Analysis, populations: Sequence[Trials]) -> list[Section]:
    """Return all sections.

    Args:
        analysis: the analysis of the populations.
        populations: the populations, in the same order.
    """
    own = [
        population_section(analysis, population, trials)
        for population, trials in zip(analysis.populations, populations, strict=True)
    ]
    return [*comparison_sections(analysis), *(section for section in own if section.tables)]


def _errors(analysis: Analysis) -> Section:
    rows = [(p.name, *_summary(p.distribution), f"{p.unsuccessful:,}") for p in analysis.populations]
    facts = [("note", remark) for remark in analysis.remarks]
    return Section("Top-1 errors", facts, [Table(("population", *_OF_ERRORS, "diverged or failed"), rows)])


def _summary(errors: ErrorDistribution) -> tuple[str, ...]:
    return (f"{errors.n:,}", f"{errors.minimum:.2f}", f"{errors.mean:.2f}", f"{errors.median:.2f}")


def _distances(analysis: Analysis) -> Section:
    pairs = Table(
        ("populations", "D", "p", "differ most at (%)", "better"),
        [
            (
                f"{d.first} / {d.second}",
                f"{d.statistic:.3f}",
                f"{d.p_value:.2g}",
                f"{d.error:.2f}",
                d.better if d.better is not None and d.p_value < _SIGNIFICANT else "not shown",
            )
            for d in analysis.distances
        ],
    )
    tables = [pairs]
    if len(analysis.populations) > 2:
        tables.append(_matrix(analysis))
    test = "two-sample Kolmogorov-Smirnov, two-sided; p is not corrected for the number of pairs"
    return Section("Distance of the populations", [("test", test)], tables)


def _matrix(analysis: Analysis) -> Table:
    """Return D of every pair as a matrix."""
    names = [p.name for p in analysis.populations]
    of_pair = {frozenset((d.first, d.second)): f"{d.statistic:.3f}" for d in analysis.distances}
    return Table(
        ("D", *names), [(one, *(of_pair.get(frozenset((one, other)), "-") for other in names)) for one in names]
    )


def _normalized(analysis: Analysis) -> Section:
    facts, rows = [], []
    for column, made in analysis.normalized.items():
        low, high = format_value(column, made.edges[0]), format_value(column, made.edges[-1])
        bins = f"{made.shared.sum()} of {len(made.shared)} bins from {low} to {high} are occupied by every population"
        facts.append((label(column), bins))
        for population, distribution in zip(analysis.populations, made.distributions, strict=True):
            n, *figures = _summary(distribution)
            rows.append((population.name, short_label(column), n, f"{distribution.effective_n:.0f}", *figures))
    columns = ("population", "given", "n", "effective n", *_OF_ERRORS[1:])
    return Section("Top-1 errors at equal complexity", facts, [Table(columns, rows)])


def _search(analysis: Analysis) -> Section:
    most = max(p.distribution.n for p in analysis.populations)
    counts = [2**i for i in range(most.bit_length())]
    rows = []
    for p in analysis.populations:
        cells = [
            _no_break(f"{p.search.expected[m - 1]:.2f} ± {2 * p.search.deviation[m - 1]:.2f}")
            if m <= p.distribution.n
            else "-"
            for m in counts
        ]
        rows.append((p.name, *cells))
    method = "mean ± 2 standard deviations (%) of the lowest error of so many networks, over all draws"
    return Section("Random search", [("best of", method)], [Table(("population", *map(str, counts)), rows)])


def _ranges(population: PopulationAnalysis) -> Table:
    return Table(
        ("range of the best", "2.5 %", "median", "97.5 %", "minimum", "maximum", "n"),
        [
            (
                label(r.column),
                *(format_value(r.column, value) for value in (r.low, r.median, r.high, r.least, r.most)),
                f"{r.n:,}",
            )
            for r in population.ranges
        ],
    )


def _rankings(population: PopulationAnalysis) -> Table:
    def figures(made: Correlation) -> tuple[str, ...]:
        value, low, high = (f"{round(x, 2) + 0:+.2f}" for x in (made.value, made.low, made.high))  # no -0.00
        return (value, f"{low} to {high}", f"{made.p_value:.2g}")

    return Table(
        ("rank correlation", "Spearman", "95 %", "p", "Kendall", "95 %", "p", "n"),
        [(short_label(r.column), *figures(r.spearman), *figures(r.kendall), f"{r.n:,}") for r in population.rankings],
    )


def _best(population: PopulationAnalysis, trials: Trials) -> Table:
    rows = []
    costs = [column for column in COMPLEXITIES if column in trials.columns]
    for rank, row in enumerate(np.argsort(trials.error, kind="stable")[:_LISTED], start=1):
        network = trials.networks[row]
        rows.append(
            (
                str(rank),
                f"{trials.error[row]:.2f}",
                *("-" if np.isnan(trials.columns[c][row]) else format_value(c, trials.columns[c][row]) for c in costs),
                _no_break(" ".join(map(str, network.depths))),
                _no_break(" ".join(map(str, network.widths))),
                _no_break(" ".join(map(str, network.group_widths))),
                _no_break(" ".join(f"{b:g}" for b in network.bottlenecks)),
                f"{population.fits[row].e_fit:.3f}",
            )
        )
    columns = ("best", "error (%)", *map(label, costs), "depths", "widths", "group widths", "b", "e_fit")
    return Table(columns, rows)


def _no_break(text: str) -> str:
    """Replace spaces by no-break spaces."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")
