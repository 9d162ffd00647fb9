"""``regnet-deploy export``: export the network as ONNX files and TensorRT engines, and prove their accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from regnet_deploy.bundle import Bundle, ensure_writable, open_bundle
from regnet_deploy.cli.export_output import (
    export_json,
    passed_looser_gate,
    print_export,
    print_golden_set,
    print_plain_file,
)
from regnet_deploy.cli.options import FiniteFloat, IntList, Whole, bundle_argument, json_option, seed_type
from regnet_deploy.cli.output import (
    combined_error,
    print_json,
    print_message,
    terminal_progress,
)
from regnet_deploy.errors import UsageError, require

if TYPE_CHECKING:
    from regnet_deploy.exporting.options import ExportOptions

_PATH = click.Path(path_type=Path)


@click.command()
@bundle_argument
@click.option("--onnx", is_flag=True, help="Export onnx-fp32 only, also with --data.")
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    metavar="NAME",
    help="fp16, bf16, int8, int8-1x1, int8-cpu or fp8-1x1, in addition to fp32 (may be repeated); auto: measure the "
    "runtimes and precisions that this machine can run and keep the fastest accurate ones.  [default: auto with "
    "--data, else fp32]",
)
@click.option("--uint8", is_flag=True, help="Also export variants whose input is uint8 pixels.")
@click.option(
    "--openvino",
    is_flag=True,
    help="Also prove the files in OpenVINO: in FP32, in BF16 where the CPU has it, in INT8 with int8-cpu.",
)
@click.option(
    "--trt", "engines", is_flag=True, help="Also build TensorRT engines (TensorRT-RTX if only that is installed)."
)
@click.option(
    "--data",
    type=_PATH,
    metavar="DIR",
    help="Training folder: measures accuracy on its validation images, calibrates on its training images. "
    "Also a CSV file, tar shards or Parquet, as for `train`.",
)
@click.option(
    "--calibration",
    type=_PATH,
    metavar="DIR",
    help="Calibrate INT8 and FP8 on the images in this folder, or in its folders.",
)
@click.option(
    "--calibration-images",
    type=Whole(1, 512),
    default=512,
    show_default=True,
    help="Number of images for calibration; 300 or more are advisable.",
)
@click.option(
    "--seed", type=seed_type(), default=0, show_default=True, help="Seed of the choice of calibration images."
)
@click.option(
    "--max-drop",
    type=FiniteFloat(0, 100),
    default=0.5,
    show_default=True,
    help="Percentage points of validation top-1 that a variant may lose; needs --data.",
)
@click.option(
    "--images",
    multiple=True,
    metavar="DIR|FILE",
    type=_PATH,
    help="Use these images as the golden set (may be repeated; at most 64 are used).",
)
@click.option(
    "--remove-refused",
    is_flag=True,
    help="Remove a variant of an earlier export where the new one does not pass its gate or loses too much.",
)
@click.option("--atol", type=FiniteFloat(0, 1e9), help="Same as --gate fp32:atol=...  [default: 1e-4]")
@click.option("--rtol", type=FiniteFloat(0, 1e9), help="Same as --gate fp32:rtol=...  [default: 1e-3]")
@click.option(
    "--gate",
    "limits",
    multiple=True,
    metavar="PRECISION:FIGURE=LIMIT",
    help="Limit of a precision on the golden set (may be repeated): atol, rtol, mean, worst, cosine or top1.",
)
@click.option(
    "--batch",
    "batches",
    type=IntList(1_000_000_000),
    default="1,8",
    show_default=True,
    help="Batch sizes that auto measures.",
)
@click.option(
    "--seconds",
    type=FiniteFloat(0, 3600, min_open=True),
    default=2.0,
    show_default=True,
    help="Duration of the measurement of each candidate and batch size by auto.",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where ONNX Runtime runs.",
)
@click.option(
    "--max-batch", type=Whole(1, 4096), default=32, show_default=True, help="Largest batch size of an engine."
)
@click.option(
    "--tuned-batch",
    type=Whole(1, 4096),
    help="Batch size to tune engines for.  [default: 8 or --max-batch]",
)
@click.option(
    "--workspace",
    type=Whole(1, 1_000_000),
    metavar="MIB",
    help="GPU memory for the workspace of layers.  [default: all]",
)
@click.option(
    "--optimization-level",
    type=Whole(0, 5),
    default=3,
    show_default=True,
    help="Effort of the search for fast kernels.",
)
@click.option("--tf32", is_flag=True, help="Let FP32 engines round the inputs of convolutions to TF32.")
@click.option(
    "--version-compatible",
    is_flag=True,
    help="Build engines that later versions of TensorRT run with the lean runtime of this one.",
)
@click.option(
    "--hardware-compatible",
    type=click.Choice(["ampere+", "same-compute-capability"]),
    help="Build engines that also run on other GPUs, and are slower.",
)
@click.option(
    "--accept-unaccounted", is_flag=True, help="Accept engines that do not report the type of every convolution."
)
@click.option(
    "--compute-capability",
    "compute_capabilities",
    multiple=True,
    metavar="X.Y",
    help="GPUs that TensorRT-RTX builds for (may be repeated).  [default: 8.0, 8.6, 8.9, 12.0, 12.1; FP8 from 8.9]",
)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(),
    help="Also write the network as this file, for programs that do not know bundles; its suffix is its format: .onnx, "
    ".pt, .pt2 or .xml.",
)
@click.option("--variant", metavar="NAME", help="ONNX variant that -o writes.  [default: the one that would be served]")
@click.option(
    "--to",
    "target",
    type=click.Choice(["onnx", "torchscript", "pt2", "openvino"]),
    help="Format that -o writes.  [default: by the suffix]",
)
@json_option
def command(
    bundle_path: str, output: str | None, variant: str | None, target: str | None, as_json: bool, **options: Any
) -> None:
    """Export the network as ONNX files, as TensorRT engines with --trt, and prove their accuracy.

    On a CPU, OpenVINO is a runtime for the same files: with --data it is measured too where it is installed.

    Every variant must agree with the trained model on the golden set: images from the training data, your own images
    with --images, or random noise if the network is not trained yet. With --data it must also not lose more than
    --max-drop points of top-1 on the validation images. A variant that fails is left out, the others are written, and
    the exit code is 3. A variant that passed a looser gate than the default one is served only if it is named with
    --variant. If an engine cannot be built, the rest is written, the last line says why, and the exit code is 2.

    With -o FILE, the network is also written outside of the bundle, with a JSON file that describes it and a Python
    program that runs it, and the golden set is replayed on that file. If the bundle is exported already and no option
    of the export is given, -o only writes these files.

    \b
    Example:
      regnet-deploy export --onnx
      regnet-deploy export --data my-images  # keeps the fastest precision
      regnet-deploy export --precision int8-cpu --data my-images --max-drop 0.2
      regnet-deploy export --precision int8 --calibration photos
      regnet-deploy export --trt --precision fp16 --max-batch 64
      regnet-deploy export my-bundle -o model.onnx
    """
    bundle = open_bundle(bundle_path)
    if output is None:
        for option, value in (("--variant", variant), ("--to", target)):
            if value is not None:
                raise UsageError(f"{option} {value} says what -o FILE writes: add -o, such as -o model.onnx")
    else:
        from regnet_deploy.exporting.plain_file import check_plain_file, is_exported

        check_plain_file(bundle, output, variant, target)
        if not _given_options(click.get_current_context(), options):
            if is_exported(bundle):
                _write_plain_file(bundle, output, variant, target, as_json)
                return
            print_message(f"{bundle.path} is not exported yet: onnx-fp32 is exported into it first")
    ensure_writable(bundle)  # errors before the slow import of torch
    for module in ("torch", "safetensors", "onnx", "PIL"):
        require(module, "export")
    from regnet_deploy.exporting.export import export

    export_options = _export_options(**options)
    _check_unused_options(export_options, click.get_current_context())
    with terminal_progress() as progress:
        result = export(bundle_path, export_options, progress)
    print_golden_set(result, validated=export_options.data is not None)
    if not as_json:
        print_export(result)
    elif output is None:
        print_json(export_json(result))
    loose = [name for name, one in result.variants.items() if passed_looser_gate(one)]
    named = f" --variant {loose[0]}" if "onnx-fp32" in loose else ""
    print_message(f"wrote {result.bundle.path} - next: regnet-deploy serve{result.bundle.argument}{named}")
    if output is not None:
        _write_plain_file(result.bundle, output, variant, target, as_json, export_json(result))
    if result.rejected:
        raise combined_error(result.rejected, " (the other variants are written)")


def _given_options(context: click.Context, options: Mapping[str, Any]) -> bool:
    """Tell whether an option of the export itself was given."""
    return any(context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT for name in options)


def _write_plain_file(
    bundle: Bundle,
    output: str,
    variant: str | None,
    target: str | None,
    as_json: bool,
    exported: Mapping[str, Any] | None = None,
) -> None:
    from regnet_deploy.exporting.plain_file import write_plain_file

    written = write_plain_file(bundle, output, variant=variant, target=target)
    if as_json:
        print_json({**(exported or {"bundle": str(bundle.path)}), "file": written.to_json()})
    else:
        print_plain_file(written)


def _export_options(
    onnx: bool,
    precisions: tuple[str, ...],
    data: Path | None,
    atol: float | None,
    rtol: float | None,
    limits: tuple[str, ...],
    max_batch: int,
    tuned_batch: int | None,
    workspace: int | None,
    optimization_level: int,
    tf32: bool,
    version_compatible: bool,
    hardware_compatible: Any,
    compute_capabilities: tuple[str, ...],
    **others: Any,
) -> ExportOptions:
    from regnet_deploy.bundle.engine_options import EngineOptions
    from regnet_deploy.exporting.options import ExportOptions
    from regnet_deploy.exporting.precision import find_precision
    from regnet_deploy.runtimes.gates import gates_with_overrides, parse_gate_limit

    names = [name.strip().lower() for given in precisions for name in given.split(",")]
    requested = [name for name in names if name != "auto"]
    auto = "auto" in names or (data is not None and not precisions and not onnx)
    engine = EngineOptions(
        tuned_batch=min(8, max_batch) if tuned_batch is None else tuned_batch,
        max_batch=max_batch,
        workspace_bytes=workspace and workspace * 2**20,
        optimization_level=optimization_level,
        tf32=tf32,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        compute_capabilities=compute_capabilities,
    )
    fp32_limits = [("fp32", figure, value) for figure, value in (("atol", atol), ("rtol", rtol)) if value is not None]
    gate_limits = [parse_gate_limit(limit) for limit in limits]
    for precision, _, _ in gate_limits:
        if not auto and precision not in ("fp32", *requested):
            raise UsageError(f"--gate {precision}:...: {precision} is not exported: add --precision {precision}")
    return ExportOptions(
        precisions=tuple(find_precision(name) for name in dict.fromkeys(requested)),
        auto=auto,
        data=data,
        gates=gates_with_overrides([*fp32_limits, *gate_limits]),
        engine=engine,
        **others,
    )


def _check_unused_options(options: ExportOptions, context: click.Context) -> None:
    """Check that every option that was given has an effect.

    Raises:
        UsageError: one has none.
    """
    engines = "max_batch tuned_batch workspace optimization_level tf32 version_compatible hardware_compatible"
    needs = (
        (
            f"{engines} accept_unaccounted compute_capabilities",
            options.engines or options.auto,
            "is an option of TensorRT engines: add --trt",
        ),
        ("batches seconds", options.auto, "is an option of --precision auto: add it, with --data DIR"),
        ("max_drop", options.data is not None, "is measured on validation images: add --data DIR"),
        (
            "calibration calibration_images seed",
            options.auto or any(precision.needs_ranges for precision in options.precisions),
            "is an option of quantized precisions: add for example --precision int8-cpu",
        ),
    )
    for parameter in context.command.params:
        name = parameter.name or ""
        for names, has_effect, message in needs:
            given = context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT
            if name in names.split() and given and not has_effect:
                raise UsageError(f"{parameter.opts[0]} {message}")
