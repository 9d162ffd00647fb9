"""The model card as one self-contained HTML page."""

from __future__ import annotations

from regnet_deploy.html import figures_html, html_document, section_html
from regnet_deploy.report.card import ModelCard
from regnet_deploy.report.plots import card_figures
from regnet_deploy.report.sections import card_sections, headline


def card_html(card: ModelCard) -> str:
    """Return the page of a model card.

    Raises:
        MissingExtra: matplotlib, which draws the figures, is not installed.
    """
    name = card.architecture.name
    body = figures_html(card_figures(card)) + "".join(map(section_html, card_sections(card)))
    return html_document(f"{name} - model card", name, headline(card), body)
