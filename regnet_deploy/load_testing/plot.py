"""Plots latency against the rate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from regnet_deploy.load_testing.report import RateReport
from regnet_deploy.plotting import COLORS, GREY, MARKS, check_plot_path, save_figure

_CURVES = (("p50_ms", "p50"), ("p99_ms", "p99"))


def plot_rates(reports: Sequence[RateReport], title: str, path: str | Path) -> None:
    """Plot latency and the achieved rate against the offered rate of open loops.

    Args:
        reports: of open loops, in any order.
        title: title of the figure.
        path: file name that ends in ``.png``, ``.svg`` or ``.pdf``.

    Raises:
        UsageError: the file cannot be written.
        MissingExtra: matplotlib is not installed.
    """
    target = check_plot_path(path)
    from matplotlib.figure import Figure

    rows = sorted((report for report in reports if report.offered is not None), key=lambda one: one.offered or 0.0)
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    figure.suptitle(title, fontsize=11)
    latency, achieved = figure.subplots(1, 2, sharex=True)
    answered = [(report.offered, report.latency) for report in rows if report.latency is not None]
    for i, (name, label) in enumerate(_CURVES):
        points = [(rate, getattr(figures, name)) for rate, figures in answered]
        latency.plot(*_columns(points), color=COLORS[i], marker=MARKS[i], label=label)
    # The percentiles are of correct answers; requests that timed out would be at their upper end.
    partial = [(rate, figures.p99_ms) for rate, figures in answered if rate in {row.offered for row in rows if row.bad}]
    if partial:
        ring = {"marker": "o", "linestyle": "", "markersize": 14, "markerfacecolor": "none"}
        latency.plot(*_columns(partial), color=GREY, label="without requests that had no correct answer", **ring)
    refused = [(report.offered, report.refusals.p99_ms) for report in rows if report.refusals is not None]
    if refused:
        latency.plot(*_columns(refused), color=GREY, marker="x", linestyle=":", label="p99 of refusals")
    latency.set_yscale("log")
    latency.set_ylabel("latency from the intended send time (ms)")
    offered = [report.offered for report in rows]
    achieved.plot(offered, offered, color=GREY, linestyle="--", label="offered")
    achieved.plot(offered, [report.achieved for report in rows], color=COLORS[2], marker=MARKS[2], label="achieved")
    achieved.set_ylabel("correct answers (images/s)")
    achieved.set_ylim(bottom=0)
    for axis in (latency, achieved):
        axis.set_xlabel("offered (images/s)")
        axis.grid(alpha=0.25, which="both" if axis is latency else "major")
        axis.legend(frameon=False)
    save_figure(figure, target)


def _columns(points: Sequence[tuple[float | None, float]]) -> tuple[list[float | None], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
