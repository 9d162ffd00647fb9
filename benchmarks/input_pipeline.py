"""Measures the input pipeline alone, beside PyTorch's DataLoader with torchvision v2, timm's loader and SPDL, in turns.

    python benchmarks/input_pipeline.py --peers /path/to/python --json benchmarks/results/input_pipeline.json
    python benchmarks/input_pipeline_page.py

`--peers` is an interpreter with torch, torchvision, timm and spdl; this one needs scikit-learn for its two photos, and
simplejpeg. The images are 256 JPEG files of 500 x 375 pixels, cut from the two photos, and 48 of 1,920 x 1,281, each
composed of nine mirrored copies of them, all of quality 90. Rates are per second of CPU time, the median of the rounds,
because other programs may run on the machine; rates per second of time are of the best round.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

from regnet_deploy.images.decode import decoder
from regnet_deploy.profiling.machine import describe_machine

HERE = Path(__file__).parent
RESOLUTIONS = (32, 64, 224)
#: Sides, and the numbers of threads with which they are measured on small photos.
SIDES = {
    "decoded": (1, 2),
    "packed": (1, 2),
    "torchvision": (1, 2),
    "timm": (1, 2),
    "spdl": (1, 2),
    "simplejpeg": (1,),
    "threads": (2,),
}
PEERS = ("torchvision", "timm", "spdl")
#: Sides that are measured on large photos, with one thread.
LARGE = ("decoded", "whole", "torchvision")


def write_small(folder: Path, photos: list[Image.Image], count: int) -> None:
    """Write photos of 500 x 375 pixels."""
    draw = random.Random(0)
    for number in range(count):
        photo = photos[number % len(photos)]
        width = draw.randint(520, 569)
        left, top = draw.randint(0, photo.width - width), draw.randint(0, photo.height - width * 3 // 4)
        part = photo.crop((left, top, left + width, top + width * 3 // 4)).resize((500, 375), Image.Resampling.BICUBIC)
        (ImageOps.mirror(part) if draw.random() < 0.5 else part).save(folder / f"{number:03d}.jpg", quality=90)


def write_large(folder: Path, photos: list[Image.Image], count: int) -> None:
    """Write photos of 1,920 x 1,281 pixels, composed of nine."""
    draw = random.Random(1)
    for number in range(count):
        whole = Image.new("RGB", (1920, 1281))
        for place in range(9):
            tile = photos[draw.randrange(len(photos))]
            tile = ImageOps.mirror(tile) if draw.random() < 0.5 else tile
            whole.paste(tile, (640 * (place % 3), 427 * (place // 3)))
        whole.save(folder / f"{number:03d}.jpg", quality=90)


class Side:
    """A process that measures one side."""

    def __init__(self, python: str, name: str, folder: Path) -> None:
        command = [python, str(HERE / "input_pipeline_side.py"), name, str(folder)]
        self.name = name
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, line: str) -> tuple[float, float]:
        """Return the two numbers of the answer to a line."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.name} has ended: see above")
        first, second = answer.split()
        return float(first), float(second)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def measure(peers: str, rounds: int, seconds: float, folder: Path) -> dict[str, Any]:
    """Return the images/s of every side in every round, by settings."""
    photos = [Image.fromarray(each) for each in load_sample_images().images]
    small, large = folder / "small", folder / "large"
    for path, write, count in ((small, write_small, 256), (large, write_large, 48)):
        path.mkdir()
        write(path, photos, count)
    opened = {
        **{(small, name): Side(peers if name in PEERS else sys.executable, name, small) for name in SIDES},
        **{(large, name): Side(peers if name in PEERS else sys.executable, name, large) for name in LARGE},
    }
    settings = [*((small, side, 1) for side in RESOLUTIONS), (small, 64, 2)]
    settings += [(large, side, 1) for side in RESOLUTIONS]
    rates: dict[tuple[str, int, int, str], list[tuple[float, float]]] = {}
    for name, side in opened.items():
        side.ask("32 1 0.1")  # it has imported everything
        print(name[0].name, name[1], "is ready", file=sys.stderr)
    for _ in range(rounds):
        for path, side, threads in settings:
            for (of, name), process in opened.items():
                if of == path and (path == large or threads in SIDES[name]):
                    found = process.ask(f"{side} {threads} {seconds}")
                    rates.setdefault((path.name, side, threads, name), []).append(found)
                    print(path.name, side, threads, name, *map(round, found), file=sys.stderr)
    for process in opened.values():
        process.close()
    differ = Side(sys.executable, "difference", large)
    differences = {str(side): round(differ.ask(str(side))[0], 3) for side in RESOLUTIONS}
    differ.close()
    rows = [
        {
            "images": images, "side": side, "threads": threads, "loader": name,
            "images_per_s": round(max(wall for wall, _ in found), 1),
            "per_core": round(statistics.median(cpu for _, cpu in found), 1),
        }
        for (images, side, threads, name), found in rates.items()
    ]  # fmt: skip
    return {"rows": rows, "pixel_difference": differences}


def versions(python: str) -> dict[str, str]:
    """Return the versions of the peers."""
    code = (
        "import importlib.metadata as m, json; "
        "print(json.dumps({n: m.version(n) for n in ('torch', 'torchvision', 'timm', 'spdl', 'pillow', 'simplejpeg')}))"
    )
    found: dict[str, str] = json.loads(subprocess.run([python, "-c", code], check=True, capture_output=True).stdout)
    return found


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", required=True, help="interpreter with torch, torchvision, timm, spdl and simplejpeg")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.4, help="of CPU time, of each measurement")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options.peers, options.rounds, options.seconds, Path(folder))
    result = {
        "machine": describe_machine().to_json(),
        "decoder": decoder(),
        "versions": versions(options.peers),
        "date": datetime.now(UTC).date().isoformat(),
        "rounds": options.rounds,
        "seconds": options.seconds,
        **found,
    }
    text = json.dumps(result, indent=1) + "\n"
    if options.json:
        options.json.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
