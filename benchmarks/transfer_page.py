"""Writes the measured part of docs/fine-tuning.md, and its figure, from benchmarks/results/transfer.json.

    python benchmarks/transfer_page.py

The part lies between the lines BEGIN and END; the rest of the page is not touched. `tests/test_benchmarks.py` checks
that the part is the output of this program.
"""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from measurements import ROOT, read, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = ROOT / "docs" / "fine-tuning.md"
FIGURE = ROOT / "docs" / "figures" / "fine-tuning.svg"
BEGIN, END = "<!-- begin of what benchmarks/transfer_page.py writes -->", "<!-- end -->"
#: Names of the methods in the results and on the page; the default is held against the others.
FINE_TUNED = "fine-tune"
SHOWN = {
    "probe": "linear probe",
    FINE_TUNED: "fine-tuned",
    "scratch": "from scratch",
}
COMPARED = {"probe": "the linear probe", "scratch": "training from scratch"}
#: Sets whose curves are drawn: those with the most validation images of each kind.
DRAWN = ("MNIST, 100 a class", "digits, 20 a class")
#: Cores that other programs may keep busy without being mentioned.
QUIET = 0.1

Run: TypeAlias = "dict[str, Any]"


def runs_of(result: Mapping[str, Any], name: str, method: str) -> list[Run]:
    """Return the runs of a set by a method, by seed."""
    found = [row for row in result["runs"] if (row["set"], row["method"]) == (name, method)]
    return sorted(found, key=lambda row: row["seed"])


def sets_of(result: Mapping[str, Any]) -> list[str]:
    """Return the sets in the order of the results."""
    return list(dict.fromkeys(row["set"] for row in result["runs"]))


def spread(values: Sequence[float], form: str) -> str:
    """Return the mean, and the lowest and highest value in brackets if there are several."""
    if len(values) == 1:
        return f"{values[0]:{form}}"
    mean, low, high = (f"{value:{form}}" for value in (statistics.mean(values), min(values), max(values)))
    return f"{mean} ({low} to {high})"


def shown_top1(rows: Sequence[Run]) -> str:
    """Return the mean, lowest and highest test top-1 in percent; of a single seed, its 95 % interval."""
    if len(rows) > 1:
        return spread(top1s(rows), ".1f")
    value, low, high = (f"{100 * rows[0]['top1'][name]:.1f}" for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def shown_seconds(rows: Sequence[Run]) -> str:
    """Return the mean, shortest and longest time in seconds."""
    return spread([row["seconds"] for row in rows], ".0f")


def top1s(rows: Sequence[Run]) -> list[float]:
    """Return the percentages of the test images that are right."""
    return [100 * row["top1"]["value"] for row in rows]


def gains(result: Mapping[str, Any], name: str, other: str) -> list[float]:
    """Return for each seed by how many points of test top-1 the default is better than another method."""
    ours, theirs = (top1s(runs_of(result, name, method)) for method in (FINE_TUNED, other))
    return [a - b for a, b in zip(ours, theirs, strict=True)] if theirs else []


def set_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """Return the images of each set; of those to test on, what the seeds have."""
    rows = []
    for name in sets_of(result):
        runs = runs_of(result, name, FINE_TUNED)
        tested = sorted({run["test_images"] for run in runs})
        largest = max(run["largest_class"] for run in runs)
        rows.append(
            [
                name,
                str(len(runs)),
                f"{runs[0]['train_images']:,}",
                f"{runs[0]['val_images']:,}",
                " to ".join(f"{count:,}" for count in dict.fromkeys((tested[0], tested[-1]))),
                f"{100 * largest:.1f} %",
            ]
        )
    return rows


def method_rows(result: Mapping[str, Any], shown: Callable[[Sequence[Run]], str]) -> list[list[str]]:
    """Return a row for each set with what is shown of the runs of each method."""
    return [
        [name, *(shown(rows) if (rows := runs_of(result, name, method)) else "-" for method in SHOWN)]
        for name in sets_of(result)
    ]


def gain_rows(result: Mapping[str, Any]) -> list[list[str]]:
    others = [method for method in SHOWN if method != FINE_TUNED]
    return [
        [name, *(spread(found, "+.1f") if (found := gains(result, name, other)) else "-" for other in others)]
        for name in sets_of(result)
    ]


def overlap(result: Mapping[str, Any], name: str, other: str) -> bool:
    """Return whether seeds disagree on which method is better; of a single seed, whether the 95 % intervals overlap."""
    found = gains(result, name, other)
    if len(found) > 1:
        return min(found) <= 0 <= max(found)
    ours, theirs = (runs_of(result, name, method)[0]["top1"] for method in (FINE_TUNED, other))
    return bool(ours["low"] <= theirs["high"] and theirs["low"] <= ours["high"])


def verdict(result: Mapping[str, Any], other: str) -> str:
    """Say of which sets the default is better than another method, of which worse, of which neither is clear."""
    better: list[str] = []
    worse: list[str] = []
    neither: list[str] = []
    for name in sets_of(result):
        if found := gains(result, name, other):
            part = neither if overlap(result, name, other) else better if min(found) > 0 else worse
            seeds = f"{len(found)} seed{'s' if len(found) > 1 else ''}"
            part.append(f"{name.replace(',', ' with')} ({statistics.mean(found):+.1f} points, {seeds})")
    said = [
        f"{words}: {'; '.join(part)}"
        for words, part in (
            ("better", better),
            ("worse", worse),
            ("not clearly better or worse", neither),
        )
        if part
    ]
    return f"Compared with {COMPARED[other]}, fine-tuning is " + ". It is ".join(said) + "."


def kept_probes(result: Mapping[str, Any]) -> str:
    """Say how often the probe was better on the validation images than all epochs, and was therefore the result."""
    runs = [row for row in result["runs"] if row["method"] == FINE_TUNED]
    kept = sum("probe" in row["chosen"] for row in runs)
    return (
        f"In {kept} of these {len(runs)} runs the linear probe was the best on the validation images, and the result."
    )


def beside(result: Mapping[str, Any]) -> str:
    """Say how busy other programs kept the machine while the runs were measured."""
    busy = [row["other_cores"] for row in result["runs"] if row["other_cores"] is not None]
    if not busy or max(busy) <= QUIET:
        return ""
    return (
        f" Other programs, another run of this one among them, kept {statistics.median(busy):.1f} cores busy meanwhile "
        f"(median of the runs; at most {max(busy):.1f}), so the times are longer than on a machine alone."
    )


def weights_text(result: Mapping[str, Any]) -> str:
    weights, machine, threads = result["pretrained"], result["machine"], result["runs"][0]["threads"]
    ended = "" if weights["epochs"] == weights["planned_epochs"] else f" of {weights['planned_epochs']}, then ended"
    return (
        f"The weights are those of a {weights['network']} ({weights['macs'] / 1e6:.1f} MMACs, "
        f"{weights['parameters'] / 1e6:.2f} M parameters, 64 x 64 pixels), trained on {weights['images']:,} images of "
        f"{weights['classes']} characters in many fonts ({weights['epochs']} epochs{ended}; "
        f"{weights['seconds'] / 60:.0f} minutes; {100 * weights['val_top1']:.1f} % of {weights['val_images']:,} "
        f"validation images right). Machine: {machine['cpu']}, {machine['cores']} cores, "
        f"{threads} {'thread' if threads == 1 else 'threads'} a run, torch {machine['versions']['torch']}."
        f"{beside(result)}"
    )


def measured(result: Mapping[str, Any]) -> str:
    """Return the part of the page."""
    methods = list(SHOWN.values())
    parts = [
        "## Measured",
        "`python benchmarks/transfer.py` trains the weights and measures; its first lines say how to get the images. "
        + weights_text(result),
        "There are no weights of ImageNet on this machine. These weights know white characters on black: MNIST and "
        "scikit-learn's digits (8 x 8 pixels, enlarged) are near to that, the stamps of Tux Paint (photos and colored "
        "drawings of 7 themes, on transparent ground) are far from it. Weights of ImageNet are nearer to photos.",
        "Each seed draws other images. Those to train on and to validate with are the whole folder of such a user; the "
        "test images had no part in any choice. Stamps of the same object stay on one side. The last column is what a "
        "network reaches that always gives the same answer.",
        table(["set", "seeds", "to train on", "to validate with", "to test on", "largest class"], set_rows(result)),
        "Test top-1 in percent: mean of the seeds, and the lowest and the highest; of a single seed, the 95 % interval "
        "that its number of test images gives. *Fine-tuned* is `train` without an option. From scratch is "
        "`train --from-scratch` with as many epochs as take the time of fine-tuning and a tenth more.",
        table(["set", *methods], method_rows(result, shown_top1)),
        "A difference is clear if all seeds agree, and of a single seed if the intervals do not overlap. "
        f"{verdict(result, 'probe')} {verdict(result, 'scratch')} {kept_probes(result)} By how many points of test "
        "top-1 fine-tuning without an option is better, on the same images:",
        table(["set", *(f"than {SHOWN[each]}" for each in SHOWN if each != FINE_TUNED)], gain_rows(result)),
        "Seconds of the whole call of `train`, with the check of the images and the probe:",
        table(["set", *methods], method_rows(result, shown_seconds)),
        "Validation top-1 over time (mean of the seeds, and from the lowest to the highest):",
        f"![Validation top-1 of each method over seconds](figures/{FIGURE.name})",
    ]  # fmt: skip
    return "\n\n".join(part if part[0] in "#|!" else textwrap.fill(part, 118, break_on_hyphens=False) for part in parts)


def page() -> str:
    """Return the page with its measured part as the results have it."""
    text = PAGE.read_text(encoding="utf-8")
    before, after = text[: text.index(BEGIN)], text[text.index(END) :]
    return f"{before}{BEGIN}\n\n{measured(read('transfer'))}\n\n{after}"


def mean_curve(rows: Sequence[Run]) -> tuple[np.ndarray, np.ndarray]:
    """Return times in seconds ``(n,)`` that all runs reach, and validation top-1 in percent at each, ``(runs, n)``."""
    first, last = max(row["curve"][0][0] for row in rows), min(row["curve"][-1][0] for row in rows)
    times = np.linspace(first, last, 60)
    return times, np.stack([100 * np.interp(times, *np.array(row["curve"]).T) for row in rows])


def figure(result: Mapping[str, Any]) -> Figure:
    """Draw the curves of some sets."""
    from matplotlib.figure import Figure

    from regnet_deploy.plotting import COLORS

    drawing = Figure(figsize=(9, 4), layout="constrained", facecolor="white")
    for axis, name in zip(drawing.subplots(1, len(DRAWN)), DRAWN, strict=True):
        for (method, shown), color in zip(SHOWN.items(), COLORS, strict=False):
            rows, shown = runs_of(result, name, method), shown.replace("`", "")
            if method == "probe":
                at = statistics.mean(row["curve"][0][0] for row in rows)
                top1 = statistics.mean(100 * row["curve"][0][1] for row in rows)
                axis.plot(at, top1, "o", color=color, label=shown, zorder=3)
                axis.axhline(top1, color=color, linestyle="--", linewidth=1)
                continue
            times, curves = mean_curve(rows)
            axis.plot(times, curves.mean(axis=0), color=color, label=shown)
            axis.fill_between(times, curves.min(axis=0), curves.max(axis=0), color=color, alpha=0.15, linewidth=0)
        axis.set_title(f"{name}: {rows[0]['val_images']} validation images")
        axis.set_xlabel("seconds of training")
        axis.set_xlim(left=0)
        axis.grid(alpha=0.3)
    drawing.axes[0].set_ylabel("validation top-1 (%)")
    drawing.axes[0].legend(loc="lower right")
    return drawing


def save(drawing: Figure, target: Path) -> None:
    """Write a figure; equal figures have equal bytes."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "transfer", "svg.fonttype": "none"}):
        drawing.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    save(figure(read("transfer")), FIGURE)
    print(f"wrote {PAGE} and {FIGURE}")
