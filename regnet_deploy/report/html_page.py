"""The model card as one self-contained HTML page with figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from regnet_deploy.bundle.measurements import Latency
from regnet_deploy.errors import require
from regnet_deploy.html import HtmlFigure, figures_html, html_document, section_html
from regnet_deploy.plotting import COLORS, GREY, MARKS, figure_to_svg
from regnet_deploy.report.answers_section import STYLE, draw_matrix, has_matrix, mistakes_html
from regnet_deploy.report.card import ModelCard
from regnet_deploy.report.sections import card_sections, headline


def card_html(card: ModelCard) -> str:
    """Return the HTML page of a model card.

    Raises:
        MissingExtra: matplotlib, which draws the figures, is not installed.
    """
    name = card.architecture.name
    figures = figures_html(card_figures(card))
    mistakes = mistakes_html(card.answers, card.manifest.labels) if card.answers else ""
    body = figures + mistakes + "".join(map(section_html, card_sections(card)))
    return html_document(f"{name} - model card", name, headline(card), body, STYLE)


if TYPE_CHECKING:
    from matplotlib.axes import Axes


def card_figures(card: ModelCard) -> list[HtmlFigure]:
    """Draw the figures for which the card has data.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    require("matplotlib", "plot")
    drawn = [
        _figure(_widths, card, _widths_caption(card)),
        _figure(_shares, card, "Share of each stage in the cost."),
    ]
    if card.accuracy is not None:
        best = card.accuracy
        caption = (
            f"Top-1 by epoch; the weights are those of {card.bundle.training.best_name}, {best.val_top1 * 100:.2f} %."
        )
        if len(card.bundle.training.history) > 1:
            drawn.append(_figure(_history, card, caption))
            drawn.append(_figure(_losses, card, "Mean cross-entropy by epoch."))
    if card.answers and has_matrix(card.answers, len(card.manifest.labels)):
        caption = f"Images by class and answer, of {card.answers.images:,}: {card.answers.where}."
        drawn.append(_figure(_confusion, card, caption, size=(4.6, 4.4), grid=False))
    if card.manifest.profile is not None and len({row.batch for row in card.manifest.profile.latency}) > 1:
        drawn.append(_figure(_speed, card, "Images per second by batch size, on the machine named below."))
    return drawn


def _figure(
    draw: Any, card: ModelCard, caption: str, size: tuple[float, float] = (4.6, 3.1), grid: bool = True
) -> HtmlFigure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axis = figure.subplots()
    draw(axis, card)
    axis.spines[["top", "right"]].set_visible(False)
    if grid:
        axis.grid(axis="y", alpha=0.25)
    axis.set_axisbelow(True)
    return HtmlFigure(figure_to_svg(figure), caption)


def _widths_caption(card: ModelCard) -> str:
    line = card.architecture.w_a is not None
    return "Width of each block" + (", and the line u = w_0 + w_a j that was quantized." if line else ".")


def _widths(axis: Axes, card: ModelCard) -> None:
    a = card.architecture
    widths = a.network.block_widths()
    axis.step(range(len(widths)), widths, where="mid", color=COLORS[0], linewidth=2, label="block width")
    axis.plot(range(len(widths)), widths, "o", color=COLORS[0], markersize=4)
    if a.w_0 is not None and a.w_a is not None:
        line = [a.w_0 + a.w_a * j for j in range(len(widths))]
        axis.plot(range(len(widths)), line, color=GREY, linestyle="--", label="u = w_0 + w_a j")
        axis.legend(frameon=False, fontsize=8)
    axis.set_yscale("log", base=2)
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set_xlabel("block j")
    axis.set_ylabel("width (channels)")


def _shares(axis: Axes, card: ModelCard) -> None:
    stages = card.stages
    for i, name in enumerate(("macs", "parameters", "activations")):
        total = sum(getattr(stage, name) for stage in stages)
        places = [j + (i - 1) * 0.27 for j in range(len(stages))]
        label = "MACs" if name == "macs" else name
        axis.bar(places, [100 * getattr(stage, name) / total for stage in stages], 0.25, color=COLORS[i], label=label)
    axis.set_xticks(range(len(stages)), [stage.stage for stage in stages])
    axis.set_ylabel("share (%)")
    axis.legend(frameon=False, fontsize=8)


def _history(axis: Axes, card: ModelCard) -> None:
    _curves(axis, card, "top1", 100)
    axis.set_ylabel("top-1 (%)")


def _losses(axis: Axes, card: ModelCard) -> None:
    _curves(axis, card, "loss", 1)
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("{x:g}")
    axis.tick_params(axis="y", which="minor", labelsize=7)
    axis.set_ylabel("loss")


def _curves(axis: Axes, card: ModelCard, what: str, scale: float) -> None:
    """Draw a metric by epoch, of the validation images and of training."""
    from matplotlib.ticker import MaxNLocator

    history = card.bundle.training.history
    averaged = " (averaged weights)" if history[-1].averaged else ""
    for i, (key, label) in enumerate(
        ((f"val_{what}", f"validation{averaged}"), (f"train_{what}", "training (augmented)"))
    ):
        values = [scale * getattr(row, key) for row in history]
        epochs = [row.epoch for row in history]
        axis.plot(epochs, values, color=COLORS[i], marker=MARKS[i], ms=3, label=label)
    axis.axvline(card.bundle.training.best.epoch, color=GREY, linestyle=":", linewidth=1)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("epoch")
    axis.legend(frameon=False, fontsize=8)


def _confusion(axis: Axes, card: ModelCard) -> None:
    if card.answers:
        draw_matrix(axis, card.answers, card.manifest.labels)


def _speed(axis: Axes, card: ModelCard) -> None:
    rows = sorted(card.bundle.profile.latency, key=lambda row: row.batch)
    labels: dict[str, list[Latency]] = {}
    for row in rows:
        labels.setdefault(row.runtime + (f", {row.variant}" if row.variant else ""), []).append(row)
    for i, (label, own) in enumerate(labels.items()):
        color, mark = COLORS[i % len(COLORS)], MARKS[i % len(MARKS)]
        axis.plot([r.batch for r in own], [r.images_per_second for r in own], color=color, marker=mark, label=label)
    batches = sorted({row.batch for row in rows})
    axis.set_xscale("log", base=2)
    axis.set_xticks(batches, [str(batch) for batch in batches])
    axis.minorticks_off()
    axis.set_ylim(bottom=0)
    axis.set_xlabel("batch (images)")
    axis.set_ylabel("images/s")
    axis.legend(frameon=False, fontsize=8)
