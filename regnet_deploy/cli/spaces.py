"""``regnet-deploy spaces``: the design spaces that have a name, and any one of them as a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from regnet_deploy.cli.options import json_option
from regnet_deploy.cli.output import print_json, print_message, print_table

if TYPE_CHECKING:
    from regnet_deploy.space.spaces import Space


@click.command()
@click.argument("name", metavar="[SPACE]", required=False)
@json_option
def command(name: str | None, as_json: bool) -> None:
    """List the design spaces, or write SPACE (a name or a file) as YAML, to be changed and given to `sweep`.

    \b
    Example:
      regnet-deploy spaces
      regnet-deploy spaces RegNetX > my-space.yaml
      regnet-deploy sweep --space my-space.yaml --data my-images
    """
    from regnet_deploy.space.known_spaces import known_spaces
    from regnet_deploy.space.space_file import find_space, space_data, write_space

    if name is not None:
        space = find_space(name)
        if as_json:
            print_json({**space_data(space), "degrees_of_freedom": space.freedom, "log10_size": space.log10_size})
        else:
            click.echo(write_space(space), nl=False)
        return
    spaces = list(known_spaces().values())
    if as_json:
        print_json(
            [{**space_data(s), "degrees_of_freedom": s.freedom, "log10_size": round(s.log10_size, 3)} for s in spaces]
        )
        return
    rows = [(s.name, s.block, _drawn(s), str(s.freedom), f"10^{s.log10_size:.1f}") for s in spaces]
    print_table("", ("space", "block", "what is drawn", "freedom", "size"), rows, left=3)
    print_message(
        "d depth, w width, b bottleneck ratio, g group width; _i: by stage. freedom: degrees of it; size: networks. "
        "`regnet-deploy spaces NAME > my.yaml` writes one to change"
    )


def _drawn(space: Space) -> str:
    """Return what a space draws in one line, by the paper's symbols."""
    from regnet_deploy.space.narrowing import SYMBOLS
    from regnet_deploy.space.space_file import check_not_empty
    from regnet_deploy.space.spaces import AnyNetSpace

    if isinstance(space, AnyNetSpace):
        parts = []
        for part, stages in space.parts().items():
            if part in check_not_empty(space.block):
                continue
            symbol, choices = SYMBOLS[part], ", ".join(map(str, stages.choices))
            index = "" if stages.across == "same" else "_i"
            relation = f" {stages.across}" if stages.across in ("rising", "falling") else ""
            parts.append(f"{symbol}{index}{relation} {choices}")
    else:
        named = {"group_width": "g", "bottleneck": "b"}
        absent = {named[part] for part in check_not_empty(space.block)}
        parts = [f"{name} {choice}" for name, choice in space.parts().items() if name not in absent]
        if isinstance(space.w_a, str):
            parts.append(f"w_a = {space.w_a}")
    return "; ".join([*parts, *space.where])
