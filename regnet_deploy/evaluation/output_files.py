"""Writes every answer as CSV, and the worst mistakes as a picture."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np

from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.evaluation.evaluate import Evaluation, EvaluationResult
from regnet_deploy.exporting.decoded_images import decode_images
from regnet_deploy.images.decode import ImageError
from regnet_deploy.output_file import write_output_file
from regnet_deploy.plotting import save_figure

#: Pictures in a row, and rows.
_COLUMNS, _ROWS = 6, 4
#: Characters of a class name above a picture, and of a file name.
_NAME, _FILE = 18, 24


def write_answers(path: Path, result: EvaluationResult) -> None:
    """Write a row for each image: its name and class, and of each variant the answer and its probability.

    Raises:
        UsageError: the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    of_variants = [
        name
        for each in result.evaluations
        for name in (f"{each.variant}:answer", f"{each.variant}:probability", f"{each.variant}:right")
    ]
    writer.writerow(["image", "class", *of_variants])
    for row, label in enumerate(result.labels.tolist()):
        cells: list[str] = []
        for each in result.evaluations:
            answer = int(each.probabilities[row].argmax())
            cells += [result.names[answer], f"{each.probabilities[row, answer]:.6g}", str(int(answer == label))]
        writer.writerow([result.image_name(row), result.names[label], *cells])
    write_output_file(path, text.getvalue().encode("utf-8", "surrogateescape"))


def worst_mistakes(result: EvaluationResult, evaluation: Evaluation, count: int) -> list[int]:
    """Return the rows of the wrong answers with the highest probability, the worst first."""
    answers = evaluation.probabilities.argmax(axis=1)
    confidence = evaluation.probabilities.max(axis=1)
    wrong = np.flatnonzero(answers != result.labels)
    ranked: list[int] = wrong[np.argsort(-confidence[wrong], kind="stable")].tolist()
    return ranked[:count]


def draw_mistakes(path: Path, result: EvaluationResult, evaluation: Evaluation, preprocessing: Preprocessing) -> int:
    """Draw the worst mistakes as the network sees them, with class and answer, and return how many there are.

    Args:
        path: ``.png``, ``.svg`` or ``.pdf``; it is not written without mistakes.
        result: the answers.
        evaluation: the variant whose mistakes are drawn.
        preprocessing: of the bundle.

    Raises:
        UsageError: the file cannot be written.
        MissingExtra: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    rows = worst_mistakes(result, evaluation, _COLUMNS * _ROWS)
    if not rows:
        return 0
    lines = -(-len(rows) // _COLUMNS)
    figure = Figure(figsize=(1.75 * _COLUMNS, 2.5 * lines + 0.4), layout="constrained")
    figure.suptitle(f"The wrong answers of {evaluation.variant} with the highest probability", fontsize=11)
    axes = figure.subplots(lines, _COLUMNS, squeeze=False).flat
    numbers = [int(result.rows[row]) for row in rows]
    for axis in axes:
        axis.set_axis_off()
    for axis, row, pixels in zip(
        figure.axes, rows, decode_images(result.images.source, numbers, preprocessing), strict=False
    ):
        if isinstance(pixels, ImageError):  # it was readable a moment ago
            continue
        answer = int(evaluation.probabilities[row].argmax())
        axis.imshow(pixels, cmap="gray", vmin=0, vmax=255)  # of gray images; those of RGB are as they are
        axis.set_title(
            f"class {_short(result.names[int(result.labels[row])], _NAME)}\n"
            f"answer {_short(result.names[answer], _NAME)} ({evaluation.probabilities[row, answer]:.0%})\n"
            f"{_short(result.image_name(row).rsplit('/', 1)[-1], _FILE)}",
            fontsize=7.5,
        )
    save_figure(figure, path)
    return len(rows)


def _short(name: str, characters: int) -> str:
    shown = name if len(name) <= characters else f"{name[: characters - 3]}..."
    return shown.replace("$", r"\$")
