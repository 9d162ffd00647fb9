"""``regnet-deploy measurements``: list, merge and export the times that were measured on this machine and others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from regnet_deploy.cli.options import json_option
from regnet_deploy.cli.output import print_json, print_message, print_table, print_text

if TYPE_CHECKING:
    from regnet_deploy.latency.measurement import Measurement


@click.command()
@click.option("--merge", type=click.Path(path_type=Path), metavar="FILE", help="Add those of another store or export.")
@click.option("--export", type=click.Path(path_type=Path), metavar="FILE", help="Write all of them as JSON lines.")
@click.option(
    "--machine",
    type=click.Choice(["here", "all"]),
    default="here",
    show_default=True,
    help="List those of this machine as it is set now, or all.",
)
@json_option
def command(merge: Path | None, export: Path | None, machine: str, as_json: bool) -> None:
    """List the measured times of networks.

    `calibrate` and `select --latency-ms` write them into one file of the user; the environment variable
    REGNET_DEPLOY_MEASUREMENTS names another one. Each has the network, how it was run, the machine with its settings,
    its state meanwhile and the protocol.

    \b
    Example:
      regnet-deploy measurements
      regnet-deploy measurements --export here.jsonl
      regnet-deploy measurements --merge there.jsonl --machine all
    """
    from regnet_deploy.latency.machine_state import measured_machine
    from regnet_deploy.latency.store import open_measurements, read_measurements
    from regnet_deploy.output_file import check_output_file

    if export is not None:
        check_output_file(export, (".jsonl",), "measurements")
    if merge is not None:
        with open_measurements() as store:
            print_message(f"added {store.merge(merge):,} measurements of {merge} to {store.path}")
    with read_measurements() as store:
        found, path = store.all(), store.path
        if export is not None:
            print_message(f"wrote {store.export_jsonl(export):,} measurements to {export}")
    if machine == "here":
        here = measured_machine()
        found = [each for each in found if each.machine == here]
    if as_json:
        print_json([each.to_json() for each in found])
        return
    if not found:
        whose = " of this machine as it is set now" if machine == "here" else ""
        print_text(f"No measurements{whose} in {path}: `regnet-deploy calibrate` makes some.")
        return
    columns = ("network", "MACs M", "how it was run", "batch", "pixels", "p50 ms", "95 % interval", "state", "date")
    print_table(f"{len(found):,} measurements in {path}", columns, map(_row, found), left=3)


def _row(measurement: Measurement) -> tuple[Any, ...]:
    from regnet_deploy.space.complexity import network_complexity

    network, times = measurement.network, measurement.times
    low, high = times.p50_interval_ms
    macs = int(network_complexity(network, measurement.resolution, measurement.classes).total.macs)
    return (
        f"{network.family.upper()} {' '.join(map(str, network.widths))}",
        f"{macs / 1e6:,.0f}",
        str(measurement.execution),
        str(measurement.batch),
        str(measurement.resolution),
        f"{times.p50_ms:.2f}",
        f"{low:.2f} to {high:.2f}",
        " ".join(measurement.state.flags) or "-",
        measurement.date[:16].replace("T", " "),
    )
