"""Writes the measured part of docs/latency.md from the results in benchmarks/results.

python benchmarks/latency_page.py
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "latency.md"
BEGIN, END = "<!-- begin of what benchmarks/latency_page.py writes -->", "<!-- end -->"


def page() -> str:
    """Return the page with its measured part written anew."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n\n{_public(_read('latency_model'))}\n{END}{after}"


def _public(result: dict[str, Any]) -> str:
    rows = [
        f"| {each['setting']} | {each['networks']} | {each['left_out']:.1%} | {each['rank_correlation']:.4f} "
        f"| {each['calibrated']:.1%} | {each['by_macs']:.1%} | {each['by_macs_and_activations']:.1%} |"
        for each in result["settings"]
    ]
    good = [each for each in result["settings"] if each["left_out"] < 0.08]
    poor = ", ".join(f"{each['setting']} ({each['left_out']:.0%})" for each in result["settings"] if each not in good)
    return "\n".join(
        [
            "## Errors on published times",
            "",
            *textwrap.wrap(
                "`python benchmarks/latency_model.py` fits the model to published times of RegNets at 224 pixels "
                "(`profiles/public_latency.csv`, from timm's benchmarks), one model for each setting of GPU or CPU, "
                "layout, compiler and version. Mean error: each network is predicted by a model of the others. With 20 "
                "networks: only these are measured, chosen so that they differ, and the error is that of the rest. "
                "MACs, and MACs and activations: the mean error of a line through these.",
                118,
            ),
            "",
            "| setting | networks | mean error | rank correlation | with 20 networks | MACs | MACs and activations |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
            *textwrap.wrap(
                f"The mean error is below 8 % in {len(good)} of {len(result['settings'])} settings. The others: "
                f"{poor}.",
                118,
                break_on_hyphens=False,
            ),
            "",
        ]
    )


def _read(name: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return result


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
