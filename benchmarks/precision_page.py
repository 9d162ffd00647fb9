"""Writes docs/precision.md from benchmarks/results/precision*.json.

    python benchmarks/precision_page.py

`tests/test_benchmarks.py` checks that the page is the output of this program.
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
    """Return the rows of a trained network from the output of `export --json`."""
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
    """Return the rows of the published networks: errors."""
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
    """Return the rows of the published networks: files, engines, latency."""
    table_rows = []
    for network, rows in result["deployed"].items():
        for precision, row in rows.items():
            rtx = row.get("rtx")
            latency = {one["batch"]: one["p50_ms"] for one in row["latency"]}
            table_rows.append(
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
    return table_rows


def speed_up(result: dict[str, Any], precision: str, batch: int) -> tuple[float, float, float]:
    """Return how many times as fast as FP32 a precision is on the CPU: minimum, median and maximum of the networks."""

    def median(rows: dict[str, Any], name: str) -> float:
        return next(one["p50_ms"] for one in rows[name]["latency"] if one["batch"] == batch)

    ratios = sorted(median(rows, "fp32") / median(rows, precision) for rows in result["deployed"].values())
    return ratios[0], statistics.median(ratios), ratios[-1]


def gate_rows() -> list[list[str]]:
    return [[name, precision.description, f"{GATES[name]}"] for name, precision in PRECISIONS.items()]


def golden_gate_rows() -> list[list[str]]:
    """Return the rows of `benchmarks/golden_gate.py`."""
    return [
        [
            f"{int(classes):,}",
            f"{row['mean_error'][0]:.1%} to {row['mean_error'][1]:.1%}",
            f"{row['changed'][0]:.1%} to {row['changed'][1]:.1%}",
            f"{row['earlier']['refused_good']:.1%}",
            f"{row['present']['refused_good']:.1%}",
            str(row["harmful"]),
            f"{row['earlier']['missed_harmful']:.1%}",
            f"{row['present']['missed_harmful']:.1%}",
        ]
        for classes, row in read("golden_gate")["classes"].items()
    ]


def page() -> str:
    result, gate = read("precision"), read("golden_gate")
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

The precisions of exported variants, their accuracy, and their latency. `python benchmarks/precision_page.py` generates
this page from the results of `benchmarks/precision.py` and `regnet-deploy export --json`. Machine:
{machine["cpu"]} ({result["cpu_instructions"]}), {machine["cores"]} cores, {machine["system"]}, onnxruntime
{machine["versions"]["onnxruntime"]}. The page has no measurements on a GPU; `benchmarks/gpu.sh` measures them on a
machine with one.

**On this CPU `int8-cpu` is {faster[1][0]:.2f} to {faster[1][2]:.2f} times as fast as FP32 for a batch of 1 (the median of the
networks is {faster[1][1]:.2f}) and {faster[8][0]:.2f} to {faster[8][2]:.2f} times for a batch of 8 (median {faster[8][1]:.2f}). FP16
is {half[1][1]:.2f} and {half[8][1]:.2f} times as fast, because ONNX Runtime computes it in FP32 on a CPU.** On another CPU, in
particular one without VNNI, `int8-cpu` can be slower than FP32: `export --data DIR` measures before it chooses.

## Precisions and gates

A precision sets the type of every operator in the ONNX file. TensorRT 11 and TensorRT-RTX compute a network in exactly
these types; they have no precision flags. A variant that does not pass its gate on the golden set is left out (exit code
3); `--gate int8:worst=0.3` sets another limit. "Mean" is the mean absolute error of a logit, and "worst image" the
root mean square error of the image where it is largest; both are shares of the spread of the logits over the images (the second
of how far the image's logits are from the mean of all images, where they are farther than the spread). "Top-1"
is the share of images with the same first class; a change between two classes whose logits differ by less than the mean error
that the gate allows (or a hundredth of the spread) does not count. With `--data` a variant must also not lose more than `--max-drop` percentage points of top-1
on all validation images.

{table(["precision", "computes", "gate"], gate_rows())}

INT8 and FP8 are calibrated on up to 512 training images that are neither in the golden set nor in the validation set; with
fewer than 300 a line says that values may be missing. `--calibration` takes another folder of images, with or without folders
for the classes.
MinMax, entropy and percentile ranges are all tried, and the most accurate ones are kept. Scales must be scalars: with
scales of shape (1,), {library} accepts the file and computes every INT8 and FP8 convolution in FP16
without a message, and ONNX Runtime computes additions and products in FP32. The first of these was found by reading the
types back from a built engine, which `export --trt` does for every engine.

### Errors of the gate of INT8

`python benchmarks/golden_gate.py` measures how often the gate refuses a good file, and how often it misses a broken one, on
{gate["sets"]} golden sets of {gate["golden"]} images for each file. "Cosine" is the gate of earlier versions (mean 15 %, cosine 0.95, top-1 90 %), "now" the
gate above. The networks are small, seeded and sensitive (trained networks have a third to a half of these errors), and their
linear layers are trained on drawn labels, so that images lie near the border between classes. The good files are those of
`int8-cpu` and `int8`; their mean error and their share of changed first classes are those on all test images. A broken file has a
wrong zero point, channels of weights 0, or a scale at which values saturate; it is harmful where the first class of at least
{gate["harm"]:.0%} more of the images changes than in the good file.

{table(["classes", "mean error of good files", "their changed first classes", "good files refused, cosine", "now", "harmful faults", "missed, cosine", "now"], golden_gate_rows())}

The logits of an image near the border between two classes are near 0, and the smallest error turns their direction: a cosine says
nothing about it. With many classes the earlier gate refused good files for first classes that changed between nearly equal
logits. For that, the present gate misses more of the harmful faults of many classes: those whose mean error is within the
limit and that change first classes mostly between logits that differ by less. 16 images cannot tell them from a good file; the
accuracy on validation images (`--data`, `--max-drop`) can.

## OpenVINO

On a CPU, OpenVINO runs the same files as ONNX Runtime: `openvino-fp32` and `openvino-bf16` are the file of `onnx-fp32`,
`openvino-int8-cpu` is that of `onnx-int8-cpu`. Each is proved by OpenVINO with the gate of its precision, and is measured and
chosen by `export --data` beside the others; `export --openvino` makes them without a choice. BF16 needs no calibration, but a CPU
for which OpenVINO lists BF16 among its capabilities; on another one `openvino-bf16` does not run, rather than compute in another
type. A variant of OpenVINO is never run by another runtime.

## Earlier variants

A variant of an earlier export stays where the new one does not pass a stricter `--gate` or `--max-drop`: it was proved with the
gate of its export, and is served as before. `export` says so; `--remove-refused` removes it. What `--precision auto` refused stays
too, but is served only if it is named. On a new golden set earlier ONNX files are proved again with the gate that they passed
before, and removed where they do not agree.

## Trained networks

Networks trained from scratch by `regnet-deploy train` on 62 characters in different fonts (64 x 64 pixels; the fonts of
the 3,720 validation images are not in the training set), then exported:

    regnet-deploy export --precision fp16 --precision bf16 --precision int8 --precision int8-1x1 --precision int8-cpu \\
      --precision fp8-1x1 --data glyphs --max-drop 100 --json

Mean error and cosine (of the worst image) are measured on the golden set, the other columns on all validation images.
"Lost" is the loss of top-1 in percentage points with its 95 % interval; "ranges" is the calibration method.

{table(["network", "precision", "mean error", "cosine", "same first class", "top-1, model", "top-1, variant", "lost (points)", "ranges"], [row for name in TRAINED for row in trained_rows(name)])}

## Published networks: error

`python benchmarks/precision.py --part errors`. Networks of 0.2 to 8 GMACs that are not trained: their weights are random
(seeded), their batch norms have the statistics of the images, their residual branches are scaled by {result["branch"]:g}, and
their linear layer is fitted to scikit-learn's digits ({images["fitted"]} images; {images["calibrated"]} others are used for calibration,
{images["validated"]} for validation). So the logits depend on every layer. Trained networks are less sensitive, as the table above
shows; this table compares precisions and sizes.

{table(["network", "precision", "max error", "mean error", "of the spread", "cosine", "same first class", "lost (points)", "ranges"], error_rows(result))}

## Published networks: files, engines, latency

`python benchmarks/precision.py --part deployed`. At 224 pixels: time to write the ONNX file and its size; the engine that
{library} builds from it without a GPU (batches of 1 to 32), and whether all its convolutions compute in the required types
("built as asked"); median latency of ONNX Runtime on this CPU with all cores, precisions measured alternately. Other programs ran
at the same time, so ratios between precisions are more reliable than the latencies. Precisions without a latency are for
TensorRT.

{table(["network", "precision", "build (s)", "MiB", "RTX engine", "RTX build (s)", "RTX MiB", "ms, batch 1", "ms, batch 8"], deployed_rows(result))}
"""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
