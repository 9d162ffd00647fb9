"""``regnet-deploy show``: the model card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from regnet_deploy.bundle import Manifest, open_bundle
from regnet_deploy.cli.options import bundle_argument, json_option
from regnet_deploy.cli.output import print_json, print_message, print_table, print_text
from regnet_deploy.output_file import PAGE_SUFFIXES, check_output_file, write_output_file

if TYPE_CHECKING:
    from regnet_deploy.report.card import ModelCard


@click.command()
@bundle_argument
@click.option("--html", "html_path", type=click.Path(), metavar="FILE", help="Write one self-contained page.")
@click.option("--schema", is_flag=True, help="Print the JSON Schema of the parts of bundle.json.")
@json_option
def command(bundle_path: str, html_path: str | None, schema: bool, as_json: bool) -> None:
    """Show the model card of a bundle: what it is, where it comes from, what was measured and proved.

    \b
    Example:
      regnet-deploy show
      regnet-deploy show my-bundle --html card.html
      regnet-deploy show --schema > bundle.schema.json
    """
    if schema:
        from regnet_deploy.bundle.record import json_schema

        print_json(json_schema(Manifest))
        return
    if html_path:
        check_output_file(html_path, PAGE_SUFFIXES, "a page")
    from regnet_deploy.report.card import model_card
    from regnet_deploy.report.sections import card_sections, headline

    card = model_card(open_bundle(bundle_path))
    if html_path:
        _write_page(card, Path(html_path))
    if as_json:
        print_json(card.to_json())
        return
    if html_path:
        return
    print_text(headline(card), style="bold")
    for section in card_sections(card):
        print_text(f"\n{section.title}", style="bold")
        for name, value in section.facts:
            print_text(f"  {name}: {value}")
        for table in section.tables:
            print_table("", table.columns, table.rows)


def _write_page(card: ModelCard, target: Path) -> None:
    from regnet_deploy.report.html_page import card_html

    page = card_html(card)
    write_output_file(target, page.encode("utf-8", "replace"))
    print_message(f"wrote {target}")
