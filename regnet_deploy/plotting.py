"""Helpers for all plots: colors and file formats."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from regnet_deploy.errors import require
from regnet_deploy.output_file import check_output_file, write_output_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
#: The colors of Okabe and Ito, which color-blind readers can distinguish; the marks differ also in gray.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKS = "osD^vP"
GREY = "#999999"


def check_plot_path(path: str | Path) -> Path:
    """Check before long work that a plot can be written to a path, and return the path.

    Raises:
        UsageError: its suffix is not supported, its folder does not exist, or it is not a regular file.
        MissingExtra: matplotlib is not installed.
    """
    target = check_output_file(path, SUFFIXES, "a figure")
    require("matplotlib", "plot")
    return target


def save_figure(figure: Figure, target: Path) -> None:
    """Write a figure in the format of its suffix.

    Raises:
        UsageError: the file cannot be written.
    """
    drawn = io.BytesIO()
    figure.savefig(drawn, format=target.suffix[1:].lower(), dpi=150)
    write_output_file(target, drawn.getvalue())


def figure_to_svg(figure: Figure) -> str:
    """Return a figure as an ``<svg>`` element for an HTML page; equal figures give equal text.

    Black and white become the color of the text and the background of the page, which may be dark.
    """
    import matplotlib

    drawn = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "regnet-deploy"}):
        figure.savefig(drawn, format="svg", metadata={"Date": None}, transparent=True)
    text = drawn.getvalue()
    text = text[text.index("<svg") :]
    return text.replace("#000000", "currentColor").replace("#ffffff", "var(--paper, #ffffff)")
