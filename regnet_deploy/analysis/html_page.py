"""An analysis as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence

from regnet_deploy.analysis.analysis import Analysis
from regnet_deploy.analysis.figures import NamedFigure, comparison_figures, population_figures
from regnet_deploy.analysis.tables import comparison_sections, population_section
from regnet_deploy.html import HtmlFigure, figure_html, figures_html, html_document, section_html
from regnet_deploy.plotting import figure_to_svg
from regnet_deploy.populations.trials import Trials


def analysis_html(analysis: Analysis, populations: Sequence[Trials]) -> str:
    """Return the page of an analysis.

    Args:
        analysis: of the populations.
        populations: the same, in the same order.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    body = figures_html(map(_picture, comparison_figures(analysis)))
    body += "".join(map(section_html, comparison_sections(analysis)))
    for population, trials in zip(analysis.populations, populations, strict=True):
        body += section_html(population_section(analysis, population, trials))
        body += "".join(figure_html(_picture(named)) for named in population_figures(population, trials))
    names = ", ".join(population.name for population in analysis.populations)
    networks = sum(population.distribution.n for population in analysis.populations)
    of = f"{len(analysis.populations)} populations" if len(analysis.populations) > 1 else "one population"
    return html_document(
        f"{names} - analysis", names, f"{networks:,} trained networks of {of}. Errors are top-1.", body
    )


def _picture(named: NamedFigure) -> HtmlFigure:
    return HtmlFigure(figure_to_svg(named.figure), named.caption)
