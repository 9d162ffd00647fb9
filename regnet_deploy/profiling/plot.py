"""Plots a profile: the distribution of the cost over the stages, latency and throughput."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from regnet_deploy.bundle.measurements import ComplexityRecord, Latency, Profile
from regnet_deploy.plotting import COLORS, MARKS, check_plot_path, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_QUANTITIES = {"macs": "MACs", "parameters": "parameters", "activations": "activations"}


def plot_profile(profile: Profile, name: str, path: str | Path) -> None:
    """Plot the part ``profile`` of a bundle; latency and throughput by batch size if more than one was measured.

    Args:
        profile: the part.
        name: of the network, for the title.
        path: ``.png``, ``.svg`` or ``.pdf``.

    Raises:
        UsageError: the file cannot be written.
    """
    target = check_plot_path(path)
    from matplotlib.figure import Figure

    counts, rows, machine = profile.complexity, profile.latency, profile.machine
    curves = len({row.batch for row in rows}) > 1
    figure = Figure(figsize=(11 if curves else 6, 4.4), layout="constrained")
    figure.suptitle(
        f"{name} at {counts.resolution} pixels: {counts.macs / 1e9:.3g} GMACs,{' ' if curves else chr(10)}"
        f"{counts.parameters / 1e6:.3g} M parameters, {counts.activations / 1e6:.3g} M activations"
    )
    if not curves:
        _draw_shares(figure.subplots(), counts)
        save_figure(figure, target)
        return
    shares, latency, throughput = figure.subplots(1, 3)
    _draw_shares(shares, counts)
    _draw_latency(latency, rows)
    _draw_throughput(throughput, rows)
    handles, labels = latency.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower right", ncols=len(labels), frameon=False)
    threads = sorted({row.threads for row in rows})
    where = " / ".join(machine.gpus) if any(row.device != "cpu" for row in rows) else machine.cpu
    figure.text(0.01, 0.015, f"Measured on {where}, {', '.join(map(str, threads))} CPU threads.", fontsize=8)
    save_figure(figure, target)


def _draw_shares(axis: Axes, counts: ComplexityRecord) -> None:
    stages = counts.stages
    width = 0.8 / len(_QUANTITIES)
    for i, (quantity, label) in enumerate(_QUANTITIES.items()):
        shares = [100 * getattr(stage, quantity) / getattr(counts, quantity) for stage in stages]
        places = [j + (i - 1) * width for j in range(len(stages))]
        axis.bar(places, shares, width * 0.92, color=COLORS[i], label=label)
    axis.set_xticks(range(len(stages)), [stage.stage for stage in stages])
    axis.set_ylabel("share of the network (%)")
    axis.set_title("Cost by stage", fontsize=11)
    axis.legend(frameon=False, fontsize=9)
    axis.grid(axis="y", alpha=0.25)
    axis.set_axisbelow(True)


def _draw_latency(axis: Axes, rows: Sequence[Latency]) -> None:
    for i, (label, own) in enumerate(_by_runtime(rows).items()):
        batches = [row.batch for row in own]
        color, mark = COLORS[i % len(COLORS)], MARKS[i % len(MARKS)]
        p50, p99 = ([getattr(row, name) for row in own] for name in ("p50_ms", "p99_ms"))
        axis.plot(batches, p50, label=label, color=color, marker=mark)
        axis.fill_between(batches, p50, p99, color=color, alpha=0.15, linewidth=0)
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set_ylabel("latency of a batch (ms)")
    axis.set_title("Latency: p50, shaded up to p99", fontsize=11)
    _batch_axis(axis, rows)


def _draw_throughput(axis: Axes, rows: Sequence[Latency]) -> None:
    for i, own in enumerate(_by_runtime(rows).values()):
        axis.plot(
            [row.batch for row in own],
            [row.images_per_second for row in own],
            color=COLORS[i % len(COLORS)],
            marker=MARKS[i % len(MARKS)],
        )
    axis.set_ylim(bottom=0)
    axis.set_ylabel("throughput (images/s)")
    axis.set_title("Throughput", fontsize=11)
    _batch_axis(axis, rows)


def _by_runtime(rows: Sequence[Latency]) -> dict[str, list[Latency]]:
    grouped: dict[str, list[Latency]] = {}
    for row in sorted(rows, key=lambda row: row.batch):
        label = row.runtime if row.variant is None else f"{row.runtime}, {row.variant}"
        grouped.setdefault(label, []).append(row)
    return grouped


def _batch_axis(axis: Axes, rows: Sequence[Latency]) -> None:
    batches = sorted({row.batch for row in rows})
    axis.set_xscale("log", base=2)
    axis.set_xticks(batches, [str(batch) for batch in batches])
    axis.minorticks_off()
    axis.set_xlabel("batch (images)")
    axis.margins(x=0.1)
    axis.grid(alpha=0.25)
