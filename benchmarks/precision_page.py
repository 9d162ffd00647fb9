"""Write docs/precision.md from benchmarks/results/precision*.json.

    python benchmarks/precision_page.py

`tests/test_measurements.py` holds that the page is what this program writes.
"""

# ruff: noqa: E501  # lines of the page

from __future__ import annotations

import statistics
from typing import Any

from measurements import ROOT, read, table

from regnet_deploy.exporting.precision import PRECISIONS
from regnet_deploy.runtimes.gates import GATES

PAGE = ROOT / "docs" / "precision.md"
TRAINED = ("RegNetX-200MF", "RegNetY-400MF")


def trained_rows(network: str) -> list[list[str]]:
    """Return rows of a trained network, from what `export --json` printed."""
    rows = []
    for name, variant in read(f"precision_{network}")["variants"].items():
        proof, accuracy = variant["proof"], variant["accuracy"]
        rows.append(
            [
                network,
                name.removeprefix("onnx-"),
                f"{proof['relative_error']:.3%}",
                f"{proof['cosine']:.5f}",
                f"{accuracy['agreement']:.2%}",
                f"{accuracy['reference_top1']:.2%}",
                f"{accuracy['top1']:.2%}",
                f"{accuracy['drop']:.2f} ({accuracy['low']:.2f} to {accuracy['high']:.2f})",
                (variant.get("calibration") or {}).get("method", "-"),
            ]
        )
    return rows


def error_rows(result: dict[str, Any]) -> list[list[str]]:
    """Return rows of the published networks: error figures."""
    return [
        [
            network,
            precision,
            f"{row['max_abs_error']:.2g}",
            f"{row['mean_abs_error']:.2g}",
            f"{row['relative_error']:.2%}",
            f"{row['cosine']:.4f}",
            f"{row['accuracy']['agreement']:.1%}",
            f"{row['accuracy']['drop']:.2f} ({row['accuracy']['low']:.2f} to {row['accuracy']['high']:.2f})",
            row["method"] or "-",
        ]
        for network, rows in result["errors"].items()
        for precision, row in rows.items()
    ]


def deployed_rows(result: dict[str, Any]) -> list[list[str]]:
    """Return rows of the published networks: files, engines, latency."""
    made = []
    for network, rows in result["deployed"].items():
        for precision, row in rows.items():
            rtx = row.get("rtx")
            latency = {one["batch"]: one["p50_ms"] for one in row["latency"]}
            made.append(
                [
                    network,
                    precision,
                    f"{row['build_s']:.2f}",
                    f"{row['bytes'] / 2**20:.1f}",
                    rtx["result"] if rtx else "not for TensorRT",
                    f"{rtx['build_s']:.1f}" if rtx and "build_s" in rtx else "-",
                    f"{rtx['bytes'] / 2**20:.1f}" if rtx and "bytes" in rtx else "-",
                    *(f"{latency[batch]:.1f}" if batch in latency else "-" for batch in (1, 8)),
                ]
            )
    return made


def speed_up(result: dict[str, Any], precision: str, batch: int) -> tuple[float, float, float]:
    """Return how many times as fast as FP32 a precision is on the CPU: lowest, median and highest of the networks."""

    def median(rows: dict[str, Any], name: str) -> float:
        return next(one["p50_ms"] for one in rows[name]["latency"] if one["batch"] == batch)

    ratios = sorted(median(rows, "fp32") / median(rows, precision) for rows in result["deployed"].values())
    return ratios[0], statistics.median(ratios), ratios[-1]


def gate_rows() -> list[list[str]]:
    return [[name, precision.description, f"{GATES[name]}"] for name, precision in PRECISIONS.items()]


def page() -> str:
    result = read("precision")
    machine, images = result["machine"], result["images"]
    library = next(
        row["rtx"]["library"]
        for rows in result["deployed"].values()
        for row in rows.values()
        if "library" in row.get("rtx", {})
    )
    faster = {batch: speed_up(result, "int8-cpu", batch) for batch in (1, 8)}
    half = {batch: speed_up(result, "fp16", batch) for batch in (1, 8)}
    return f"""# Precision

What a variant computes in, what that costs in accuracy, and what it brings in speed. `python benchmarks/precision_page.py`
writes this page from what `benchmarks/precision.py` and `regnet-deploy export --json` measured. Machine:
{machine["cpu"]} ({result["cpu_instructions"]}), {machine["cores"]} cores, {machine["system"]}, onnxruntime
{machine["versions"]["onnxruntime"]}. No GPU figure is here because none was measured; `benchmarks/gpu.sh` measures them
on any machine that has one.

**On this CPU `int8-cpu` is {faster[1][0]:.2f} to {faster[1][2]:.2f} times as fast as FP32 for one image (median of the
networks {faster[1][1]:.2f}) and {faster[8][0]:.2f} to {faster[8][2]:.2f} times for eight ({faster[8][1]:.2f}); FP16 is
{half[1][1]:.2f} and {half[8][1]:.2f} times as fast, for ONNX Runtime computes it in FP32 on a CPU.** On another CPU, one
without VNNI above all, it may be slower than FP32: `export --data DIR` measures before it chooses.

## Precisions and gates

A precision is a way to type the ONNX file, for TensorRT 11 and TensorRT-RTX compute what the file says and have no
flags. A variant that does not pass its gate on the golden set is not added (exit code 3); `--gate int8:cosine=0.98`
sets another limit. "Mean" is the mean error of a logit as a share of how much the logits vary from image to image.
With `--data` a variant may also lose no more than `--max-drop` points of top-1 on all validation images.

{table(["precision", "computes", "gate"], gate_rows())}

INT8 and FP8 are calibrated on 300 to 512 training images that are neither in the golden set nor in the validation set;
MinMax, entropy and percentile ranges are all tried, and the ones that answer best are kept. Two things that a file can
have and still be accepted, found by reading back in which types a built engine computes: with scales of shape (1,)
in place of scalars {library} computes every INT8 and FP8 convolution in FP16 without a word, and ONNX
Runtime leaves additions and products in FP32.

## Trained networks

Trained from scratch by `regnet-deploy train` on 62 characters in different fonts (64 x 64 pixels, fonts of the 3,720
validation images not among those trained on), then

    regnet-deploy export --precision fp16 --precision bf16 --precision int8 --precision int8-1x1 --precision int8-cpu \\
      --precision fp8-1x1 --data glyphs --max-drop 100 --json

Mean error and cosine (of the worst image) are of the golden set, the rest of all validation images; the last but one
column is what top-1 loses, in points, with its 95 % interval.

{table(["network", "precision", "mean error", "cosine", "same first class", "top-1, model", "top-1, variant", "lost (points)", "ranges"], [row for name in TRAINED for row in trained_rows(name)])}

## Published networks: error

`python benchmarks/precision.py --part errors`. Networks of 0.2 to 8 GMACs with seeded weights, batch norms that have
seen the images, residual branches that count for {result["branch"]:g} of what they would, and a linear layer fitted to
scikit-learn's digits ({images["fitted"]} images; {images["calibrated"]} others calibrate, {images["validated"]} validate):
answers that depend on every layer, in networks that nobody has trained. A network that is trained is less sensitive, as
above; what the table shows is how precisions and sizes compare.

{table(["network", "precision", "max error", "mean error", "of the spread", "cosine", "same first class", "lost (points)", "ranges"], error_rows(result))}

## Published networks: files, engines, latency

`python benchmarks/precision.py --part deployed`. At 224 pixels; build time and size of the ONNX file; the engine that
{library} builds of it without a GPU (batches of 1 to 32) and whether all its convolutions compute in the types that were
asked for; latency of ONNX Runtime on this CPU, all cores, median, the precisions in turns. Other programs
ran beside this, so ratios between precisions say more than the ms do. Precisions without a latency are for TensorRT.

{table(["network", "precision", "build (s)", "MiB", "RTX engine", "RTX build (s)", "RTX MiB", "ms, batch 1", "ms, batch 8"], deployed_rows(result))}
"""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
