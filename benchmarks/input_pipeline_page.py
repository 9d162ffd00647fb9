"""Writes docs/input-pipeline.md from benchmarks/results/input_pipeline.json.

    python benchmarks/input_pipeline_page.py

`tests/test_benchmarks.py` checks that the page is what this program writes.
"""

from __future__ import annotations

from typing import Any

from measurements import ROOT, read, table

PAGE = ROOT / "docs" / "input-pipeline.md"
PEERS = ("torchvision", "timm", "spdl")
#: Side of the views with which two threads are measured, pixels.
TWO = 64
#: A decoder or a way to load that is faster by less is not worth a second one.
WORTH = 0.1


def rates_of(result: dict[str, Any], kind: str = "per_core") -> dict[tuple[str, int, int, str], float]:
    """Return images/s by images, side, threads and loader; ``per_core`` of CPU time, ``images_per_s`` of time."""
    return {(r["images"], r["side"], r["threads"], r["loader"]): r[kind] for r in result["rows"]}


def range_text(ratios: list[float]) -> str:
    """Return the lowest and highest ratio."""
    return f"{min(ratios):.2f} to {max(ratios):.2f}"


def verdict(ratios: list[float]) -> str:
    """Return whether something that may replace what is used is faster by enough."""
    worth = min(ratios) >= 1 + WORTH
    return "that is worth a second way" if worth else "that is not worth a second way, so there is none"


def page() -> str:
    """Return the page."""
    result = read("input_pipeline")
    rates, machine, versions = rates_of(result), result["machine"], result["versions"]
    sides = sorted({side for _, side, _, _ in rates})
    peers = ("torchvision v2", "timm", "SPDL")
    columns = ["pixels", "threads", "packed", "decoded", *peers, "packed / best peer", "decoded / best peer"]
    large_columns = ["pixels", "reduced", "full size", "torchvision v2", "reduced / full size", "difference"]
    rows, packed, decoded = [], [], []
    for side, threads in [*((side, 1) for side in sides), (TWO, 2)]:
        found = {name: rates["small", side, threads, name] for name in ("packed", "decoded", *PEERS)}
        best = max(found[name] for name in PEERS)
        packed.append(found["packed"] / best)
        decoded.append(found["decoded"] / best)
        ratios = [f"{packed[-1]:.2f}", f"{decoded[-1]:.2f}"]
        rows.append([str(side), str(threads), *(f"{each:,.0f}" for each in found.values()), *ratios])
    large = [
        [
            str(side),
            *(f"{rates['large', side, 1, name]:,.0f}" for name in ("decoded", "whole", "torchvision")),
            f"{rates['large', side, 1, 'decoded'] / rates['large', side, 1, 'whole']:.2f}",
            f"{result['pixel_difference'][str(side)]:.2f}",
        ]
        for side in sides
    ]
    other = [rates["small", side, 1, "simplejpeg"] / rates["small", side, 1, "decoded"] for side in sides]
    wall = rates_of(result, "images_per_s")
    in_threads = [wall["small", TWO, 2, "threads"] / wall["small", TWO, 2, "decoded"]]
    for_cpu = rates["small", TWO, 2, "threads"] / rates["small", TWO, 2, "decoded"]
    return f"""# Input pipeline

How fast training images are read, decoded, cropped and put into batches, without a network. Which part of that a
training has to wait for is printed in every epoch: [training](training.md#input).

    python benchmarks/input_pipeline.py --peers PYTHON --json benchmarks/results/input_pipeline.json
    python benchmarks/input_pipeline_page.py

Machine: {machine["cpu"]}, {machine["cores"]} cores, {machine["system"]}, Python {machine["python"]},
{result["decoder"]}, torch {machine["versions"]["torch"]}; peers: torchvision {versions["torchvision"]},
timm {versions["timm"]}, spdl {versions["spdl"]}, Pillow {versions["pillow"]}; {result["date"]}. Each figure is
the median of {result["rounds"]} measurements of {result["seconds"]:g} s of CPU time, in turns with those of the others.

Images/s are per second of CPU time, of all threads and processes together: what one core would load if nothing else
ran on it. Other programs ran on this machine at the same time.

## Photos of 500 x 375 pixels

Images/s of random crops of 8 to 100 % of the area, mirrored half of the time, uint8, in batches of 16. One thread is
the process itself, two are two loading processes (of SPDL, two threads). `packed` is `train` with images in a packed
file, `decoded` is `--cache off`. SPDL runs its pipeline of threads with the functions of torchvision, because its own
decoder needs the libraries of FFmpeg, which its wheel does not contain.

{table(columns, rows)}

Packed images are loaded {range_text(packed)} times as fast as by the best of the peers, and images that are decoded
every time {range_text(decoded)} times.

## Photos of 1,920 x 1,281 pixels

Images/s with one thread, decoded every time. `full size` decodes every pixel and is otherwise the same; the difference
is the mean absolute difference of the pixels of the views, of 255.

{table(large_columns, large)}

## What was measured and is not used

- **Another decoder.** With simplejpeg {versions["simplejpeg"]} in place of Pillow, both on libjpeg-turbo, this pipeline
  with one thread is {range_text(other)} times as fast where images are decoded every time. Stored images are decoded
  once, so of a whole training it gains that only of its first pass. Another decoder makes other pixels, and so other
  weights: there is one.
- **Threads in place of processes.** At {TWO} pixels, two threads of one process load {in_threads[0]:.2f} times as fast
  as two processes (images per second of time, the best round of each), and {for_cpu:.2f} times as many images per
  second of CPU time; {verdict(in_threads)}.
"""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written: {PAGE}")
