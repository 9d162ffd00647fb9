"""``regnet-deploy check``: looks at a folder of images before a network is trained on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from regnet_deploy.cli.options import json_option
from regnet_deploy.cli.output import (
    limit_thread_spinning,
    print_json,
    print_message,
    print_table,
    print_text,
    stdout_console,
    terminal_progress,
    wrap_words,
)
from regnet_deploy.output_file import PAGE_SUFFIXES, check_output_file, write_output_file

if TYPE_CHECKING:
    from regnet_deploy.checking.folder_check import FolderCheck
    from regnet_deploy.images.findings import Finding

#: Classes in the table, and cases of a finding, that the terminal shows.
_CLASSES, _CASES = 12, 3
#: Exit code of --strict with serious findings.
_SERIOUS = 1


@click.command()
@click.argument("data", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--bundle", metavar="BUNDLE", help="Measure too how many images a second training of it uses.")
@click.option(
    "--html", "html_path", type=click.Path(path_type=Path), metavar="FILE", help="Write one page with images."
)
@click.option("--strict", is_flag=True, help="Exit with 1 if something serious is found.")
@json_option
def command(data: Path, bundle: str | None, html_path: Path | None, strict: bool, as_json: bool) -> int:
    """Check a folder DIR of images, a CSV file, tar shards or Parquet.

    Finds broken, blank and tiny images; exact and near copies, within a class, in two classes, and of training images
    in val/ and test/; classes that a split lacks or spells otherwise; classes with few images. Every file is read once,
    and `train` and the next check read only what has changed. Nothing in DIR is altered.

    A finding is serious if training refuses the folder or an accuracy would be wrong. The exit code is 0, or 1 with
    --strict and a serious finding; 2 means that the folder cannot be checked.

    \b
    Example:
      regnet-deploy check my-images
      regnet-deploy check my-images --html check.html
      regnet-deploy check my-images --strict --json > check.json
    """
    from regnet_deploy.bundle import open_bundle
    from regnet_deploy.checking.folder_check import check_folder

    if html_path:
        check_output_file(html_path, PAGE_SUFFIXES, "a page")
    opened = open_bundle(bundle) if bundle else None
    if opened:
        limit_thread_spinning()
    with terminal_progress() as progress:
        check = check_folder(data, bundle=opened, progress=progress)
        if html_path:
            from regnet_deploy.checking.page import check_page

            page = check_page(check, progress)
    if html_path:
        write_output_file(html_path, page.encode("utf-8", "replace"))
    if as_json:
        print_json(check.to_json())
    else:
        _print_check(check)
    if html_path:
        print_message(f"wrote {html_path}")
    return _SERIOUS if strict and check.serious else 0


def _print_check(check: FolderCheck) -> None:
    from regnet_deploy.images.dataset_summary import left_out_lines

    print_text(str(check.listing.source.root), style="bold")
    for name, value in check.summary():
        print_text(f"  {name}: {value}")
    _print_classes(check)
    for line in (*check.listing.notes, *left_out_lines("not read", check.listing.left_out)):
        print_text(line)
    if not check.findings:
        print_text("Nothing was found.")
    for heading, serious in (("Serious", True), ("To look at", False)):
        found = [finding for finding in check.findings if finding.serious is serious]
        if found:
            print_text(f"\n{heading}", style="bold")
        for finding in found:
            _print_finding(finding)


def _print_finding(finding: Finding) -> None:
    from regnet_deploy.images.names import printable

    print_text(_bullet(finding.text))
    print_text(f"  {finding.advice}")
    for case in finding.examples[:_CASES]:
        note = f" ({case.note})" if case.note else ""
        print_text(f"    {finding.joined.join(map(printable, case.names))}{note}")
    if len(finding.examples) > _CASES:
        print_text(f"    and {len(finding.examples) - _CASES:,} more (--html shows them, --json lists all)")


def _bullet(text: str) -> str:
    """Return text behind a dash; at a terminal, its further lines are indented, as print_text indents lines."""
    console = stdout_console()
    if not console.is_terminal:
        return f"- {text}"
    return "- " + wrap_words(text, console.width - 2).replace("\n", "\n  ")


def _print_classes(check: FolderCheck) -> None:
    from regnet_deploy.images.names import printable

    counts = {split: check.counts(split) for split in check.listing.splits}
    labels = sorted(
        {label for own in counts.values() for label in own if label}, key=lambda e: counts["train"].get(e, 0)
    )
    if len(labels) > _CLASSES and all(len(set(own.values())) == 1 for own in counts.values()):
        return  # the figures say it: all classes have the same
    shown = sorted(labels) if len(labels) <= _CLASSES else labels[: _CLASSES // 2] + labels[-_CLASSES // 2 :]
    title = "Classes" if len(shown) == len(labels) else f"The smallest and the largest of {len(labels):,} classes"
    rows = [
        (printable(label), *(f"{own[label]:,}" if label in own else "-" for own in counts.values())) for label in shown
    ]
    print_text(f"\n{title}", style="bold")  # a table breaks a title that is wider than itself
    print_table("", ("class", *counts), rows)
