"""``regnet-deploy weights``: lists the public weights of RegNets."""

from __future__ import annotations

from dataclasses import asdict

import click

from regnet_deploy.cli.options import json_option
from regnet_deploy.cli.output import print_json, print_table


@click.command()
@click.argument("name", metavar="[NAME]", default="")
@json_option
def command(name: str, as_json: bool) -> None:
    """List public weights of RegNets whose name contains NAME: where they are, license, test setting, accuracy.

    `regnet-deploy import NAME` downloads the weights of a NAME in the list.

    \b
    Example:
      regnet-deploy weights regnety_016
      regnet-deploy weights IMAGENET1K_V2
    """
    from regnet_deploy.errors import UsageError
    from regnet_deploy.importing.public_weights import public_weights

    found = [entry for entry in public_weights() if name.lower() in entry.name.lower()]
    if not found:
        raise UsageError(f"no public weights have {name!r} in their name: `regnet-deploy weights` lists all of them")
    if as_json:
        print_json([asdict(entry) for entry in found])
        return
    rows = [
        (
            entry.name,
            entry.license,
            f"{entry.resize or '-'} / {entry.resolution}",
            "-" if entry.top1_percent is None else f"{entry.top1_percent:.2f}",
            entry.location,
        )
        for entry in found
    ]
    print_table("", ("weights", "license", "resize / crop", "top-1 %", "location"), rows)
