"""Pictures show the figures: curves, labels with units, intervals."""

from __future__ import annotations

import io

import numpy as np
import pytest

from regnet_deploy.analysis.analysis import analyze
from regnet_deploy.analysis.columns import columns_of
from regnet_deploy.analysis.edf import error_distribution
from regnet_deploy.analysis.line_fit import fit_lines
from regnet_deploy.analysis.plots import plot_edfs, plot_parameters, plot_random_search, plot_widths
from regnet_deploy.analysis.random_search import search_curve


def drawn(figure):
    """Draw, so that what fails or warns in drawing does so here."""
    figure.savefig(io.BytesIO(), format="svg")
    return figure


def legend_of(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


def test_the_edf_has_the_papers_legend_and_heights():
    errors = np.array([30.0, 35.0, 40.0, 45.0])
    (axis,) = drawn(plot_edfs([("A", error_distribution(errors)), ("B", error_distribution(errors + 1))])).axes
    assert legend_of(axis) == ["[30.0|37.5] A", "[31.0|38.5] B"]
    assert axis.get_xlabel() == "top-1 error (%)"
    x, y = axis.lines[0].get_data()
    assert x[1:-1].tolist() == errors.tolist()
    assert y == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1])


def test_the_edf_names_the_complexity_and_leaves_far_errors_beyond_its_edge():
    errors = np.append(np.linspace(30, 40, 99), 99.9)
    (axis,) = drawn(plot_edfs([("A", error_distribution(errors))], given="macs")).axes
    assert axis.get_xlabel() == "top-1 error (%) given MACs"
    assert 40 < axis.get_xlim()[1] < 50


def test_more_populations_than_colours_differ_in_their_lines():
    (axis,) = drawn(plot_edfs([(str(i), error_distribution(np.array([30.0 + i, 40.0]))) for i in range(8)])).axes
    styles = {(line.get_color(), line.get_linestyle()) for line in axis.lines}
    assert len(styles) == 8


@pytest.mark.parametrize(
    ("name", "shown"),
    [("_a", " _a"), ("$x$", r"\$x\$"), ("folder/" * 9 + "a.json", "...older/folder/folder/a.json")],
)
def test_any_name_can_stand_in_a_legend(name, shown):
    errors = np.array([30.0, 40.0])
    (axis,) = drawn(plot_random_search([(name, search_curve(errors))])).axes
    (text,) = legend_of(axis)
    assert text.endswith(shown[-20:])
    assert len(text) <= 32 + 2
    drawn(plot_edfs([(name, error_distribution(errors))]))


def test_equal_errors_can_be_drawn():
    errors = np.full(5, 40.0)
    drawn(plot_edfs([("A", error_distribution(errors))]))
    drawn(plot_random_search([("A", search_curve(errors))]))


def test_the_search_curve_has_a_band_down_to_the_least_error():
    errors = np.random.default_rng(0).normal(40, 3, 50)
    curve = search_curve(errors)
    (axis,) = drawn(plot_random_search([("A", curve)])).axes
    assert axis.lines[0].get_ydata() == pytest.approx(curve.expected)
    band = axis.collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(errors.min())
    assert band.max() == pytest.approx((curve.expected + 2 * curve.deviation).max())


def test_a_panel_a_column_with_its_interval_and_median(population):
    trials = population(n=40)
    (analysed,) = analyze([trials], repeats=100).populations
    figure = drawn(plot_parameters(trials.error, columns_of(trials, analysed.fits), analysed.ranges))
    axes = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_xlabel() for axis in axes][:4] == ["w_1 (channels)", "g (channels)", "d (blocks)", "MACs (M)"]
    assert len(axes) == len(analysed.ranges) == 7
    macs = analysed.ranges[3]
    assert axes[3].lines[0].get_xdata()[0] == pytest.approx(macs.median / 1e6)
    span = axes[3].patches[0].get_bbox() if axes[3].patches else None
    assert (span.x0, span.x1) == pytest.approx((macs.low / 1e6, macs.high / 1e6))
    assert axes[1].get_xscale() == "log"  # g is 1, 2, 4, 8
    assert axes[3].get_xscale() == "linear"


def test_unknown_values_and_far_errors_do_not_spoil_a_panel(population):
    trials = population(n=40)
    trials.error[0] = 99.0
    (analysed,) = analyze([trials], repeats=100, columns=["ms"]).populations
    figure = drawn(plot_parameters(trials.error, trials.columns, analysed.ranges))
    assert figure.axes[0].get_ylim()[1] < 60
    assert [text.get_text() for text in figure.legends[0].get_texts()][1].startswith("network above")


@pytest.mark.parametrize(("n", "across"), [(2, 1), (3, 1), (20, 4)])
def test_widths_of_the_best_above_those_of_the_worst(population, n, across):
    trials = population(n=n)
    figure = drawn(plot_widths(trials.error, trials.networks, fit_lines(trials.networks)))
    assert len(figure.axes) == 2 * across
    assert figure.axes[0].get_title().startswith(f"best: {trials.error.min():.1f} %")
    assert figure.axes[across].get_title().startswith(f"worst: {trials.error.max():.1f} %")
    best = trials.networks[int(trials.error.argmin())]
    assert figure.axes[0].lines[0].get_ydata().tolist() == list(best.block_widths())
