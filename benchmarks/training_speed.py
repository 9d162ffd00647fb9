"""Measures images a second of training, end to end from JPEG files, beside timm's train.py.

    python benchmarks/training_speed.py --peers peers/bin/python --timm timm/train.py --threads 2
    python benchmarks/training_page.py

The sides have the same files, network, batch, resolution, FP32, threads and cores, random crops and mirroring; ours
shifts colors as its recipe has it, and timm's color jitter is off. timm is measured with and without `--channels-last`,
with as many loading processes as threads; its faster way counts. `benchmarks/training.py` says how to get both files.

The sides take turns. A rate is that of a whole epoch but the first, without evaluation: of ours from `history` of the
bundle, of timm from the times of its log. Ours decodes the files once, before its first step, if they fit into memory;
timm decodes them in every epoch. The seconds of ours until its first step are in the results.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import serving_inputs
from PIL import Image

import regnet_deploy as rd
from regnet_deploy.cpu_load import OtherLoad
from regnet_deploy.profiling.machine import describe_machine
from regnet_deploy.progress import NoProgress

HERE = Path(__file__).parent
RESULT = HERE / "results" / "training_speed.json"
OURS, TIMM, TIMM_LAST = SIDES = ("ours", "timm", "timm, channels last")
CLASSES, FILES = 4, 64
#: Resolution -> GMACs of the network, images in a step, images of an epoch, and shorter side of the JPEG files.
CASES = {32: (0.004, 128, 2560, 48), 64: (0.016, 128, 2560, 96), 224: (0.2, 32, 256, 375)}


def write_images(folder: Path, images: int, side: int) -> None:
    """Write JPEG files of photographs, so many to train on and one of each class to validate with."""
    photos = [serving_inputs.photograph(seed) for seed in range(FILES)]
    source = folder / "photo.jpg"
    small = []
    for photo in photos:
        source.write_bytes(photo)
        with Image.open(source) as image:
            image.thumbnail((side * image.width / image.height, side))
            image.save(source, quality=serving_inputs.QUALITY)
        small.append(source.read_bytes())
    source.unlink()
    for part, count in (("train", images), ("val", CLASSES)):
        for number in range(count):
            file = folder / part / f"class {number % CLASSES}" / f"{number:05d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            # A comment after the end makes each file another: equal ones would be said.
            file.write_bytes(small[number % FILES] + f"{part}{number}".encode())


class FirstEpoch(NoProgress):
    """Takes the time at which the first epoch begins."""

    def __init__(self) -> None:
        self.at = 0.0

    def step(self, description: str, total: float | None = None) -> None:
        """Look at what begins."""
        if not self.at and description.startswith("epoch"):
            self.at = time.perf_counter()


def ours(given: dict[str, Any]) -> dict[str, Any]:
    """Train in this process; return the images a second of each epoch, and the seconds until the first step."""
    recipe = rd.Recipe(epochs=given["epochs"] + 1, batch_size=given["batch"], warmup_epochs=0, precise_bn_images=0)
    options = rd.TrainOptions(execution=rd.ExecutionRequest(threads=given["threads"]))
    first, begin = FirstEpoch(), time.perf_counter()
    bundle = rd.train(given["bundle"], given["data"], recipe, options, progress=first)
    training = bundle.training
    return {
        "rates": [round(epoch.images_per_s, 1) for epoch in training.history[1:]],
        "before_s": round(first.at - begin, 1),
        "in_memory": training.data.in_memory,
    }


def run(side: str, given: dict[str, Any], peers: Path, folder: Path) -> dict[str, Any]:
    """Measure a side in a process of its own."""
    program = [sys.executable, str(Path(__file__).resolve()), "--ours"]
    if side != OURS:
        program = [str(peers), str(HERE / "training_speed_timm.py")]
    with tempfile.TemporaryDirectory(dir=folder) as out:
        environment = os.environ | {"XDG_CACHE_HOME": f"{out}/cache", "OMP_NUM_THREADS": str(given["threads"])}
        bundle = Path(out) / "bundle"
        select(given["gmacs"], given["resolution"], bundle)
        given = {**given, "side": side, "out": out, "bundle": str(bundle), "started": time.time()}
        load = OtherLoad()
        done = subprocess.run(
            [*program, json.dumps(given)],
            preexec_fn=lambda: os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given["threads"]]),
            capture_output=True,
            text=True,
            env=environment,
            cwd=out,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{side} ended with {done.returncode}:\n{done.stderr[-4000:]}")
        others = load.cores()
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**row, "other_cores": None if others is None else round(others, 2)}


def select(gmacs: float, resolution: int, bundle: Path) -> None:
    """Make the bundle of a network."""
    command = [sys.executable, "-m", "regnet_deploy", "select", "--gflops", str(gmacs), "--classes", str(CLASSES)]
    command += ["--resolution", str(resolution), "-o", str(bundle)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return for each resolution the median rates, and their ratio to the faster way of timm by rounds."""
    summed = []
    for resolution in sorted({row["resolution"] for row in rows}):
        rates: dict[str, list[float]] = {}
        for row in rows:
            if row["resolution"] == resolution:
                rates.setdefault(row["side"], []).append(statistics.median(row["rates"]))
        medians = {side: statistics.median(each) for side, each in rates.items()}
        faster = max((TIMM, TIMM_LAST), key=lambda side: medians[side])
        ratios = [ours / theirs for ours, theirs in zip(rates[OURS], rates[faster], strict=True)]
        ratio = medians[OURS] / medians[faster]
        summed.append(
            {
                "resolution": resolution,
                "images_per_s": {side: round(rate, 1) for side, rate in medians.items()},
                "faster": faster,
                "ratio": {"value": round(ratio, 2), "low": round(min(ratios), 2), "high": round(max(ratios), 2)},
            }
        )
    return summed


def measure(options: argparse.Namespace, folder: Path) -> None:
    """Measure all sides in turns, and write the results after each round."""
    machine, rows = describe_machine().to_json(), []
    for turn in range(options.rounds):
        for resolution in options.resolutions or CASES:
            gmacs, batch, images, side = CASES[resolution]
            data = folder / str(resolution)
            if not data.exists():
                data.mkdir()
                write_images(data, images, side)
                select(gmacs, resolution, folder / f"network-{resolution}")
            bundle = rd.open_bundle(folder / f"network-{resolution}")
            given = {
                "data": str(data),
                "resolution": resolution,
                "gmacs": gmacs,
                "batch": batch,
                "images": images,
                "classes": CLASSES,
                "epochs": options.epochs,
                "threads": options.threads,
                "seed": turn,
                "network": bundle.architecture.to_json(),
                "train_py": str(options.timm.resolve()),
            }
            for name in (*SIDES[turn % 3 :], *SIDES[: turn % 3]):
                row = run(name, given, options.peers.absolute(), folder)
                facts = {"resolution": resolution, "side": name, "round": turn, "batch": batch, "images": images}
                rows.append({**facts, "network": bundle.architecture.name, "threads": options.threads, **row})
                print(f"{resolution} pixels, round {turn}, {name}: {row['rates']} images/s", flush=True)
        result = {"machine": machine, "rows": rows, "summary": summary(rows)}
        options.json.write_text(json.dumps(result) + "\n", encoding="utf-8")


def main() -> None:
    if sys.argv[1:2] == ["--ours"]:
        print(json.dumps(ours(json.loads(sys.argv[2]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True, metavar="PYTHON", help="interpreter that has timm")
    parser.add_argument("--timm", type=Path, required=True, metavar="TRAIN.PY")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads and cores of a training (default: 1)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3, help="epochs of each run that are measured (default: 3)")
    parser.add_argument("--resolution", dest="resolutions", type=int, action="append", choices=CASES)
    parser.add_argument("--json", type=Path, default=RESULT, metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(options, Path(folder))


if __name__ == "__main__":
    main()
