"""``regnet-deploy calibrate``: measure networks on this machine and fit a latency model to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from regnet_deploy.cli.options import PositiveFloat, Whole, json_option, threads_type
from regnet_deploy.cli.output import print_json, print_message, print_table, print_text, terminal_progress

if TYPE_CHECKING:
    from regnet_deploy.latency.calibration import Calibration
    from regnet_deploy.latency.measuring import Setup


@click.command()
@click.option(
    "--runtime",
    "runtimes",
    type=click.Choice(["onnxruntime", "openvino"]),
    multiple=True,
    default=("onnxruntime",),
    show_default=True,
    help="Runtime; may be repeated.",
)
@click.option(
    "--precision",
    "precisions",
    type=click.Choice(["fp32", "bf16", "fp16", "int8-cpu"]),
    multiple=True,
    default=("fp32",),
    show_default=True,
    help="Precision; may be repeated. bf16 needs openvino, fp16 a GPU.",
)
@click.option("--resolution", type=Whole(16, 2048), default=224, show_default=True, help="Side of the image, pixels.")
@click.option("--classes", type=Whole(1, 1_000_000), default=1000, show_default=True, help="Number of classes.")
@click.option("--batch", type=Whole(1, 4096), default=1, show_default=True, help="Images of an inference.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Device.")
@click.option("--threads", type=threads_type(), help="CPU threads.  [default: all cores]")
@click.option("--networks", type=Whole(8, 500), default=30, show_default=True, help="Networks of each setup.")
@click.option(
    "--minutes",
    type=PositiveFloat(),
    default=10.0,
    show_default=True,
    help="Time after which no more networks are measured; the same command measures the others.",
)
@click.option("--anyway", is_flag=True, help="Measure even though the machine is busy or throttled.")
@json_option
def command(as_json: bool, **options: Any) -> None:
    """Measure networks that differ as much as possible, and fit a latency model of this machine.

    The networks are spread over MACs, depth, width, group width and family. Each network is predicted by a model of the
    others, and the mean of these errors is printed. Measurements are kept, so an interrupted calibration goes on, and
    `select --latency-ms` does not repeat them.

    \b
    Example:
      regnet-deploy calibrate
      regnet-deploy calibrate --runtime openvino --precision bf16 --batch 8
    """
    from regnet_deploy.api.timing import calibrate

    setups = setups_of(options)
    with terminal_progress() as progress:
        found = calibrate(
            setups,
            networks=options["networks"],
            minutes=options["minutes"],
            anyway=options["anyway"],
            progress=progress,
        )
    if as_json:
        print_json([_to_json(each) for each in found])
        return
    columns = ("setup", "networks", "fastest ms", "slowest ms", "mean error", "largest error", "rank correlation")
    print_table("Latency models, errors of networks that were left out of the fit", columns, map(_row, found), left=1)
    print_text(
        "A model predicts RegNets with group widths of 8 or more, and of up to a quarter more work or time than the "
        "measured ones have."
    )
    print_message("next: `select --latency-ms MS`, with the same options")


def setups_of(options: dict[str, Any]) -> list[Setup]:
    """Return a setup of each runtime and precision; bf16 only of OpenVINO, where that is one of several runtimes."""
    from regnet_deploy.latency.measuring import Setup

    common = {name: options[name] for name in ("resolution", "classes", "batch", "threads", "device")}
    return [
        Setup(runtime=runtime, precision=precision, **common)
        for runtime in dict.fromkeys(options["runtimes"])
        for precision in dict.fromkeys(options["precisions"])
        if not (precision == "bf16" and runtime != "openvino" and "openvino" in options["runtimes"])
    ]


def _row(calibration: Calibration) -> tuple[str, ...]:
    model = calibration.model
    return (
        str(calibration.setup),
        str(model.networks),
        f"{model.shortest_ms:.2f}",
        f"{model.longest_ms:.2f}",
        f"{model.mean_error:.1%}",
        f"{model.largest_error:.1%}",
        f"{calibration.rank_correlation:.4f}",
    )


def _to_json(calibration: Calibration) -> dict[str, Any]:
    from dataclasses import asdict

    model = calibration.model
    return {
        "setup": {**asdict(calibration.setup), "threads": calibration.setup.cpu_threads},
        "networks": model.networks,
        "shortest_ms": model.shortest_ms,
        "longest_ms": model.longest_ms,
        "mean_error": model.mean_error,
        "largest_error": model.largest_error,
        "rank_correlation": calibration.rank_correlation,
        "costs_ms": model.costs_by_name(),
        "measurements": [each.to_json() for each in calibration.measurements],
    }
