"""Measures whether class weights or sampling by class help on folders whose classes have unequally many images.

    python benchmarks/class_balance.py --mnist mnist10k.npz --glyphs glyphs64.npz

Each way trains the same network from the same random weights on the same images for as many epochs, with one thread;
the rules of `train` decide everything else. All classes have as many images to test on, and nothing is chosen by them.
Validation images have the shares of the training images, as those that `train` holds out have. Each run is a line of
JSON, added to the file at once; what the file has is not measured again.

The table of docs/training.md (`table`) has, of the images to test on, the mean over the classes of the share that is
right, and the same with each class counted by its share of the training images.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from training_sets import Archives, ImageSet, write_folders

import regnet_deploy as rd

RESULT = Path(__file__).parent / "results" / "class_balance.jsonl"
SEEDS = (0, 1, 2)
#: MACs of the network, in thousands of millions, and side of its input in pixels.
GMACS, SIDE = 0.004, 32
WAYS: Mapping[str, Mapping[str, str]] = {
    "uniform": {"sampling": "uniform"},
    "sampling square-root": {"sampling": "square-root"},
    "sampling balanced": {"sampling": "balanced"},
    "weights balanced": {"class_weights": "balanced"},
}
_TEN = (
    *("upper_A", "upper_B", "upper_E", "upper_H", "digit_2", "digit_4", "digit_8"),
    *("lower_a", "lower_g", "lower_k"),
)
_ALIKE = ("upper_O", "digit_0", "lower_o", "upper_I", "lower_l", "digit_1")
#: Name -> folder and epochs. The class of rank r has 1 / r ** tail times the images of the largest.
SETS: Mapping[str, tuple[ImageSet, int]] = {
    "MNIST, long tail": (ImageSet("mnist", 500, 140, tail=1.5), 13),
    "glyphs, long tail": (ImageSet("glyphs", 300, 60, classes=_TEN, tail=1.5), 13),
    "MNIST, two classes 20:1": (ImageSet("mnist", 400, 140, classes=("3", "8"), tail=4.32), 20),
    "glyphs, look-alikes, long tail": (ImageSet("glyphs", 300, 60, classes=_ALIKE, tail=1.5), 20),
    "glyphs, look-alikes, 4:1": (ImageSet("glyphs", 300, 60, classes=_ALIKE, tail=0.774), 20),
    "MNIST, 3:1": (ImageSet("mnist", 200, 140, tail=0.477), 13),
}
Row = dict[str, Any]


def main() -> None:
    """Measure what the result file does not have, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, required=True, help="npz of MNIST")
    parser.add_argument("--glyphs", type=Path, required=True, help="npz of glyphs")
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    archives = Archives(options.mnist, options.glyphs, Path())
    done = {(row["set"], row["seed"], row["way"]) for row in rows_of(options.result)}
    for name, (images, epochs) in SETS.items():
        for seed in SEEDS:
            for way in WAYS:
                if (name, seed, way) in done:
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    row = {"set": name, "seed": seed, "way": way, "epochs": epochs}
                    row |= measured(images, epochs, way, seed, archives, Path(folder))
                with options.result.open("a", encoding="utf-8") as file:
                    file.write(f"{json.dumps(row)}\n")
    print(table(rows_of(options.result)))


def measured(images: ImageSet, epochs: int, way: str, seed: int, archives: Archives, folder: Path) -> Row:
    """Train in one way; return the images to train on and the share of right answers, of each class."""
    folders = write_folders(images, archives, seed, folder / "images")
    names = sorted(path.name for path in (folders.train / "train").iterdir())
    counts = {name: len(list((folders.train / "train" / name).iterdir())) for name in names}
    selected = rd.select(rd.Budget(macs=GMACS * 1e9, resolution=SIDE, classes=len(names)))
    bundle = rd.create_bundle(folder / "bundle", selected)
    execution = rd.ExecutionRequest(device="cpu", threads=1)
    recipe = {"epochs": epochs, "seed": seed, **WAYS[way]}
    trained = rd.train(bundle, folders.train, recipe, rd.TrainOptions(execution=execution, workers=0))
    metrics = rd.evaluate(trained, folders.test).evaluations[0].metrics
    recall = {each.label: each.recall for each in metrics.classes}
    return {"val": trained.training.best.val_top1, "counts": counts, "recall": recall}


def rows_of(file: Path) -> list[Row]:
    """Return the rows of a result file; none, if there is no file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def table(rows: Iterable[Row]) -> str:
    """Return the means over the seeds as a Markdown table."""
    lines = [
        "| folder, images of its classes | seeds | way | balanced accuracy | top-1, weighted |",
        "| --- | --- | --- | --- | --- |",
    ]
    rows = list(rows)
    for name in SETS:
        for way in WAYS:
            found = [row for row in rows if (row["set"], row["way"]) == (name, way)]
            if not found:
                continue
            sizes = found[0]["counts"].values()
            figures = " | ".join(f"{100 * statistics.mean(each):.1f}" for each in (_means(found), _by_shares(found)))
            lines.append(f"| {name}, {min(sizes)} to {max(sizes)} | {len(found)} | {way} | {figures} |")
    return "\n".join(lines)


def _means(rows: Sequence[Row]) -> list[float]:
    return [statistics.mean(row["recall"].values()) for row in rows]


def _by_shares(rows: Sequence[Row]) -> list[float]:
    return [
        sum(row["counts"][name] * recall for name, recall in row["recall"].items()) / sum(row["counts"].values())
        for row in rows
    ]


if __name__ == "__main__":
    main()
