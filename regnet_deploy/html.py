"""Self-contained HTML pages of sections, tables and figures, without scripts and external resources."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape

_STYLE = """
:root { color-scheme: light; --ink: #1b1f24; --soft: #5b6570; --line: #dfe3e8; --accent: #0072B2; --paper: #fff; }
* { box-sizing: border-box; }
body { margin: 0; background: #f4f6f8; color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
header p { color: var(--soft); margin-top: 0; }
h1 { font-size: 1.9rem; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 0 0 .75rem; color: var(--accent); }
section, figure { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 1.1rem 1.25rem;
  margin: 1rem 0; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(24rem, 1fr)); gap: 1rem; margin: 1rem 0; }
.pictures figure { margin: 0; }
figure svg { width: 100%; height: auto; }
figcaption { color: var(--soft); font-size: .9rem; }
dl { display: grid; grid-template-columns: minmax(9rem, 14rem) 1fr; gap: .35rem 1rem; margin: 0 0 .75rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
.scroll + .scroll { margin-top: 1.1rem; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .45rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
th { color: var(--soft); font-weight: 600; }
@media (max-width: 34rem) { dl { grid-template-columns: 1fr; } dd { margin-bottom: .4rem; } }
"""


@dataclass(frozen=True)
class Table:
    """A table: column names (with units) and rows of text; the first column is text, the others numbers."""

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


@dataclass(frozen=True)
class Section:
    """A heading, facts as (name, value), and tables."""

    title: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


@dataclass(frozen=True)
class HtmlFigure:
    """A figure as an ``<svg>`` element, and what it shows in words."""

    svg: str
    caption: str


def html_document(title: str, heading: str, lead: str, body: str) -> str:
    """Return a whole page.

    Args:
        title: of the window.
        heading: of the page.
        lead: one line below the heading.
        body: HTML, from the functions below.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>"
        f"<header><h1>{escape(heading)}</h1><p>{escape(lead)}</p></header>{body}</main></body></html>\n"
    )


def section_html(section: Section) -> str:
    """Return a section with its facts and tables."""
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in section.facts)
    listed = f"<dl>{facts}</dl>" if facts else ""
    return f"<section><h2>{escape(section.title)}</h2>{listed}{''.join(map(_table_html, section.tables))}</section>"


def figure_html(figure: HtmlFigure) -> str:
    """Return a figure with its caption, as wide as the page."""
    return (
        f'<figure role="img" aria-label="{escape(figure.caption, quote=True)}">{figure.svg}'
        f"<figcaption>{escape(figure.caption)}</figcaption></figure>"
    )


def figures_html(figures: Iterable[HtmlFigure]) -> str:
    """Return figures side by side, as many in a row as fit."""
    return f'<div class="pictures">{"".join(map(figure_html, figures))}</div>'


def _table_html(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
