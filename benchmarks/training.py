"""Measures training from random weights beside ultralytics, timm and our old defaults, in the same time.

    python3.11 -m venv peers
    peers/bin/pip install ultralytics==8.4.190 timm==1.0.31 torchvision tensorboard    # and torch for the CPU
    git clone --branch v1.0.31 https://github.com/huggingface/pytorch-image-models timm
    dpkg-deb -x tuxpaint-stamps-default_*_all.deb stamps
    python benchmarks/training.py --mnist mnist10k.npz --glyphs glyphs64.npz \\
        --stamps stamps/usr/share/tuxpaint/stamps --peers peers/bin/python --timm timm/train.py --threads 1
    python benchmarks/training_page.py

Each side trains on the same folders (`benchmarks/training_sets.py`), at the same resolution, with the same number of
threads, on as many cores (the first ones of those this process may use: `taskset -c 1 python ...` chooses others):

* default: `regnet-deploy train BUNDLE --data DIR --minutes M`, for a network that `select` has chosen;
* old default: the recipe of the paper, fixed in `benchmarks/training_ours.py`, for the same network;
* yolo: `yolo classify train` of yolo26n-cls.yaml with `time=`, and its defaults;
* timm: train.py with its defaults, for the same network as ours;
* tuned A, B, C: settings of a person for the same network, in `benchmarks/training_ours.py`.

The budget of `select` is the MACs of yolo26n-cls at the resolution. Of the tuned settings, the page shows for each
folder the one with the best validation accuracy. Each run is a process of its own. On the clock of ours is the whole
call of train; on that of the others only what is from the first step to the end of the last epoch
(`benchmarks/training_phases.py`).

The test images are evaluated afterwards, and nobody chooses by them. Each run is a line of JSON, added to the file at
once; what the file has is not measured again, so that a run can be interrupted, and files of several be concatenated.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training_ours import WAYS
from training_sets import SETS, Archives, write_folders
from transfer_sets import Folders

import regnet_deploy as rd
from regnet_deploy.cpu_load import OtherLoad
from regnet_deploy.profiling.machine import describe_machine

HERE = Path(__file__).parent
RESULT = HERE / "results" / "training.jsonl"
YOLO, TIMM = "yolo", "timm"
SIDES = (*WAYS[:2], YOLO, TIMM, *WAYS[2:])
YOLO_MODEL = "yolo26n-cls.yaml"
#: Resolution -> GMACs of YOLO_MODEL with 10 classes, the budget of our network.
BUDGETS = {32: 0.004, 64: 0.016}
SEEDS = (0, 1, 2)
#: Seconds after its time at which a process is killed.
GRACE_S = 1800
Row = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """What is the same for all runs.

    Attributes:
        archives: where the images come from.
        peers: interpreter that has ultralytics and timm.
        train_py: timm's train.py.
        threads: CPU threads, and cores, of each run.
        seconds: time of a training; some sets have a multiple of it.
    """

    archives: Archives
    peers: Path
    train_py: Path
    threads: int
    seconds: float


@functools.cache
def network(resolution: int, classes: int, folder: Path) -> rd.Bundle:
    """Return the bundle that `select` makes within the budget."""
    bundle = folder / f"network-{resolution}-{classes}"
    command = ["select", "--gflops", str(BUDGETS[resolution]), "--resolution", str(resolution)]
    command = [sys.executable, "-m", "regnet_deploy", *command, "--classes", str(classes), "-o", str(bundle)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return rd.open_bundle(bundle)


def images_by_class(folder: Path) -> dict[str, int]:
    """Return the number of images of each class of a folder."""
    return {each.name: sum(1 for _ in each.iterdir()) for each in sorted(folder.iterdir())}


def given_to(side: str, name: str, seed: int, folders: Folders, out: Path, setting: Setting) -> Row:
    """Return what the process of a side is told, but for what depends on when it runs."""
    images = SETS[name]
    counts = images_by_class(folders.train / "train")
    bundle = network(images.resolution, len(counts), out.parent)
    return {
        "side": side,
        "data": str(folders.train),
        "test": str(folders.test),
        "out": str(out),
        "seed": seed,
        "threads": setting.threads,
        "seconds": images.time * setting.seconds,
        "resolution": images.resolution,
        "classes": len(counts),
        "images": sum(counts.values()),
        "mirrored": images.mirrored,
        "bundle": str(bundle.path),
        "network": bundle.architecture.to_json(),
        "parameters": bundle.selection.met.parameters,
        "model": YOLO_MODEL,
        "train_py": str(setting.train_py),
    }


def program_of(side: str, setting: Setting) -> list[str]:
    """Return the command of a side."""
    if side in (YOLO, TIMM):
        return [str(setting.peers), str(HERE / f"training_peer_{side}.py")]
    return [sys.executable, str(HERE / "training_ours.py")]


def measured(given: Mapping[str, Any], setting: Setting) -> Row:
    """Train in a process of its own; return what it says, with the time of the process and the load of the machine.

    Raises:
        RuntimeError: the process failed.
    """
    cores = sorted(os.sched_getaffinity(0))[: setting.threads]
    out = Path(given["out"])
    out.mkdir()
    environment = os.environ | {"XDG_CACHE_HOME": str(out / "cache"), "PYTHONWARNINGS": "ignore"}
    environment |= {f"{library}_NUM_THREADS": str(setting.threads) for library in ("OMP", "MKL", "OPENBLAS")}
    load, begin = OtherLoad(), time.time()
    done = subprocess.run(
        [*program_of(given["side"], setting), json.dumps({**given, "started": begin})],
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
        capture_output=True,
        text=True,
        env=environment,
        cwd=out,
        timeout=given["seconds"] + GRACE_S,
        check=False,
    )
    process_s, others = time.time() - begin, load.cores()
    shutil.rmtree(out)
    if done.returncode:
        raise RuntimeError(f"the process ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return {
        **row,
        "process_s": round(process_s, 2),
        "other_cores": None if others is None else round(others, 2),
        "load": round(os.getloadavg()[0], 2),
    }


def kept(file: Path) -> list[Row]:
    """Return the runs of a file."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def ensure_alike(rows: Sequence[Row], setting: Setting, machine: Mapping[str, Any], file: Path) -> None:
    """Raise an error if results are of another machine, time or number of threads.

    Raises:
        SystemExit: with the difference.
    """
    wanted = {"budget_s": setting.seconds, "threads": setting.threads, "cpu": machine["cpu"]}
    for row in rows:
        had = {"budget_s": row["budget_s"], "threads": row["threads"], "cpu": row["machine"]["cpu"]}
        if had != wanted:
            raise SystemExit(f"{file} was measured with {had}, this is {wanted}: give another file with --json")


def epoch_s_of(rows: Sequence[Row], name: str, side: str) -> float | None:
    """Return the seconds of an epoch of a side in the first of its runs on a set, so that the others need no trial."""
    for row in rows:
        if (row["set"], row["side"]) == (name, side) and len(row["curve"]) > 1:
            ends = [at for at, _ in row["curve"]]
            return (ends[-1] - ends[0]) / (len(ends) - 1)
    return None


def planned(
    sets: Sequence[str], seeds: Sequence[int], sides: Sequence[str], rows: Sequence[Row]
) -> Iterator[tuple[str, int, list[str]]]:
    """Yield the sets and seeds with the sides that are to be measured; each time another side is the first."""
    have = {(row["set"], row["seed"], row["side"]) for row in rows}
    for turn, (seed, name) in enumerate((seed, name) for seed in seeds for name in sets):
        first = turn % len(sides)
        left = [side for side in (*sides[first:], *sides[:first]) if (name, seed, side) not in have]
        if left:
            yield name, seed, left


def measure(options: argparse.Namespace, setting: Setting, folder: Path) -> int:
    """Measure what the file of results does not have; return how many runs failed."""
    rows, machine, failed = kept(options.json), describe_machine().to_json(), 0
    ensure_alike(rows, setting, machine, options.json)
    for name, seed, sides in planned(options.sets or list(SETS), options.seeds or SEEDS, options.sides or SIDES, rows):
        drawn = folder / "set"
        folders = write_folders(SETS[name], setting.archives, seed, drawn)
        test = images_by_class(folders.test)
        for side in sides:
            given = given_to(side, name, seed, folders, folder / "run", setting)
            try:
                row = measured({**given, "epoch_s": epoch_s_of(rows, name, side)}, setting)
            except RuntimeError as error:
                failed += 1
                print(f"{name}, seed {seed}, {side}: {error}", file=sys.stderr, flush=True)
                continue
            row = {
                "set": name,
                "seed": seed,
                "side": side,
                "budget_s": setting.seconds,
                "target_s": given["seconds"],
                "threads": setting.threads,
                **row,
                "train_images": given["images"],
                "val_images": sum(images_by_class(folders.train / "val").values()),
                "largest_class": round(max(test.values()) / sum(test.values()), 4),
                "classes": given["classes"],
                "resolution": given["resolution"],
                "network": given["network"]["name"],
                "machine": {key: machine[key] for key in ("cpu", "cores", "system", "python", "versions")},
            }
            rows.append(row)
            with options.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(
                f"{name}, seed {seed}, {side}: {row['right'] / row['test_images']:.1%} of the test images "
                f"({row['val_top1']:.1%} validated) in {row['seconds']} s, {row['epochs']} epochs; imports "
                f"{row['imports_s']} s, set-up {row['setup_s']} s, after {row['after_s']} s, process "
                f"{row['process_s']} s; load {row['load']}, other programs {row['other_cores']} cores",
                flush=True,
            )
        shutil.rmtree(drawn)
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, required=True, metavar="NPZ")
    parser.add_argument("--glyphs", type=Path, required=True, metavar="NPZ")
    parser.add_argument("--stamps", type=Path, required=True, metavar="DIR")
    parser.add_argument("--peers", type=Path, required=True, metavar="PYTHON", help="interpreter of the other sides")
    parser.add_argument("--timm", type=Path, required=True, metavar="TRAIN.PY")
    parser.add_argument("--seconds", type=float, default=60.0, help="time of a training (default: 60)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads and cores of a training (default: 1)")
    parser.add_argument("--seed", dest="seeds", type=int, action="append", help="may be repeated (default: 0, 1, 2)")
    parser.add_argument("--set", dest="sets", action="append", choices=SETS, help="may be repeated (default: all)")
    parser.add_argument("--only", dest="sides", action="append", choices=SIDES, help="likewise, of the sides")
    parser.add_argument("--json", type=Path, default=RESULT, metavar="FILE")
    options = parser.parse_args()
    archives = Archives(options.mnist.resolve(), options.glyphs.resolve(), options.stamps.resolve())
    setting = Setting(archives, options.peers.absolute(), options.timm.resolve(), options.threads, options.seconds)
    with tempfile.TemporaryDirectory() as folder:
        failed = measure(options, setting, Path(folder))
    if failed:
        raise SystemExit(f"{failed} runs failed: see above; the same command tries them again")


if __name__ == "__main__":
    main()
