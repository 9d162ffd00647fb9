"""Writes docs/measurements.md from benchmarks/results/*.json.

    python benchmarks/measurements.py

`tests/test_benchmarks.py` checks that the page is what this program writes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "measurements.md"


def table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(columns)} |", f"| {' | '.join('---' for _ in columns)} |"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def page() -> str:
    selection, export, ranking, sampling = (
        read(name) for name in ("selection_time", "export_time", "ranking", "sampling")
    )
    machine = export["machine"]
    budgets = {(row["family"], row["gmacs"]): row for row in selection["budgets"]}
    sizes = sorted({gmacs for _, gmacs in budgets})
    selected = [
        [f"{gmacs:g}", *(f"{budgets[family, gmacs][key]:,}" for family in "xy" for key in ("considered", "seconds"))]
        for gmacs in sizes
    ]
    exported = [
        [row["exporter"], f"{row['median_s']:.2f}", f"{row['bytes'] / 2**20:.1f}", str(row["opset"])]
        for row in export["rows"]
    ]
    rates = sampling["draws_per_second"]
    sampled = [[side, f"{rate:,}"] for side, rate in rates.items()]
    ranked = [[way, f"{row['median']:g}", f"{row['mean']:g}"] for way, row in ranking["summary"].items()]
    return f"""# Measurements

This page has the measurements of selection, sampling and export, each with the command that prints it. `make bench`
runs all benchmarks and writes this page again. Other measurements have pages of their own: [precisions](precision.md),
[serving speed](serving-speed.md), [design spaces](design-spaces.md).

Machine: {machine["cpu"]}, {machine["cores"]} cores, {machine["system"]}, Python {machine["python"]}, torch
{machine["versions"]["torch"]}, onnx {machine["versions"]["onnx"]}, numpy {machine["versions"]["numpy"]}. Nothing was
measured on a GPU.

## Selection

`python benchmarks/selection_time.py`: number of distinct networks within ± 1 % of the budget, and seconds of the whole
command `regnet-deploy select` from a cold start (median of 5). `regnet-deploy --help` takes {selection["help_s"]} s.

{table(["GMACs", "RegNetX", "seconds", "RegNetY", "seconds"], selected)}

## Ranking

`python benchmarks/ranking.py`: percentile at which a published network ranks when the trends are fitted without it. A
random order gives 50 on average. See [selection.md](selection.md).

{table(["score", "median", "mean"], ranked)}

## Sampling

`python benchmarks/sampling.py`: random draws of {sampling["space"]} a second on one core, beside a loop in plain Python
over the same formulas. Each valid draw becomes a network with its MACs, parameters and activations; invalid draws are
rejected. Median of {sampling["rounds"]} alternating runs; ratio {sampling["ratio"]}. Both sides give the same
{sampling["compared"]["networks"]:,} networks and counts for the same {sampling["compared"]["draws"]:,} draws.
{sampling["population"]["n"]} distinct networks of {sampling["population"]["space"]} with 360 to 400 MMACs at 224 pixels
take {sampling["population_s"]} s.

{table(["side", "draws a second"], sampled)}

## Export

`python benchmarks/export_time.py`: seconds to export {export["network"]} to ONNX with three exporters in alternating
runs (median, without the proof).

{table(["exporter", "seconds", "MiB", "opset"], exported)}

## The demo

`make demo` (images of digits, 32 pixels, 16 MMACs) prints its own figures: validation and test top-1, the largest
difference of a logit between PyTorch and ONNX Runtime, latency by batch size, and the time of its two parts.
"""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
