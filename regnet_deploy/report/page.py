"""The model card as one self-contained HTML page."""

from __future__ import annotations

from typing import Any

from regnet_deploy.pages import page, pictures_html, section_html
from regnet_deploy.report.pictures import pictures
from regnet_deploy.report.sections import headline, sections


def card_page(card: dict[str, Any]) -> str:
    """Return the page of a model card.

    Raises:
        MissingExtra: matplotlib, which draws the pictures, is not installed.
    """
    name = card["architecture"]["name"]
    body = pictures_html(pictures(card)) + "".join(map(section_html, sections(card)))
    return page(f"{name} - model card", name, headline(card), body)
