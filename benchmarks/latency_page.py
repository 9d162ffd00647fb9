"""Writes the measured part of docs/latency.md from the results in benchmarks/results.

python benchmarks/latency_page.py
"""

from __future__ import annotations

import json
import statistics
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
    local = _local([json.loads(line) for line in (RESULTS / "latency_choice.jsonl").read_text("utf-8").splitlines()])
    return f"{before}{BEGIN}\n\n{local}\n{_public(_read('latency_model'))}\n{END}{after}"


def _local(rows: list[dict[str, Any]]) -> str:
    """Return what was measured on one machine: models, limits and picks beside published networks."""
    machine, threads = rows[0]["machine"], rows[0]["threads"]
    parts = {part: [row for row in rows if row["part"] == part] for part in ("models", "limits", "published")}
    others = statistics.median(row["other_cores"] for row in rows if row["other_cores"] is not None)
    lines = [
        "## On one CPU",
        "",
        *_wrapped(
            f"`python benchmarks/latency_choice.py --threads {threads}` on {machine['cpu']}, {machine['cores']} core, "
            f"{machine['system']}, ONNX Runtime {machine['versions']['onnxruntime']}, OpenVINO "
            f"{machine['versions']['openvino']}; {threads} thread, batch 1, 224 pixels. Other programs kept "
            f"{others:.1f} other cores busy (median)."
        ),
        "",
        *_wrapped(
            "A calibration of 30 networks predicts 40 others, which were drawn at random from the constrained space "
            "with group widths of 8 or more and measured afterwards:"
        ),
        "",
        "| runtime and precision | times, ms | left out | fresh networks: mean error | largest | rank correlation |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            f"| {row['setup']} | {row['shortest_ms']:.1f} to {row['longest_ms']:.1f} | {row['left_out']:.1%} "
            f"| {row['mean_error']:.1%} | {row['largest_error']:.1%} | {row['rank_correlation']:.4f} |"
            for row in parts["models"]
        ),
        "",
    ]
    return "\n".join([*lines, *_limits(parts["limits"]), *_published_lines(parts["published"])])


def _limits(rows: list[dict[str, Any]]) -> list[str]:
    picked = [row for row in rows if "macs" in row]
    if not picked:
        return []
    kept = sum(max(row["again_ms"]) <= row["ms"] for row in picked)
    return [
        *_wrapped(
            f"`select --latency-ms` for {len(rows)} limits, {picked[0]['setup']}. The pick is measured again in three "
            f"processes of its own, after the choice: all three keep the limit in {kept} of {len(rows)}."
        ),
        "",
        "| limit, ms | pick | MMACs | expected error, % | measured again, ms | share of the limit | measured |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(
            f"| {row['ms']:g} | RegNet{row['family'].upper()} | {row['macs'] / 1e6:,.0f} | {row['expected_error']:.2f} "
            f"| {min(row['again_ms']):.2f} to {max(row['again_ms']):.2f} "
            f"| {statistics.median(row['again_ms']) / row['ms']:.0%} | {row['measured']} |"
            for row in picked
        ),
        *(f"| {row['ms']:g} | none: {row['error']} | | | | | |" for row in rows if "macs" not in row),
        "",
    ]


def _published_lines(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    lines = [
        "`select --like NAME`, and the pick beside the published network, in turns in one process:",
        "",
        "| runtime and precision | published | MMACs | ms | pick | MMACs | ms | times as fast |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(
            f"| {row['setup']} | {row['published']} | {row['published_macs'] / 1e6:,.0f} | {row['published_ms']:.2f} "
            f"| RegNet{row['family'].upper()} | {row['macs'] / 1e6:,.0f} | {row['ms']:.2f} "
            f"| {row['times_as_fast']:.2f} |"
            for row in rows
        ),
        "",
    ]
    for setup in dict.fromkeys(row["setup"] for row in rows):
        times = [row["times_as_fast"] for row in rows if row["setup"] == setup]
        lines += [f"Median with {setup}: {statistics.median(times):.2f} times as fast ({len(times)} networks).", ""]
    return lines


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 118, break_on_hyphens=False, break_long_words=False)


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
