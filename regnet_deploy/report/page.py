"""The model card as one self-contained HTML page: no script, nothing loaded from elsewhere."""

from __future__ import annotations

from html import escape
from typing import Any

from regnet_deploy.report.pictures import pictures
from regnet_deploy.report.sections import Section, Table, headline, sections

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
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .45rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
th { color: var(--soft); font-weight: 600; }
@media (max-width: 34rem) { dl { grid-template-columns: 1fr; } dd { margin-bottom: .4rem; } }
"""


def card_page(card: dict[str, Any]) -> str:
    """Return the page of a model card.

    Raises:
        MissingExtra: matplotlib, which draws the pictures, is not installed.
    """
    name = escape(card["architecture"]["name"])
    drawn = "".join(
        f'<figure role="img" aria-label="{escape(picture.caption, quote=True)}">{picture.svg}'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
        for picture in pictures(card)
    )
    body = "".join(_section(section) for section in sections(card))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name} - model card</title><style>{_STYLE}</style></head><body><main>"
        f"<header><h1>{name}</h1><p>{escape(headline(card))}</p></header>"
        f'<div class="pictures">{drawn}</div>{body}</main></body></html>\n'
    )


def _section(section: Section) -> str:
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in section.facts)
    listed = f"<dl>{facts}</dl>" if facts else ""
    return f"<section><h2>{escape(section.title)}</h2>{listed}{''.join(map(_table, section.tables))}</section>"


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
