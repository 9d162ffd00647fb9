"""Plots the candidates of a budget, the best one, and the published networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from regnet_deploy.plotting import COLORS, GREY, check_plot_path, save_figure
from regnet_deploy.selection.selection import Selection, published_candidate
from regnet_deploy.space.published import baselines

BLUE, ORANGE = COLORS[:2]


def plot_selection(selection: Selection, path: str | Path, *, seed: int = 0, max_points: int = 5000) -> None:
    """Plot the score over parameters and over activations, side by side; all candidates have the MACs of the budget.

    Args:
        selection: the candidates.
        path: file to write, ``.png``, ``.svg`` or ``.pdf``.
        seed: seed of the random sample that is drawn if there are more than ``max_points`` candidates.
        max_points: largest number of candidates that are drawn.
    """
    target = check_plot_path(path)
    from matplotlib.figure import Figure

    rows = np.arange(selection.considered)
    if len(rows) > max_points:
        rows = np.sort(np.random.default_rng(seed).choice(rows, max_points, replace=False))
    candidates, scores = selection.candidates, selection.candidates.score
    best = selection.best
    near = []
    for entry in baselines(selection.family):
        candidate = published_candidate(entry, selection.budget)
        if candidate.score is not None and best.macs / 1.6 <= candidate.macs <= best.macs * 1.6:
            near.append((entry.name, candidate, candidate.score))
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    family = f"RegNet{selection.family.upper()}"
    figure.suptitle(
        f"{selection.considered:,} {family}s with {selection.budget.macs / 1e9:g} GMACs "
        f"± {selection.budget.tolerance * 100:g} % at {selection.budget.resolution} pixels"
    )
    panels = (("parameters", "parameters (M)"), ("activations", "activations (M)"))
    for axis, (name, label) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        values = getattr(candidates, name)[rows] / 1e6
        axis.scatter(
            values, scores[rows], s=6, color=GREY, alpha=0.5, linewidths=0, label="candidates", rasterized=True
        )
        for i, (text, candidate, score) in enumerate(near):
            x = getattr(candidate, name) / 1e6
            legend = None if i else "published"
            axis.scatter(x, score, s=45, marker="D", color=BLUE, label=legend, zorder=3)
            axis.annotate(
                text.removeprefix("RegNet"), (x, score), xytext=(6, -10), textcoords="offset points", fontsize=8
            )
        x = getattr(best, name) / 1e6
        axis.scatter(x, scores[0], s=130, marker="*", color=ORANGE, label="first", zorder=4)
        axis.margins(x=0.15)
        axis.set_xlabel(label)
        axis.grid(alpha=0.25)
        shown = [*scores[rows], *(score for *_, score in near)]
        top, bottom = max(shown), max(min(shown), np.quantile(scores, 0.02))
        axis.set_ylim(bottom - 0.05 * (top - bottom), top + 0.08 * (top - bottom))
    axes = figure.axes
    axes[0].set_ylabel("score (log-likelihood under the trends)")
    axes[0].legend(loc="lower left", fontsize=8, framealpha=0.9)
    save_figure(figure, target)
