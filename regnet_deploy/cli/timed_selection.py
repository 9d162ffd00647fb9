"""The options of ``select`` that choose by measured time, and of ``calibrate``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from regnet_deploy.cli.options import PositiveFloat, Whole
from regnet_deploy.cli.output import print_table, terminal_progress
from regnet_deploy.errors import UsageError

if TYPE_CHECKING:
    from regnet_deploy.selection.budget import Budget
    from regnet_deploy.selection.selection import Selection
    from regnet_deploy.selection.timed_ranking import TimedRanking

F = TypeVar("F", bound=Callable[..., Any])

#: The limits: any of them chooses by time.
LIMITS = ("latency_ms", "p99_ms", "throughput", "like")
#: What belongs to them.
_WITH_LIMITS = ("batch", "runtime", "precision", "minutes", "anyway")

_OPTIONS = (
    click.option(
        "--latency-ms",
        type=PositiveFloat(),
        metavar="MS",
        help="Take the network of the lowest expected error whose time, measured here, is at most MS (median).",
    ),
    click.option("--p99-ms", type=PositiveFloat(), metavar="MS", help="The same for the 99th percentile."),
    click.option("--throughput", type=PositiveFloat(), metavar="N", help="The same with at least N images/s."),
    click.option(
        "--like",
        metavar="NAME",
        help="Take the fastest network here whose expected error is not above that of a published one.",
    ),
    click.option("--batch", type=Whole(1, 4096), default=1, help="Images of a measured inference.  [default: 1]"),
    click.option(
        "--runtime",
        type=click.Choice(["onnxruntime", "openvino"]),
        default="onnxruntime",
        help="Runtime that is measured.  [default: onnxruntime]",
    ),
    click.option(
        "--precision",
        type=click.Choice(["fp32", "bf16", "fp16", "int8-cpu"]),
        default="fp32",
        help="Precision that is measured: bf16 needs openvino, fp16 a GPU.  [default: fp32]",
    ),
    click.option(
        "--minutes",
        type=PositiveFloat(),
        default=3.0,
        help="Time after which no more candidates are measured, without calibration.  [default: 3]",
    ),
    click.option("--anyway", is_flag=True, help="Measure even though the machine is busy or throttled."),
)


def timed_options(function: F) -> F:
    """Add the limits of time and the options that belong to them."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def chooses_by_time(options: dict[str, Any]) -> bool:
    """Tell whether a limit of time is given.

    Raises:
        UsageError: only options that belong to such a limit are given.
    """
    if any(options[name] is not None for name in LIMITS):
        for name, option in (("tries", "--try"), ("evidence", "--evidence")):
            if options[name]:
                raise UsageError(f"{option} ranks networks of equal MACs: omit it with a limit of time")
        return True
    context = click.get_current_context()
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name or "") is click.core.ParameterSource.COMMANDLINE
        if given and parameter.name in _WITH_LIMITS:
            raise UsageError(f"{parameter.opts[-1]} belongs to a limit of time: add --latency-ms MS or --like NAME")
    return False


def select_timed(options: dict[str, Any], budget: Budget) -> Selection:
    """Calibrate what is not calibrated, and return the selection by measured time."""
    from regnet_deploy.api.timing import select_by_time
    from regnet_deploy.latency.candidates import TimeLimits
    from regnet_deploy.space.published import find_published

    limits = TimeLimits(
        p50_ms=options["latency_ms"],
        p99_ms=options["p99_ms"],
        images_per_second=options["throughput"],
        macs=None if options["gmacs"] is None else options["gmacs"] * 1e9,
        like=None if options["like"] is None else find_published(options["like"]),
    )
    with terminal_progress() as progress:
        return select_by_time(
            limits,
            budget,
            setup_of(options, budget.resolution, budget.classes),
            minutes=options["minutes"],
            anyway=options["anyway"],
            progress=progress,
        )


def setup_of(options: dict[str, Any], resolution: int, classes: int) -> Any:
    """Return the setup that options describe."""
    from regnet_deploy.latency.measuring import Setup

    return Setup(
        runtime=options["runtime"],
        precision=options["precision"],
        resolution=resolution,
        classes=classes,
        batch=options["batch"],
        threads=options["threads"],
        device="cuda" if options["device"] == "cuda" else "cpu",
    )


def print_timed(ranking: TimedRanking, shown: int) -> None:
    """Print the measured candidates."""
    columns = ("", "family", "MACs M", "depths", "widths", "g", "error % at 224", "predicted ms", "p50 ms", "p99 ms")
    rows = [
        (
            str(rank),
            each.family.upper(),
            f"{each.macs / 1e6:,.1f}",
            " ".join(map(str, each.depths)),
            " ".join(map(str, each.widths)),
            " ".join(map(str, dict.fromkeys(each.group_widths))),
            f"{each.expected_error:.2f}",
            *(f"{value:.2f}" for value in (each.predicted_ms, each.p50_ms, each.p99_ms)),
        )
        for rank, each in enumerate(ranking.candidates[:shown], start=1)
    ]
    print_table(f"Measured with {ranking.setup}", columns, rows, left=2)
