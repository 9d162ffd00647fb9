"""The page of an analysis is one file without a script."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from regnet_deploy.analysis.analysis import analyze
from regnet_deploy.analysis.output_files import analysis_html
from regnet_deploy.populations.trials import Trials


def test_the_page_holds_every_section_and_picture_and_loads_nothing(population):
    populations = [population("<b>A</b>"), replace(population("B", seed=1), networks=())]
    analysis = analyze(populations, repeats=50, columns=["g", "macs"])
    html = analysis_html(analysis, populations)
    assert html.count("<figure") == 2 + 3 + 2 + 1
    assert "<h2>&lt;b&gt;A&lt;/b&gt;</h2>" in html
    assert "<b>A" not in html
    assert "48 trained networks of 2 populations" in html
    assert not re.search(r"<(script|link|img|iframe)\b|(src|href)=\"http", html.replace("xlink:href", ""))


@pytest.mark.parametrize("errors", [[30.0, 40.0], [40.0, 40.0]])
def test_errors_alone_make_a_page(errors):
    trials = Trials("bare", np.array(errors), {})
    html = analysis_html(analyze([trials]), [trials])
    assert html == analysis_html(analyze([trials]), [trials])
    assert html.count("<figure") == 2
    assert "2 trained networks of one population" in html


def test_equal_errors_make_a_page(population):
    trials = population()
    trials = replace(trials, error=np.full(len(trials), 40.0))
    assert analysis_html(analyze([trials], repeats=50), [trials]).count("<figure") == 4
