"""``regnet-deploy profile``: count the operations of the network and measure its latency."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from regnet_deploy.bundle import open_bundle
from regnet_deploy.cli.options import (
    FiniteFloat,
    IntList,
    bundle_argument,
    default_option,
    device_option,
    json_option,
    threads_type,
)
from regnet_deploy.cli.output import print_json, print_message, print_table, print_text, terminal_progress

if TYPE_CHECKING:
    from regnet_deploy.bundle.measurements import CountRecord, Latency, Profile


@click.command()
@bundle_argument
@default_option("--batch", "batches", type=IntList(1_000_000_000), default="1,8,32", help="Batch sizes.")
@click.option("--threads", type=threads_type(), help="CPU threads.  [default: the cores this process may use]")
@default_option(
    "--seconds",
    type=FiniteFloat(0, 3600, min_open=True),
    default=5.0,
    help="Duration of the measurement of each runtime and batch size, without the warm-up.",
)
@device_option("tensorrt: ONNX variants run with ONNX Runtime's TensorRT provider, the PyTorch model with CUDA.")
@click.option(
    "--compile",
    "compiled",
    is_flag=True,
    help="Also measure the PyTorch model by torch.compile, for comparison; needs a C++ compiler.",
)
@click.option(
    "--plot",
    type=click.Path(),
    metavar="FILE",
    help="Plot shares, latency and throughput: .png, .svg or .pdf.",
)
@json_option
def command(bundle_path: str, as_json: bool, plot: str | None, **options: Any) -> None:
    """Count the network's MACs, parameters and activations, and measure its latency on this machine.

    fvcore counts the operations, and the result is compared with the closed form. MACs are counted as in the paper:
    convolutions, the linear layer and their biases; fvcore's own total also contains batch norm and pooling. Latency is
    measured for the PyTorch model and for every proved variant, in turns.

    \b
    Example:
      regnet-deploy profile
      regnet-deploy profile my-bundle --batch 1,16 --seconds 10 --plot profile.png
    """
    from regnet_deploy.api.variants import profile
    from regnet_deploy.plotting import check_plot_path

    if plot:
        check_plot_path(plot)
    with terminal_progress() as progress:
        result = profile(bundle_path, progress=progress, **options)
    name = open_bundle(bundle_path).architecture.name
    if as_json:
        print_json(result.to_json())
    else:
        _print(name, result)
    if plot:
        from regnet_deploy.profiling.plot import plot_profile

        plot_profile(result, name, plot)
        print_message(f"wrote {plot}")


def _print(name: str, profile: Profile) -> None:
    counts, machine, closed = profile.complexity, profile.machine, profile.complexity.closed_form
    columns = ("MACs M", "fvcore total M", "parameters", "activations")
    where = f"{name} at {counts.resolution} pixels, {counts.classes:,} classes"
    rows = [_count_row(count.stage, count) for count in counts.stages]
    print_table(f"By stage: {where}", ("stage", *columns), [*rows, _count_row("total", counts)])
    rows = [_count_row(count.operator, count) for count in counts.operators]
    print_table("By operator", ("operator", *columns), [*rows, _count_row("total", counts)])
    print_text(
        f"MACs as counted in the paper (convolutions, linear and their biases): {counts.macs:,}; "
        f"fvcore's own total, with batch norm and pooling: {counts.fvcore_total:,}. Counted MACs, parameters and "
        f"activations are equal to the closed form's {closed.macs:,}, {closed.parameters:,} and "
        f"{closed.activations:,}.\n"
    )
    setting = ("runtime", "variant", "device", "precision", "layout", "threads", "batch")
    print_table(
        "Latency",
        (*setting, "p50 ms", "p95 ms", "p99 ms", "images/s", "repetitions", "warm-up"),
        [_latency_row(row) for row in profile.latency],
        left=5,
    )
    busy = f" (other programs kept {machine.busy_cores:.1f} busy)" if isinstance(machine.busy_cores, float) else ""
    gpus = "".join(f", {gpu}" for gpu in machine.gpus)
    versions = ", ".join(f"{library} {version}" for library, version in machine.versions.items())
    print_text(
        f"Machine: {machine.cpu}, {machine.cores} cores{busy}, {machine.memory_bytes / 2**30:.1f} GiB{gpus}; "
        f"{machine.system}; Python {machine.python}; {versions}."
    )


def _count_row(name: str, count: CountRecord) -> tuple[str, ...]:
    return (
        name,
        f"{count.macs / 1e6:,.2f}",
        f"{count.fvcore_total / 1e6:,.2f}",
        f"{count.parameters:,}",
        f"{count.activations:,}",
    )


def _latency_row(row: Latency) -> tuple[str, ...]:
    return (
        row.runtime,
        row.variant or "model",
        row.device,
        row.precision,
        row.layout,
        str(row.threads),
        str(row.batch),
        *(f"{value:.2f}" for value in (row.p50_ms, row.p95_ms, row.p99_ms)),
        f"{row.images_per_second:,.1f}",
        str(row.repetitions),
        str(row.warmup_repetitions),
    )
