"""``regnet-deploy spaces``: lists the named design spaces, or writes a space as YAML."""

from __future__ import annotations

import click

from regnet_deploy.cli.options import json_option
from regnet_deploy.cli.output import print_json, print_message, print_table


@click.command()
@click.argument("name", metavar="[SPACE]", required=False)
@json_option
def command(name: str | None, as_json: bool) -> None:
    """List the named design spaces, or write SPACE (a name or a file) as YAML that can be edited for `sweep`.

    \b
    Example:
      regnet-deploy spaces
      regnet-deploy spaces RegNetX > my-space.yaml
      regnet-deploy sweep --space my-space.yaml --data my-images
    """
    from regnet_deploy.space.known_spaces import known_spaces
    from regnet_deploy.space.space_file import describe_space, find_space, space_data, write_space

    if name is not None:
        space = find_space(name)
        if as_json:
            print_json(
                {**space_data(space), "degrees_of_freedom": space.degrees_of_freedom, "log10_size": space.log10_size}
            )
        else:
            click.echo(write_space(space), nl=False)
        return
    spaces = list(known_spaces().values())
    if as_json:
        print_json(
            [
                {**space_data(s), "degrees_of_freedom": s.degrees_of_freedom, "log10_size": round(s.log10_size, 3)}
                for s in spaces
            ]
        )
        return
    rows = [(s.name, s.block, describe_space(s), str(s.degrees_of_freedom), f"10^{s.log10_size:.1f}") for s in spaces]
    print_table("", ("space", "block", "what is drawn", "freedom", "size"), rows, left=3)
    print_message(
        "d: depth, w: width, b: bottleneck ratio, g: group width, _i: of each stage, freedom: degrees of freedom, "
        "size: number of networks. `regnet-deploy spaces NAME > my.yaml` writes one to edit"
    )
