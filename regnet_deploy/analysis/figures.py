"""All figures of an analysis by name, for files and for the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from regnet_deploy.analysis.analysis import Analysis, PopulationAnalysis
from regnet_deploy.analysis.columns import columns_of, short_label
from regnet_deploy.analysis.plots import plot_edfs, plot_parameters, plot_random_search, plot_widths
from regnet_deploy.populations.trials import Trials, file_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class NamedFigure(NamedTuple):
    """A figure, the name of its file without the suffix, and what it shows in words."""

    name: str
    figure: Figure
    caption: str


def comparison_figures(analysis: Analysis) -> list[NamedFigure]:
    """Return what shows the populations together.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    names = [population.name for population in analysis.populations]
    plain = [(p.name, p.distribution) for p in analysis.populations]
    made = [
        NamedFigure("edf", plot_edfs(plain), "Share of networks below each error (EDF)."),
        NamedFigure(
            "random-search",
            plot_random_search([(p.name, p.search) for p in analysis.populations]),
            "Least error to expect of that many random networks; the band is two standard deviations either side.",
        ),
    ]
    if len(names) > 1:
        for column, normalised in analysis.normalised.items():
            curves = list(zip(names, normalised.distributions, strict=True))
            caption = f"The EDF as if all populations had the same spread of {short_label(column)}."
            made.append(NamedFigure(f"edf-{column}", plot_edfs(curves, given=column), caption))
    return made


def population_figures(population: PopulationAnalysis, trials: Trials) -> list[NamedFigure]:
    """Return what shows one population.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    made = []
    file = file_name(population.name)
    if population.ranges:
        columns = columns_of(trials, population.fits)
        caption = f"{population.name}: error against each column, and where the best value lies."
        made.append(
            NamedFigure(f"{file}-parameters", plot_parameters(trials.error, columns, population.ranges), caption)
        )
    if population.fits:
        caption = f"{population.name}: widths of the best and of the worst networks, block by block."
        made.append(NamedFigure(f"{file}-widths", plot_widths(trials.error, trials.networks, population.fits), caption))
    return made


def all_figures(analysis: Analysis, populations: Sequence[Trials]) -> list[NamedFigure]:
    """Return every figure; populations in the order of the analysis."""
    own = zip(analysis.populations, populations, strict=True)
    return [*comparison_figures(analysis), *(named for pair in own for named in population_figures(*pair))]
