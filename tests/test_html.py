"""Pages escape what they show and load nothing."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from regnet_deploy.html import HtmlFigure, Section, Table, figure_html, figures_html, html_document, section_html

NASTY = "<script>alert('1')</script> & \"more\""


class Texts(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.texts, self.attributes = [], [], {}

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.update(attrs)

    def handle_data(self, data):
        self.texts.append(data)


def read(html):
    parser = Texts()
    parser.feed(html)
    return parser


def test_text_is_shown_as_it_is_and_never_as_markup():
    section = Section(NASTY, [(NASTY, NASTY)], [Table((NASTY,), [(NASTY,)])])
    seen = read(section_html(section))
    assert seen.tags == ["section", "h2", "dl", "dt", "dd", "div", "table", "thead", "tr", "th", "tbody", "tr", "td"]
    assert seen.texts == [NASTY] * 5


def test_a_picture_is_described_for_those_who_do_not_see_it():
    seen = read(figure_html(HtmlFigure("<svg></svg>", NASTY)))
    assert (seen.attributes["role"], seen.attributes["aria-label"]) == ("img", NASTY)
    assert seen.tags == ["figure", "svg", "figcaption"]
    wide = read(figure_html(HtmlFigure("<svg></svg>", NASTY, wide=True)))
    assert wide.tags == ["figure", "div", "svg", "figcaption"]
    assert figures_html([]) == '<div class="pictures"></div>'


def test_a_section_without_facts_has_no_list():
    assert section_html(Section("Empty")) == "<section><h2>Empty</h2></section>"


def test_a_page_is_whole_and_loads_nothing():
    html = html_document(NASTY, NASTY, NASTY, section_html(Section("x")))
    seen = read(html)
    assert html.startswith("<!doctype html>")
    assert not {"script", "link", "img", "iframe"} & set(seen.tags)
    assert not {"src", "href"} & set(seen.attributes)
    assert seen.texts.count(NASTY) == 3


@pytest.fixture(scope="module")
def page_with_everything() -> str:
    facts = [("digest", "0" * 64), ("a fact", "some words of a sentence " * 10)]
    narrow = Table(("file", "bytes", "sha256"), [("golden.safetensors", "197,400", "f" * 64)])
    many = Table(tuple(f"column {i} (unit)" for i in range(12)), [tuple(f"{i}.123e-09" for i in range(12))] * 3)
    svg = '<svg width="900pt" height="200pt" viewBox="0 0 900 200"><text x="10" y="20">text</text></svg>'
    figures = figures_html([HtmlFigure(svg.replace("900", "330"), "small")] * 3) + figure_html(
        HtmlFigure(svg, "wide", wide=True)
    )
    return html_document("t", "A-long-name-" * 8, "lead", figures + section_html(Section("s", facts, [narrow, many])))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 700, 920, 1180, 1280, 1920])
def test_a_page_fits_every_width_and_clips_no_table(
    browser: Any, page_with_everything: str, tmp_path: Path, width: int, scheme: str
) -> None:
    (tmp_path / "page.html").write_text(page_with_everything, encoding="utf-8")
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.goto(f"file://{tmp_path}/page.html")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    clipped = "[...document.querySelectorAll('section, table, td, dd')].filter(e => e.scrollWidth > e.clientWidth + 1)"
    assert page.evaluate(f"{clipped}.length") == 0
    assert page.evaluate(
        "[...document.querySelectorAll('td')].every(e => e.getBoundingClientRect().right <= innerWidth)"
    )
    ink = "getComputedStyle(document.querySelector('svg text')).fill"
    assert page.evaluate(ink) == ("rgb(27, 31, 36)" if scheme == "light" else "rgb(230, 233, 237)")
    page.close()
