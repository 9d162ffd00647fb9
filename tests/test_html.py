"""Pages escape what they show and load nothing."""

from __future__ import annotations

from html.parser import HTMLParser

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
