"""Columns have one name, one unit, and a place to be looked at."""

from __future__ import annotations

import numpy as np
import pytest

from regnet_deploy.analysis.columns import (
    check_columns,
    columns_of,
    default_columns,
    divisor,
    format_value,
    label,
    short_label,
    varies,
)
from regnet_deploy.analysis.line_fit import LineFit
from regnet_deploy.errors import UsageError


@pytest.mark.parametrize(
    ("column", "labelled"),
    [
        ("macs", "MACs (M)"),
        ("d", "d (blocks)"),
        ("d_1", "d_1 (blocks)"),
        ("w_0", "w_0 (channels)"),
        ("w_4", "w_4 (channels)"),
        ("g_12", "g_12 (channels)"),
        ("w_m", "w_m"),
        ("b_2", "b_2"),
        ("latency", "latency"),
    ],
)
def test_labels_have_their_unit(column, labelled):
    assert label(column) == labelled
    assert short_label(column) == labelled.split(" (")[0]


def test_values_are_written_in_the_unit_of_the_label():
    assert format_value("macs", 395.7e6) == "395.7"
    assert format_value("w_4", 1024) == "1024"
    assert (divisor("activations"), divisor("g")) == (1e6, 1)


def test_the_default_is_what_was_drawn_and_what_it_costs_where_it_varies(population):
    trials = population()
    columns = columns_of(trials, [LineFit(i / 100, 8, 1.0, 2.0) for i in range(len(trials))])
    assert default_columns(columns, trials.drawn) == ("w_1", "g", "d", "macs", "parameters", "activations", "e_fit")
    assert default_columns(trials.columns, ("d", "gone"))[0] == "d"
    assert "e_fit" not in columns_of(trials, ())


def test_what_varies_has_two_known_values():
    assert varies(np.array([1.0, 2.0]))
    assert not varies(np.array([1.0, 1.0, np.nan]))
    assert not varies(np.array([np.nan, np.nan]))


def test_an_unknown_column_is_refused_with_the_nearest(population):
    columns = population().columns
    check_columns(["macs", "ms"], [columns, {}])
    with pytest.raises(UsageError, match=r"no population has a column 'mac' \(did you mean macs\?\); known: macs, "):
        check_columns(["mac"], [columns])
    with pytest.raises(UsageError, match="no population has a column 'x'"):
        check_columns(["x"], [{"x": np.array([np.nan])}])
