"""The answers of the network on the model card: the classes that it confuses, and its worst mistakes."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from regnet_deploy.evaluation.answers import Answers, Mistake
from regnet_deploy.html import Section, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Confusions that are listed; classes up to which the matrix is drawn, and up to which its cells have numbers.
_LISTED, _DRAWN, _NUMBERED = 12, 60, 16
#: Characters of the name of a class beside the matrix.
_NAME = 16

STYLE = """
.mistakes { display: grid; grid-template-columns: repeat(auto-fill, minmax(7.5rem, 1fr)); gap: .8rem; margin: 0;
  padding: 0; list-style: none; font-size: .8rem; }
.mistakes li { min-width: 0; overflow-wrap: anywhere; line-height: 1.35; }
.mistakes img { display: block; width: 100%; height: 7.5rem; object-fit: contain; background: var(--page);
  border: 1px solid var(--line); border-radius: 4px; margin-bottom: .3rem; image-rendering: pixelated; }
.mistakes span { color: var(--soft); }
"""


def answers_section(answers: Answers, labels: Sequence[str]) -> Section:
    """Return which images were answered, how many of them wrong, and the most frequent confusions."""
    wrong = sum(images for _, _, images in answers.frequent(len(answers.confusion)))
    facts = [
        ("images", f"{answers.images:,}: {answers.where}"),
        ("wrong", f"{wrong:,} ({wrong / max(1, answers.images) * 100:.2f} %)"),
    ]
    frequent = answers.frequent(_LISTED)
    rows: list[tuple[str, ...]] = [(labels[label], labels[answer], f"{images:,}") for label, answer, images in frequent]
    return Section("Confusions", facts, [Table(("class", "answer", "images"), rows)] if rows else [])


def mistakes_html(answers: Answers, labels: Sequence[str]) -> str:
    """Return the worst mistakes with their pictures as a section of a page; empty without mistakes."""
    if not answers.mistakes:
        return ""
    items = "".join(_mistake(each, labels) for each in answers.mistakes)
    lead = "Wrong answers with the highest probability, as the network sees the images."
    return f'<section><h2>Worst mistakes</h2><p>{lead}</p><ul class="mistakes">{items}</ul></section>'


def has_matrix(answers: Answers | None, classes: int) -> bool:
    """Tell whether the confusion matrix can be drawn: not with very many classes."""
    return answers is not None and classes <= _DRAWN


def draw_matrix(axis: Axes, answers: Answers, labels: Sequence[str]) -> None:
    """Draw the confusion matrix; the color of a cell is the share of the images of its class."""
    classes = len(labels)
    matrix = answers.matrix(classes)
    shares = matrix / matrix.sum(axis=1, keepdims=True).clip(min=1)
    axis.pcolormesh(shares, cmap="Blues", vmin=0, vmax=1, edgecolors="face", linewidth=0.1)
    axis.invert_yaxis()
    axis.set_aspect("equal")
    if classes <= _NUMBERED:
        size = 8 if classes <= 10 else 6
        for label, answer, images in answers.confusion.tolist():
            color = "#f7fbff" if shares[label, answer] > 0.5 else "#08306b"
            axis.text(answer + 0.5, label + 0.5, f"{images}", ha="center", va="center", fontsize=size, color=color)
    every = max(1, classes // 30)
    places = range(0, classes, every)
    names = [_short(labels[i]) for i in places]
    size = 8 if classes <= 10 else 6 if classes <= 30 else 5
    axis.set_xticks([i + 0.5 for i in places], names, rotation=90, fontsize=size)
    axis.set_yticks([i + 0.5 for i in places], names, fontsize=size)
    axis.set_xlabel("answer")
    axis.set_ylabel("class")


def _mistake(mistake: Mistake, labels: Sequence[str]) -> str:
    truth, answer = escape(labels[mistake.label]), escape(labels[mistake.answer])
    name = escape(mistake.name.rsplit("/", 1)[-1])
    return (
        f'<li><img src="{_data_uri(mistake)}" alt="an image of class {truth}">{truth}<br>'
        f"answer {answer} ({mistake.probability:.0%})<br><span>{name}</span></li>"
    )


def _data_uri(mistake: Mistake) -> str:
    from matplotlib.image import imsave

    pixels, file = mistake.pixels, io.BytesIO()
    imsave(file, pixels.repeat(3, axis=2) if pixels.shape[2] == 1 else pixels, format="png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _short(name: str) -> str:
    shown = name if len(name) <= _NAME else f"{name[: _NAME - 3]}..."
    return shown.replace("$", r"\$")
