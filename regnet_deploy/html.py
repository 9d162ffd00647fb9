"""Self-contained HTML pages of sections, tables and figures, without scripts and external resources."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --line: #dfe3e8; --accent: #0072B2; --paper: #fff;
  --page: #f4f6f8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --soft: #9aa5b1; --line: #363d46; --accent: #6cb6ff;
  --paper: #1b2027; --page: #12161b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
header p { color: var(--soft); margin-top: 0; }
h1 { font-size: 1.9rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 .75rem; color: var(--accent); overflow-wrap: anywhere; }
section, figure { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 1.1rem 1.25rem;
  margin: 1rem 0; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); gap: 1rem;
  margin: 1rem 0; }
.pictures figure { margin: 0; }
figure svg { width: 100%; height: auto; color: var(--ink); }
figure svg text { fill: currentColor; }
figure .scroll svg { min-width: 44rem; }
figcaption { color: var(--soft); font-size: .9rem; }
dl { display: grid; grid-template-columns: minmax(9rem, 14rem) 1fr; gap: .35rem 1rem; margin: 0 0 .75rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
.scroll + .scroll { margin-top: 1.1rem; }
th, td { padding: .3rem .45rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
th:first-child, td:first-child { text-align: left; }
STACKED
@media (max-width: 34rem) { main { padding: 1rem .75rem 3rem; } section, figure { padding: .9rem; }
  dl { grid-template-columns: minmax(0, 1fr); } dd { margin-bottom: .4rem; } }
"""

#: Below the width, each row of a table is a list of names and values.
_STACKED = """@media (max-width: WIDTH) {
  SELECTOR, SELECTOR tbody { display: block; } SELECTOR thead { display: none; }
  SELECTOR tr { display: block; padding: .4rem 0; border-bottom: 1px solid var(--line); }
  SELECTOR td { display: grid; grid-template-columns: minmax(7rem, 2fr) 3fr; gap: .75rem; border: 0; padding: .1rem 0;
    text-align: left; overflow-wrap: anywhere; }
  SELECTOR td::before { content: attr(data-name); color: var(--soft); }
  SELECTOR td:first-child { font-weight: 600; } }
"""
#: A table with more columns is stacked at the width of a small laptop already.
_MANY_COLUMNS = 8


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
    """A figure as an ``<svg>`` element, and what it shows in words; a wide one is scrolled on a narrow screen."""

    svg: str
    caption: str
    wide: bool = False


def html_document(title: str, heading: str, lead: str, body: str, style: str = "") -> str:
    """Return a whole page.

    Args:
        title: of the window.
        heading: of the page.
        lead: one line below the heading.
        body: HTML, from the functions below.
        style: CSS for parts of the body that are of this page alone.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_style()}{style}</style></head><body><main>"
        f"<header><h1>{escape(heading)}</h1><p>{escape(lead)}</p></header>{body}</main></body></html>\n"
    )


def section_html(section: Section) -> str:
    """Return a section with its facts and tables."""
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in section.facts)
    listed = f"<dl>{facts}</dl>" if facts else ""
    return f"<section><h2>{escape(section.title)}</h2>{listed}{''.join(map(_table_html, section.tables))}</section>"


def figure_html(figure: HtmlFigure) -> str:
    """Return a figure with its caption, as wide as the page."""
    drawing = f'<div class="scroll">{figure.svg}</div>' if figure.wide else figure.svg
    return (
        f'<figure role="img" aria-label="{escape(figure.caption, quote=True)}">{drawing}'
        f"<figcaption>{escape(figure.caption)}</figcaption></figure>"
    )


def figures_html(figures: Iterable[HtmlFigure]) -> str:
    """Return figures side by side, as many in a row as fit."""
    return f'<div class="pictures">{"".join(map(figure_html, figures))}</div>'


def _style() -> str:
    stacked = "".join(
        _STACKED.replace("SELECTOR", selector).replace("WIDTH", width)
        for selector, width in (("table", "57rem"), ("table.many", "74rem"))
    )
    return _STYLE.replace("STACKED\n", stacked)


def _table_html(table: Table) -> str:
    names = [escape(column, quote=True) for column in table.columns]
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    rows = "".join(
        "<tr>"
        + "".join(f'<td data-name="{name}">{escape(cell)}</td>' for name, cell in zip(names, row, strict=True))
        + "</tr>"
        for row in table.rows
    )
    many = ' class="many"' if len(names) > _MANY_COLUMNS else ""
    return f'<div class="scroll"><table{many}><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
