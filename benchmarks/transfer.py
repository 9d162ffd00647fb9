"""Measures what fine-tuning brings on few images, beside a linear probe and training from scratch in the same time.

    python benchmarks/glyph_folder.py glyphs64.npz glyphs --train 1410 --val 60
    python benchmarks/transfer.py pretrain pretrained --data glyphs
    dpkg-deb -x tuxpaint-stamps-default_*_all.deb stamps
    python benchmarks/transfer.py run pretrained --mnist mnist10k.npz --stamps stamps/usr/share/tuxpaint/stamps
    python benchmarks/transfer_page.py

`pretrain` makes a bundle whose weights know 62 characters in many fonts; interrupted, the same command continues. `run`
draws sets of images of other kinds (`benchmarks/transfer_sets.py`) for each seed and trains on each of them:

* probe: the linear probe that fine-tuning begins with, alone;
* fine-tune: `regnet-deploy train BUNDLE --data DIR` without an option (but for the seed);
* scratch: `train --from-scratch`, with as many epochs as take the time of fine-tuning, and a tenth more.

Every result is added to the file at once, and what the file has is not measured again. The time of a run is that of the
whole call of training, with the check of the images and the probe. The test images are evaluated afterwards.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import math
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from transfer_sets import TESTED, Groups, digits, mnist, stamps, write_set

import regnet_deploy as rd
from regnet_deploy.bundle import WEIGHTS
from regnet_deploy.bundle.training import Training
from regnet_deploy.cpu_load import OtherLoad
from regnet_deploy.profiling.machine import describe_machine
from regnet_deploy.progress import NoProgress

RESULT = Path(__file__).parent / "results" / "transfer.json"
COMMAND = [sys.executable, "-m", "regnet_deploy"]
#: Options of `select` and `train` that make the weights to start from.
SELECTED = ("--gflops", "0.022", "--resolution", "64", "--stem-stride", "2", "--classes", "62")
PRETRAINED = (
    *("--epochs", "8", "--batch-size", "128", "--lr", "0.1", "--warmup-epochs", "2"),
    *("--no-flip", "--crop-area", "0.5", "--precise-bn", "8192"),
)
#: Name -> kind of images, images of each class to train on.
SETS = {
    "MNIST, 5 a class": ("mnist", 5),
    "MNIST, 10 a class": ("mnist", 10),
    "MNIST, 100 a class": ("mnist", 100),
    "digits, 20 a class": ("digits", 20),
    "stamps, 15 a class": ("stamps", 15),
}
PROBE, FINE_TUNED, SCRATCH_RUN = METHODS = ("probe", "fine-tune", "scratch")
SCRATCH: Mapping[str, Any] = {"fine_tune": False}
#: Images of a trial whose median epoch says how many epochs take the time of fine-tuning; it has four epochs or more.
TRIAL_IMAGES = 1000
SEEDS = (0, 1, 2)
#: Most epochs of a curve.
POINTS = 40


class Clock(NoProgress):
    """Records when the linear probe was fitted and when each epoch ended, in seconds since it was made.

    Args:
        stop_after_probe: end the training, as SIGTERM does, when the probe is fitted.
    """

    def __init__(self, stop_after_probe: bool = False) -> None:
        self._begin, self._stop = time.perf_counter(), stop_after_probe
        self.probe_s: float | None = None
        self.epochs_s: list[float] = []

    def now(self) -> float:
        """Return the seconds since the start."""
        return time.perf_counter() - self._begin

    def message(self, line: str) -> None:
        """Take the time of the lines that say what has ended."""
        if re.match(r"epoch \d+/", line):
            self.epochs_s.append(self.now())
        elif line.startswith("linear probe"):
            self.probe_s = self.now()
            if self._stop:
                signal.raise_signal(signal.SIGTERM)  # SIGINT is ignored in the background of a shell


def probe(bundle: Path, data: Path, seed: int, options: rd.TrainOptions, clock: Clock) -> rd.Bundle:
    """Train no further than the linear probe.

    Raises:
        RuntimeError: the training had no linear probe, or went on.
    """
    try:
        rd.train(bundle, data, {"seed": seed}, options, progress=clock)
    except KeyboardInterrupt:
        trained = rd.train(bundle, options=rd.TrainOptions(finish=True))
        if trained.training.best.epoch == 0:
            return trained
    raise RuntimeError(f"{bundle} was to be trained no further than its linear probe")


def epochs_for(seconds: float, bundle: Path, data: Path, recipe: Mapping[str, Any], options: rd.TrainOptions) -> int:
    """Return how many epochs of a recipe take this time and a tenth more, as a trial in a copy of the bundle says."""
    epochs, clock = max(4, round(TRIAL_IMAGES / sum(1 for _ in (data / "train").rglob("*.png")))), Clock()
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(shutil.copytree(bundle, Path(folder) / "trial"))
        rd.train(trial, data, {**recipe, "epochs": epochs}, options, progress=clock)
    epoch_s = statistics.median(after - before for before, after in itertools.pairwise(clock.epochs_s))
    return max(3, math.ceil(1.1 * seconds / epoch_s))


def training_of(
    method: str, bundle: Path, data: Path, seed: int, fine_tuning_s: float, threads: int | None
) -> Callable[[Clock], rd.Bundle]:
    """Return the training of a method, on a bundle with the weights to start from."""
    recipe: dict[str, Any] = {"seed": seed}
    options = rd.TrainOptions(execution=rd.ExecutionRequest(threads=threads))
    if method == PROBE:
        return lambda clock: probe(bundle, data, seed, options, clock)
    if method == SCRATCH_RUN:
        recipe |= SCRATCH
        recipe["epochs"] = epochs_for(fine_tuning_s, bundle, data, recipe, options)
    return lambda clock: rd.train(bundle, data, recipe, options, progress=clock)


def measured(train: Callable[[Clock], rd.Bundle], method: str, test: Path) -> dict[str, Any]:
    """Train, evaluate on the images of the test, and return the figures."""
    load, clock = OtherLoad(), Clock(stop_after_probe=method == PROBE)
    bundle = train(clock)
    seconds, others = clock.now(), load.cores()
    training = bundle.training
    tested = rd.evaluate(bundle, test, variants=()).to_json()["variants"]["model"]
    return {
        "seconds": round(seconds, 1),
        "other_cores": None if others is None else round(others, 2),
        "train_images": training.data.train_images,
        "val_images": training.data.val_images,
        "test_images": tested["images"],
        "largest_class": tested["baseline"]["share"],
        "threads": training.execution.threads,
        "epochs": len(training.history),
        "chosen": training.best_name,
        "val_top1": training.best.val_top1,
        "top1": tested["top1"],
        "curve": curve(training, clock),
    }


def curve(training: Training, clock: Clock) -> list[list[float]]:
    """Return seconds and validation top-1: of the probe, and after up to POINTS epochs."""
    points = []
    if training.probe is not None and clock.probe_s is not None:
        points.append([clock.probe_s, training.probe.val_top1])
    every = max(1, math.ceil(len(training.history) / POINTS))
    for number, (at, epoch) in enumerate(zip(clock.epochs_s, training.history, strict=True), start=1):
        if number % every == 0 or number == len(training.history):
            points.append([at, epoch.val_top1])
    return [[round(at, 2), top1] for at, top1 in points]


def pretrain(options: argparse.Namespace) -> None:
    """Select a network and train it, as the commands do; a training that was interrupted continues."""
    if not options.bundle.exists():
        subprocess.run([*COMMAND, "select", *SELECTED, "-o", str(options.bundle)], check=True)
    threads = [] if options.threads is None else ["--threads", str(options.threads)]
    command = [*COMMAND, "train", str(options.bundle), "--data", str(options.data), *PRETRAINED, *threads]
    subprocess.run(command, check=True)


def pretrained_facts(bundle: rd.Bundle) -> dict[str, Any]:
    """Return what identifies the weights to start from, and what the page says of them."""
    training, cost = bundle.training, bundle.selection.met
    return {
        "sha256": bundle.files[WEIGHTS].sha256,
        "network": bundle.architecture.name,
        "macs": cost.macs,
        "parameters": cost.parameters,
        "classes": training.data.classes,
        "images": training.data.train_images,
        "epochs": len(training.history),
        "planned_epochs": training.recipe["epochs"],
        "val_top1": training.best.val_top1,
        "val_images": training.best.val_images,
        "seconds": round(training.seconds),
        "threads": training.execution.threads,
    }


def kept(file: Path, pretrained: Mapping[str, Any], machine: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a file of results has, or the beginning of one.

    Raises:
        SystemExit: its results are of other weights or of another machine.
    """
    if not file.exists():
        return {"pretrained": pretrained, "machine": machine, "runs": []}
    result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if result["pretrained"]["sha256"] != pretrained["sha256"]:
        raise SystemExit(f"{file} has results of other weights: remove it, or give another file with --json")
    if result["machine"]["cpu"] != machine["cpu"]:
        raise SystemExit(f"{file} was measured with {result['machine']['cpu']}: give another file with --json")
    return result


def run(options: argparse.Namespace) -> None:
    """Measure what the file of results does not have."""
    for module in ("torch.utils.tensorboard", "regnet_deploy.training.train"):
        importlib.import_module(module)  # not in the time of the first training

    begin, bundle = time.perf_counter(), rd.open_bundle(options.bundle)
    result = kept(options.json, pretrained_facts(bundle), describe_machine().to_json())
    kinds: dict[str, Callable[[], dict[str, Groups]]] = {
        "mnist": partial(mnist, options.mnist),
        "digits": digits,
        "stamps": partial(stamps, options.stamps),
    }
    for seed in options.seeds or SEEDS:
        for name in options.sets or SETS:
            kind, per_class = SETS[name]
            rows = {row["method"]: row for row in result["runs"] if (row["set"], row["seed"]) == (name, seed)}
            with tempfile.TemporaryDirectory() as folder:
                folders = write_set(kinds[kind](), per_class, TESTED[kind], seed, Path(folder))
                for method in options.methods or METHODS:
                    if method in rows or time.perf_counter() - begin > 60 * options.minutes:
                        continue
                    if method == SCRATCH_RUN and FINE_TUNED not in rows:
                        continue  # it is given the time of that
                    copy = Path(shutil.copytree(bundle.path, Path(folder) / f"bundle-{METHODS.index(method)}"))
                    fine_tuning_s = rows[FINE_TUNED]["seconds"] if method == SCRATCH_RUN else 0.0
                    training = training_of(method, copy, folders.train, seed, fine_tuning_s, options.threads)
                    row = {"set": name, "seed": seed, "method": method, **measured(training, method, folders.test)}
                    rows[method] = row
                    result["runs"].append(row)
                    options.json.write_text(json.dumps(result) + "\n", encoding="utf-8")
                    top1, seconds = row["top1"]["value"], row["seconds"]
                    print(f"{name}, seed {seed}, {method}: {top1:.1%} in {seconds} s, {row['chosen']}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    first = commands.add_parser("pretrain", help="train the weights to start from")
    first.add_argument("bundle", type=Path)
    first.add_argument("--data", type=Path, required=True, help="the folder of benchmarks/glyph_folder.py")
    first.set_defaults(call=pretrain)
    second = commands.add_parser("run", help="fine-tune, probe and train from scratch")
    second.add_argument("bundle", type=Path)
    second.add_argument("--mnist", type=Path, required=True, metavar="NPZ")
    second.add_argument("--stamps", type=Path, required=True, metavar="DIR")
    second.add_argument("--seed", dest="seeds", type=int, action="append", help="may be repeated (default: 0, 1, 2)")
    second.add_argument("--set", dest="sets", action="append", choices=SETS, help="may be repeated (default: all)")
    second.add_argument("--method", dest="methods", action="append", choices=METHODS, help="likewise")
    second.add_argument("--json", type=Path, default=RESULT, metavar="FILE")
    second.add_argument("--minutes", type=float, default=math.inf, help="begin nothing after this time")
    second.set_defaults(call=run)
    for command in (first, second):
        command.add_argument("--threads", type=int, help="CPU threads (default: the cores of this process)")
    options = parser.parse_args()
    options.call(options)


if __name__ == "__main__":
    main()
