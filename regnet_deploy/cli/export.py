"""``regnet-deploy export``: the network as ONNX and TensorRT in the precisions that are good enough, proved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from regnet_deploy.bundle import ensure_writable, open_bundle
from regnet_deploy.cli.export_output import export_json, print_export, print_golden_set
from regnet_deploy.cli.options import FiniteFloat, IntList, bundle_argument, json_option
from regnet_deploy.cli.output import bundle_argument_text, combined_error, print_json, print_message, progress
from regnet_deploy.errors import UsageError, require

if TYPE_CHECKING:
    from regnet_deploy.exporting.options import ExportOptions

_PATH = click.Path(path_type=Path)


@click.command()
@bundle_argument
@click.option("--onnx", is_flag=True, help="Write onnx-fp32; meant where no other precision is asked for.")
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    metavar="NAME",
    help="fp16, bf16, int8, int8-1x1, int8-cpu or fp8-1x1 beside fp32 (may be repeated); auto: measure what this "
    "machine runs and keep the fastest that is accurate enough.  [default: auto with --data, else fp32]",
)
@click.option("--uint8", is_flag=True, help="Also variants that take pixels and normalise them in the graph.")
@click.option(
    "--trt", "engines", is_flag=True, help="Also TensorRT engines, or TensorRT-RTX's where only that is installed."
)
@click.option(
    "--data",
    type=_PATH,
    metavar="DIR",
    help="The folder you trained on: accuracy on its validation images, calibration on its training images.",
)
@click.option("--calibration", type=_PATH, metavar="DIR", help="Calibrate INT8 and FP8 on the images of this folder.")
@click.option("--calibration-images", type=click.IntRange(300, 512), default=512, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Which images calibrate.")
@click.option(
    "--max-drop",
    type=FiniteFloat(min=0, max=100),
    default=0.5,
    show_default=True,
    help="Points of validation top-1 that a variant may lose, with --data.",
)
@click.option(
    "--images",
    multiple=True,
    metavar="DIR|FILE",
    type=_PATH,
    help="Prove on these images of yours (may be repeated; of more than 64, 64 are taken evenly).",
)
@click.option("--atol", type=FiniteFloat(min=0), help="The same as --gate fp32:atol=...  [default: 1e-4]")
@click.option("--rtol", type=FiniteFloat(min=0), help="The same as --gate fp32:rtol=...  [default: 1e-3]")
@click.option(
    "--gate",
    "limits",
    multiple=True,
    metavar="PRECISION:FIGURE=LIMIT",
    help="What a precision is held to on the golden set (may be repeated): atol, rtol, mean, cosine or top1.",
)
@click.option(
    "--batch", "batches", type=IntList(), default="1,8", show_default=True, help="Images an inference, for auto."
)
@click.option(
    "--seconds",
    type=FiniteFloat(min=0, min_open=True),
    default=2.0,
    show_default=True,
    help="Measured for each candidate and batch size of auto.",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option(
    "--max-batch", type=click.IntRange(1, 4096), default=32, show_default=True, help="Largest batch of an engine."
)
@click.option(
    "--tuned-batch", type=click.IntRange(1, 4096), help="Batch that engines are tuned for.  [default: 8 or --max-batch]"
)
@click.option(
    "--workspace", type=click.IntRange(1), metavar="MIB", help="GPU memory for a layer's own use.  [default: all]"
)
@click.option(
    "--optimization-level", type=click.IntRange(0, 5), default=3, show_default=True, help="How long TensorRT searches."
)
@click.option("--tf32", is_flag=True, help="Let FP32 engines round the factors of convolutions to 10 bits.")
@click.option("--version-compatible", is_flag=True, help="Engines that later versions of TensorRT run.")
@click.option(
    "--hardware-compatible",
    type=click.Choice(["ampere+", "same-compute-capability"]),
    help="Engines for other GPUs than this one, which are slower.",
)
@click.option(
    "--accept-unaccounted", is_flag=True, help="Take engines that do not tell in which type every convolution computes."
)
@click.option(
    "--compute-capability",
    "compute_capabilities",
    multiple=True,
    metavar="X.Y",
    help="For which GPUs TensorRT-RTX builds (may be repeated).  [default: 8.0, 8.6, 8.9, 12.0, 12.1; FP8 from 8.9]",
)
@json_option
def command(bundle_path: str, as_json: bool, **options: Any) -> None:
    """Export the network as ONNX, and as TensorRT engines with --trt, and prove that they agree with the model.

    Each variant is held to its precision's gate on the golden set: images from the training data, or yours with
    --images, or seeded noise where nothing is trained yet. With --data it may also not lose more than --max-drop points
    of top-1 on the validation images. A variant that is not good enough is not added, the others are, and the exit
    code is 3; one that was held to a looser gate than the default is only served when it is named. Where an engine
    cannot be had, the rest is written, the last line says what is missing, and the exit code is 2.

    \b
    Example:
      regnet-deploy export --onnx
      regnet-deploy export --data my-images                     # fp32, fp16, int8: measured, the fastest kept
      regnet-deploy export --precision int8-cpu --data my-images --max-drop 0.2
      regnet-deploy export --precision int8 --calibration photos --gate int8:cosine=0.98
      regnet-deploy export --trt --precision fp16 --max-batch 64
    """
    ensure_writable(open_bundle(bundle_path))  # says what is missing before torch takes its seconds
    for module in ("torch", "safetensors", "onnx", "PIL"):
        require(module, "export")
    from regnet_deploy.exporting.export import export
    from regnet_deploy.exporting.onnx_variants import Reporter

    wish = _wish(**options)
    _refuse_what_does_nothing(wish, click.get_current_context())
    with progress() as display:
        task = display.add_task("export", total=None, note="")
        reporter = Reporter(
            step=lambda what: display.update(task, description=what, total=None, completed=0, note=""),
            advance=lambda done, total: display.update(task, completed=done, total=total),
            note=print_message,
            phase=lambda steps, phase: display.update(task, note=f"{phase} ({steps})"),
        )
        exported = export(bundle_path, wish, reporter)
    print_golden_set(exported, measured=wish.data is not None)
    if as_json:
        print_json(export_json(exported))
    else:
        print_export(exported)
    loose = [name for name, one in exported.made.items() if one.get("proof") and not one["proof"]["standard"]]
    named = f" --variant {loose[0]}" if "onnx-fp32" in loose else ""
    print_message(
        f"wrote {exported.bundle.path} - next: regnet-deploy serve{bundle_argument_text(exported.bundle.path)}{named}"
    )
    if exported.refused:
        raise combined_error(exported.refused, " (the other variants are written)")


def _wish(
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
    from regnet_deploy.engines.options import EngineOptions
    from regnet_deploy.exporting.options import ExportOptions
    from regnet_deploy.exporting.precision import find_precision
    from regnet_deploy.runtimes.gates import gates_with_overrides, parse_gate_limit

    words = [word.strip().lower() for given in precisions for word in given.split(",")]
    named = [name for name in words if name != "auto"]
    auto = "auto" in words or (data is not None and not precisions and not onnx)
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
    short = [("fp32", figure, value) for figure, value in (("atol", atol), ("rtol", rtol)) if value is not None]
    asked = [parse_gate_limit(limit) for limit in limits]
    for precision, _, _ in asked:
        if not auto and precision not in ("fp32", *named):
            raise UsageError(f"--gate {precision}:...: {precision} is not exported here: add --precision {precision}")
    return ExportOptions(
        precisions=tuple(find_precision(name) for name in dict.fromkeys(named)),
        auto=auto,
        data=data,
        gates=gates_with_overrides([*short, *asked]),
        options=engine,
        **others,
    )


def _refuse_what_does_nothing(wish: ExportOptions, context: click.Context) -> None:
    """Refuse options that were given and would have no effect on what was asked for."""
    engines = "max_batch tuned_batch workspace optimization_level tf32 version_compatible hardware_compatible"
    needs = (
        (
            f"{engines} accept_unaccounted compute_capabilities",
            wish.engines or wish.auto,
            "is of TensorRT engines: add --trt",
        ),
        ("batches seconds", wish.auto, "is of the measurement of --precision auto: add it, with --data DIR"),
        ("max_drop", wish.data is not None, "is measured on validation images: add --data DIR"),
        (
            "calibration calibration_images seed",
            wish.auto or any(precision.needs_ranges for precision in wish.precisions),
            "is of quantised precisions: add --precision int8-cpu, for example",
        ),
    )
    for parameter in context.command.params:
        name = parameter.name or ""
        for names, fits, what in needs:
            given = context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT
            if name in names.split() and given and not fits:
                raise UsageError(f"{parameter.opts[0]} {what}")
