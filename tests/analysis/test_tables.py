"""Tables say what the analysis says, with a cell a column."""

from __future__ import annotations

import numpy as np
import pytest

from regnet_deploy.analysis.analysis import analyze
from regnet_deploy.analysis.tables import sections
from regnet_deploy.populations.trials import Trials


@pytest.fixture
def three(population):
    return [population("A"), population("B", seed=1, base=33.0), population("C", n=5, seed=2)]


def table(made, title, first):
    (section,) = (s for s in made if s.title == title)
    (found,) = (t for t in section.tables if t.columns[0] == first)
    return found


def test_every_row_has_a_cell_a_column(three):
    for section in sections(analyze(three, repeats=50), three):
        for found in section.tables:
            assert all(len(row) == len(found.columns) for row in found.rows)


def test_rows_are_the_figures(three):
    analysis = analyze(three, repeats=50, min_networks=2)
    made = sections(analysis, three)
    error = three[0].error
    summary = table(made, "Top-1 errors", "population").rows[0]
    assert summary == ("A", "24", f"{error.min():.2f}", f"{error.mean():.2f}", f"{np.median(error):.2f}", "0")
    pairs = table(made, "Distance of the populations", "populations").rows
    assert [row[0] for row in pairs] == ["A / B", "A / C", "B / C"]
    matrix = table(made, "Distance of the populations", "D")
    assert matrix.columns == ("D", "A", "B", "C")
    assert matrix.rows[0][2] == matrix.rows[1][1] == pairs[0][1]
    search = table(made, "Random search", "population")
    assert search.columns == ("population", "1", "2", "4", "8", "16")
    assert search.rows[2][4:] == ("-", "-")
    assert search.rows[0][1].startswith(f"{error.mean():.2f}\N{NO-BREAK SPACE}± ".replace(" ", "\N{NO-BREAK SPACE}"))


def test_the_best_networks_are_listed_in_order(three):
    best = table(sections(analyze(three, repeats=50), three), "A", "best")
    assert [row[1] for row in best.rows] == [f"{e:.2f}" for e in np.sort(three[0].error)[:5]]
    network = three[0].networks[int(three[0].error.argmin())]
    assert best.rows[0][5].split() == [str(d) for d in network.depths]


def test_one_population_is_compared_with_none(population):
    trials = population("A")
    assert [s.title for s in sections(analyze([trials], repeats=50), [trials])] == [
        "Top-1 errors",
        "Random search",
        "A",
    ]


def test_a_population_of_errors_alone_has_no_section_of_its_own():
    trials = Trials("bare", np.array([30.0, 40.0]), {})
    assert [s.title for s in sections(analyze([trials]), [trials])] == ["Top-1 errors", "Random search"]
