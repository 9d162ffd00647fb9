"""Plots of populations, in the style of arXiv 2003.13678 and 1905.13214."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.analysis.best_range import BestRange
from regnet_deploy.analysis.columns import divisor, label, short_label
from regnet_deploy.analysis.edf import ErrorDistribution
from regnet_deploy.analysis.line_fit import LineFit
from regnet_deploy.analysis.random_search import SearchCurve
from regnet_deploy.errors import require
from regnet_deploy.plotting import COLORS, GREY, MARKS
from regnet_deploy.space.network import Network

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Float = NDArray[np.float64]

_LINES = ("-", "--", ":", "-.")
#: Panels in a row that are legible at the width of a page.
_PANELS_PER_ROW = 4
#: Maximum number of characters of a name in a legend.
_MAX_NAME = 32
#: From this number on, points are drawn as one image, because an SVG with thousands of them is slow to display.
_MANY_POINTS = 300
#: From this ratio of the largest to the smallest value on, an axis is logarithmic.
_LOG_FROM = 12


def plot_edfs(curves: Sequence[tuple[str, ErrorDistribution]], *, given: str | None = None) -> Figure:
    """Plot the error EDF of each population; the legend has ``[min|mean] name``, as in the paper.

    Errors far above the others are beyond the right edge, where the curve ends below 1.

    Args:
        curves: name and distribution of each population.
        given: the complexity by which the distributions are normalized.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    figure, axis = _figure()
    right = max(_top(errors.errors) for _, errors in curves)
    left = min(errors.minimum for _, errors in curves)
    margin = 0.04 * ((right - left) or 1)
    for i, (name, errors) in enumerate(curves):
        x = np.concatenate([[left - 2 * margin], errors.errors, [max(right, errors.errors[-1]) + 2 * margin]])
        y = np.concatenate([[0.0], np.cumsum(errors.weights), [1.0]])
        text = f"[{errors.minimum:.1f}|{errors.mean:.1f}] {_legend(name)}"
        axis.step(x, y, where="post", color=_color(i), linestyle=_line(i), linewidth=1.8, label=text)
    axis.set_xlim(left - margin, right + margin)
    axis.set_ylim(0, 1.02)
    axis.set_xlabel("top-1 error (%)" + (f" given {short_label(given)}" if given else ""))
    axis.set_ylabel("fraction of networks below this error")
    axis.legend(loc="lower right", fontsize=8, framealpha=0.85, edgecolor="none", title="[min|mean]", title_fontsize=8)
    return figure


def plot_random_search(curves: Sequence[tuple[str, SearchCurve]]) -> Figure:
    """Plot the expected lowest error of m random networks, with a band of plus and minus two standard deviations.

    The lower limit of the band is the lowest error of the population.

    Args:
        curves: name and curve of each population.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    figure, axis = _figure()
    for i, (name, curve) in enumerate(curves):
        m = np.arange(1, len(curve.expected) + 1)
        low = np.maximum(curve.expected - 2 * curve.deviation, curve.expected[-1])
        marked = np.unique(np.append(2 ** np.arange(len(m).bit_length()) - 1, len(m) - 1))
        axis.plot(
            m,
            curve.expected,
            color=_color(i),
            linestyle=_line(i),
            marker=MARKS[i % len(MARKS)],
            markevery=marked.tolist(),
            markersize=4,
            label=_legend(name),
        )
        axis.fill_between(m, low, curve.expected + 2 * curve.deviation, color=_color(i), alpha=0.13, linewidth=0)
    # For one network the band can be very wide, because it reflects the tail of the population.
    top = max(float(curve.expected[0]) for _, curve in curves)
    bottom = min(float(curve.expected[-1]) for _, curve in curves)
    span = (top - bottom) or 1
    axis.set_ylim(bottom - 0.06 * span, top + 0.5 * span)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.minorticks_off()
    axis.set_xlabel("number of random networks")
    axis.set_ylabel("lowest top-1 error (%)")
    axis.legend(loc="upper right", fontsize=8, framealpha=0.85, edgecolor="none")
    return figure


def plot_parameters(errors: Float, columns: Mapping[str, Float], ranges: Sequence[BestRange]) -> Figure:
    """Plot the error over each column, with the 95 % interval and the median of the best value.

    Networks with an error far above the others are triangles at the upper edge.

    Args:
        errors: top-1 errors, percent, ``(n,)``.
        columns: values of each column, ``(n,)``.
        ranges: one for each panel.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    require("matplotlib", "plot")
    from matplotlib.figure import Figure

    across = min(_PANELS_PER_ROW, len(ranges))
    rows = -(-len(ranges) // across)
    figure = Figure(figsize=(max(2.35 * across, 4.2), 2.1 * rows + 0.5), layout="constrained", dpi=160)
    grid = figure.subplots(rows, across, sharey=True, squeeze=False)
    top = _top(errors)
    margin = 0.06 * ((top - errors.min()) or 1)
    for axis, made in zip(grid.flat, ranges, strict=False):
        x = columns[made.column] / divisor(made.column)
        _dots(axis, x, errors, top)
        low, median, high = (value / divisor(made.column) for value in (made.low, made.median, made.high))
        axis.axvspan(low, high, color=COLORS[1], alpha=0.16, linewidth=0, label="95 % interval of the best")
        axis.axvline(median, color=COLORS[1], linewidth=1.6, label="median of the best")
        _scale(axis, x)
        axis.set_xlabel(label(made.column), fontsize=9)
    for axis in grid.flat[len(ranges) :]:
        axis.set_visible(False)
    grid[0, 0].set_ylim(errors.min() - margin, top + margin)
    for axis in figure.axes:
        _tidy(axis)
        axis.tick_params(labelsize=8)
    figure.supylabel("top-1 error (%)", fontsize=9)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def plot_widths(errors: Float, networks: Sequence[Network], fits: Sequence[LineFit], *, each: int = 4) -> Figure:
    """Plot the widths of the blocks of the best and the worst networks, with the fitted lines.

    Args:
        errors: top-1 errors, percent, ``(n,)``.
        networks: the networks, ``n``.
        fits: the fitted line of each network.
        each: number of best and of worst networks; fewer if the population is small.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    require("matplotlib", "plot")
    from matplotlib.figure import Figure

    order = np.argsort(errors, kind="stable")
    across = max(1, min(each, len(order) // 2))
    figure = Figure(figsize=(max(2.35 * across, 4.2), 4.8), layout="constrained")
    grid = figure.subplots(2, across, sharey=True, squeeze=False)
    kinds = (("best", order[:across], COLORS[0]), ("worst", order[::-1][:across], COLORS[1]))
    for (kind, rows, color), axes in zip(kinds, grid, strict=True):
        for axis, row in zip(axes, rows, strict=True):
            _widths(axis, networks[row], fits[row], color)
            axis.set_title(f"{kind}: {errors[row]:.1f} %, e_fit {fits[row].e_fit:.2f}", fontsize=8.5)
    for axis in figure.axes:
        _tidy(axis)
        axis.tick_params(labelsize=8)
    figure.supxlabel("block j", fontsize=9)
    figure.supylabel("width (channels)", fontsize=9)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower right", ncols=2, fontsize=8, frameon=False)
    return figure


def _figure() -> tuple[Figure, Axes]:
    require("matplotlib", "plot")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 3.3), layout="constrained")
    axis = figure.subplots()
    _tidy(axis)
    return figure, axis


def _tidy(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    axis.set_axisbelow(True)


def _color(i: int) -> str:
    return COLORS[i % len(COLORS)]


def _line(i: int) -> str:
    return _LINES[i // len(COLORS) % len(_LINES)]


def _legend(name: str) -> str:
    """Return the label of a name: long names are shortened to their end, and the markup of matplotlib is escaped."""
    shown = name if len(name) <= _MAX_NAME else "..." + name[3 - _MAX_NAME :]
    plain = shown.replace("$", r"\$")
    return f" {plain}" if plain.startswith("_") else plain  # matplotlib hides labels that start with _


def _top(errors: Float) -> float:
    """Return the upper limit of the axis of errors: the largest error, unless it is far above almost all others."""
    most = np.quantile(errors, 0.95)
    return float(min(errors.max(), most + 0.5 * (most - errors.min()))) if most > errors.min() else float(errors.max())


def _dots(axis: Axes, x: Float, errors: Float, top: float) -> None:
    beyond = errors > top
    many = len(errors) > _MANY_POINTS
    style: dict[str, Any] = {"color": COLORS[0], "alpha": 0.55 if many else 0.85, "linewidths": 0, "zorder": 3}
    axis.scatter(x[~beyond], errors[~beyond], s=9, label="network", rasterized=many, **style)
    if beyond.any():
        edge = np.full(beyond.sum(), top)
        axis.scatter(x[beyond], edge, s=14, marker="^", color=GREY, linewidths=0, label=f"network above {top:.0f} %")


def _scale(axis: Axes, x: Float) -> None:
    from matplotlib.ticker import MaxNLocator

    known = x[np.isfinite(x)]
    powers_of_2 = bool((known > 0).all() and (np.frexp(known)[0] == 0.5).all())
    if powers_of_2 or (known.min() >= 1 and known.max() / known.min() >= _LOG_FROM):
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
    else:
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=bool((known == np.round(known)).all())))


def _widths(axis: Axes, network: Network, fit: LineFit, color: str) -> None:
    from matplotlib.ticker import MaxNLocator

    widths = network.block_widths()
    j = np.arange(len(widths))
    axis.step(j, widths, where="mid", color=color, linewidth=1.4)
    axis.plot(j, widths, "o", color=color, markersize=3, label="block")
    axis.plot(j, fit.w_0 + fit.w_a * j, color=GREY, linestyle="--", linewidth=1.4, label="fitted line w_0 + w_a j")
    axis.set_yscale("log", base=2)
    axis.yaxis.set_major_formatter("{x:g}")
    axis.minorticks_off()
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
