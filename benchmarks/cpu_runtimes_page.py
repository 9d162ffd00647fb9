"""Writes docs/cpu-runtimes.md from benchmarks/results/cpu_runtimes.json.

    python benchmarks/cpu_runtimes_page.py

`tests/test_benchmarks.py` checks that the page is what this program writes.
"""

# ruff: noqa: E501  # lines of the page

from __future__ import annotations

import statistics
from typing import Any

from measurements import ROOT, read, table

PAGE = ROOT / "docs" / "cpu-runtimes.md"
#: The way that the others are compared with, and points of top-1 that the elected one may lose.
BASE, MAX_DROP = "onnx-fp32", 0.5
OURS = ("onnx-", "openvino-")


def speed_up(row: dict[str, Any], way: str, base: str = BASE) -> tuple[float, float, float]:
    """Return how many times as fast a way is as another one: lowest, median and highest ratio of a round."""
    ratios = [then / now for then, now in zip(row["ms"][base], row["ms"][way], strict=True)]
    return min(ratios), statistics.median(ratios), max(ratios)


def median_ms(row: dict[str, Any], way: str) -> float:
    """Return the median of a way over the rounds, ms."""
    return statistics.median(row["ms"][way])


def elected(row: dict[str, Any], accuracy: dict[str, Any]) -> str:
    """Return the fastest way to run a variant that loses half a point or less."""
    accurate = [way for way in row["ms"] if way.startswith(OURS) and accuracy[way]["accuracy"]["drop"] <= MAX_DROP]
    return min(accurate, key=lambda way: median_ms(row, way))


def best_peer(row: dict[str, Any]) -> str:
    """Return the fastest way of another program: PyTorch, ONNX Runtime in FP32, or benchmark_app."""
    return min(
        (way for way in row["ms"] if way == BASE or not way.startswith(OURS)), key=lambda way: median_ms(row, way)
    )


def pieces(result: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Return network, batch size and times of each piece that has an accuracy too."""
    return [
        (network, batch, row)
        for network, rows in result["times"].items()
        if network in result["accuracy"]
        for batch, row in sorted(rows.items(), key=lambda one: int(one[0]))
    ]


def range_text(ratios: tuple[float, float, float]) -> str:
    """Return a ratio with its range."""
    return f"{ratios[1]:.2f} ({ratios[0]:.2f} to {ratios[2]:.2f})"


def drop_text(accuracy: dict[str, Any], way: str) -> str:
    """Return the points that a way loses, with the 95 % interval; nothing of ways that were not validated."""
    if way not in accuracy:
        return "-"
    one = accuracy[way]["accuracy"]
    return f"{one['drop']:.2f} ({one['low']:.2f} to {one['high']:.2f})"


def page() -> str:
    """Return the page of the stored results."""
    return render(read("cpu_runtimes"))


def render(result: dict[str, Any]) -> str:
    """Return the page of results."""
    machine, found = result["machine"], pieces(result)
    versions = ", ".join(f"{name} {machine['versions'][name]}" for name in ("onnxruntime", "openvino", "torch"))
    rows, elections = [], []
    for network, batch, row in found:
        accuracy = result["accuracy"][network]
        for way in sorted(row["ms"], key=lambda one: median_ms(row, one)):
            drop = drop_text(accuracy, way)
            rows.append([network, batch, way, f"{median_ms(row, way):.2f}", range_text(speed_up(row, way)), drop])
        ours, peer = elected(row, accuracy), best_peer(row)
        shares = [range_text(speed_up(row, ours)), peer, range_text(speed_up(row, ours, peer))]
        elections.append([network, batch, ours, *shares, drop_text(accuracy, ours)])
    busy = max((row["contended_cores"] or 0.0 for _, _, row in found), default=0.0)
    columns = [
        "network",
        "batch",
        "elected",
        "times ONNX Runtime FP32",
        "best peer",
        "times the best peer",
        "points lost",
    ]
    return f"""# Runtimes on a CPU

`python benchmarks/cpu_runtimes.py` measures every way to run a network on a CPU, in turns, and `python
benchmarks/cpu_runtimes_page.py` writes this page. Machine: {machine["cpu"]}, {machine["cores"]} cores, {result["cpu_instructions"]};
{machine["system"]}, Python {machine["python"]}, {versions}. Other programs used at most {busy:.2f} cores meanwhile.

Times are of a call from images in memory to logits in memory, at 224 pixels on all cores: the median over the rounds of the median
of a turn. A ratio is one within a round: its median, lowest and highest. PyTorch runs channels last; compiled is `torch.compile`
with frozen weights. benchmark_app is OpenVINO's own, which runs the same files in BF16 where the CPU has it, and copies no images
and no logits. Points of top-1 are lost on 400 images of digits at 64 pixels by the same network, with the 95 % interval.

## The elected way

The fastest variant that loses at most {MAX_DROP:g} points, as `export --data` elects it, beside the fastest of ONNX Runtime FP32,
PyTorch and benchmark_app.

{table(columns, elections)}

## Every way

{table(["network", "batch", "way", "ms", "times ONNX Runtime FP32", "points lost"], rows)}
"""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
