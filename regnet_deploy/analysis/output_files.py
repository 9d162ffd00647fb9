"""Writes the files of an analysis: figures, an HTML page, the population as CSV, and the narrowed space."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from regnet_deploy.analysis.analysis import Analysis, PopulationAnalysis
from regnet_deploy.analysis.columns import columns_of, short_label
from regnet_deploy.analysis.plots import plot_edfs, plot_parameters, plot_random_search, plot_widths
from regnet_deploy.analysis.tables import comparison_sections, population_section
from regnet_deploy.errors import UsageError
from regnet_deploy.html import HtmlFigure, figure_html, figures_html, html_document, section_html
from regnet_deploy.output_file import write_output_file
from regnet_deploy.plotting import figure_to_svg, save_figure
from regnet_deploy.populations.csv_table import write_csv
from regnet_deploy.populations.store import is_store, read_store
from regnet_deploy.populations.trials import Trials, file_name
from regnet_deploy.space.space_file import find_space, space_from, write_space
from regnet_deploy.space.spaces import Space

if TYPE_CHECKING:
    from matplotlib.figure import Figure


#: A wider figure has several panels in a row, which are not legible on a narrow screen.
_WIDE_INCHES = 6


class NamedFigure(NamedTuple):
    """A figure, its file name without the suffix, and its caption."""

    name: str
    figure: Figure
    caption: str


def comparison_figures(analysis: Analysis) -> list[NamedFigure]:
    """Return the figures that show all populations.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    names = [population.name for population in analysis.populations]
    plain = [(p.name, p.distribution) for p in analysis.populations]
    figures = [
        NamedFigure("edf", plot_edfs(plain), "Fraction of networks below each error (EDF)."),
        NamedFigure(
            "random-search",
            plot_random_search([(p.name, p.search) for p in analysis.populations]),
            "Expected lowest error of m random networks; the band is plus and minus two standard deviations.",
        ),
    ]
    if len(names) > 1:
        for column, normalized in analysis.normalized.items():
            curves = list(zip(names, normalized.distributions, strict=True))
            caption = f"EDF with the same distribution of {short_label(column)} in all populations."
            figures.append(NamedFigure(f"edf-{column}", plot_edfs(curves, given=column), caption))
    return figures


def population_figures(population: PopulationAnalysis, trials: Trials) -> list[NamedFigure]:
    """Return the figures that show one population.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    figures = []
    file = file_name(population.name)
    if population.ranges:
        columns = columns_of(trials, population.fits)
        caption = f"{population.name}: error over each column, and the range of the best value."
        figures.append(
            NamedFigure(f"{file}-parameters", plot_parameters(trials.error, columns, population.ranges), caption)
        )
    if population.fits:
        caption = f"{population.name}: widths of the blocks of the best and the worst networks."
        figures.append(
            NamedFigure(f"{file}-widths", plot_widths(trials.error, trials.networks, population.fits), caption)
        )
    return figures


def all_figures(analysis: Analysis, populations: Sequence[Trials]) -> list[NamedFigure]:
    """Return every figure; the populations are in the order of the analysis."""
    pairs = zip(analysis.populations, populations, strict=True)
    return [*comparison_figures(analysis), *(named for pair in pairs for named in population_figures(*pair))]


def analysis_html(analysis: Analysis, populations: Sequence[Trials]) -> str:
    """Return an analysis as one self-contained HTML page.

    Args:
        analysis: the analysis of the populations.
        populations: the populations, in the same order.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    body = figures_html(map(_html_figure, comparison_figures(analysis)))
    body += "".join(map(section_html, comparison_sections(analysis)))
    for population, trials in zip(analysis.populations, populations, strict=True):
        body += section_html(population_section(analysis, population, trials))
        body += "".join(figure_html(_html_figure(named)) for named in population_figures(population, trials))
    names = ", ".join(population.name for population in analysis.populations)
    networks = sum(population.distribution.n for population in analysis.populations)
    of = f"{len(analysis.populations)} populations" if len(analysis.populations) > 1 else "one population"
    return html_document(
        f"{names} - analysis", names, f"{networks:,} trained networks of {of}. Errors are top-1.", body
    )


def write_page(path: Path, analysis: Analysis, populations: Sequence[Trials]) -> None:
    """Write the HTML page."""
    write_output_file(path, analysis_html(analysis, populations).encode())


def write_figures(folder: Path, suffix: str, analysis: Analysis, populations: Sequence[Trials]) -> list[str]:
    """Write every figure as a file, and return the names without the suffix.

    Raises:
        UsageError: the folder or a file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot create the folder {folder}: {error.strerror}") from None
    figures = all_figures(analysis, populations)
    for named in figures:
        save_figure(named.figure, folder / f"{named.name}.{suffix}")
    return [named.name for named in figures]


def write_csv_file(path: Path, source: Path) -> int:
    """Write the population of a store as CSV, with the trials that diverged or failed; return the number of trials."""
    with read_store(source) as store:
        write_output_file(path, write_csv(store).encode())
        return len(store.outcomes())


def write_space_file(path: Path, space: Space) -> None:
    """Write a space as a YAML file."""
    write_output_file(path, write_space(space).encode())


def space_of(source: Path, name: str | None) -> Space:
    """Return the space that a population was drawn from: the named one, or the one that its store records.

    Raises:
        UsageError: no space is named, and the file does not record one.
    """
    if name:
        return find_space(name)
    if not is_store(source):
        raise UsageError(f"{source} does not record its space: name it with --space")
    with read_store(source) as store:
        data = store.identity.get("space")
    if data is None:
        raise UsageError(f"{source} was not drawn from a space: name one with --space")
    return space_from(data)


def _html_figure(named: NamedFigure) -> HtmlFigure:
    return HtmlFigure(figure_to_svg(named.figure), named.caption, wide=named.figure.get_size_inches()[0] > _WIDE_INCHES)
