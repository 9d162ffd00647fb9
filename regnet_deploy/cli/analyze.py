"""``regnet-deploy analyze``: compares trained populations of design spaces."""

from __future__ import annotations

import os
import shlex
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from regnet_deploy.cli.options import FiniteFloat, Whole, json_option, seed_type
from regnet_deploy.cli.output import print_json, print_message, print_table, print_text
from regnet_deploy.errors import UsageError, require
from regnet_deploy.output_file import PAGE_SUFFIXES, check_output_file, check_regular

if TYPE_CHECKING:
    from collections.abc import Sequence

    from regnet_deploy.html import Section

_FORMATS = ("svg", "png", "pdf")


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--columns", metavar="NAME,...", help="Columns to analyze.  [default: the drawn parameters and the costs]"
)
@click.option(
    "--share",
    type=FiniteFloat(0, 1, min_open=True),
    default=0.25,
    show_default=True,
    help="Size of a bootstrap sample, as a fraction of the population.",
)
@click.option(
    "--repeats", type=Whole(1, 1_000_000), default=10_000, show_default=True, help="Number of bootstrap samples."
)
@click.option("--seed", type=seed_type(), default=0, show_default=True, help="Seed of the bootstrap.")
@click.option(
    "--min-networks",
    type=Whole(2, 1_000_000),
    default=20,
    show_default=True,
    help="Smallest population from which ranges, correlations and distances are computed.",
)
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write an HTML page with every figure.")
@click.option("--figures", type=click.Path(path_type=Path), metavar="DIR", help="Write the figures as files.")
@click.option(
    "--format", "suffix", type=click.Choice(_FORMATS), default="svg", show_default=True, help="Format of --figures."
)
@click.option("--csv", type=click.Path(path_type=Path), metavar="FILE", help="Write the population of a store as CSV.")
@click.option(
    "--refine",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the space, narrowed to the ranges of the best networks, as a file for `sweep --space`.",
)
@click.option(
    "--across",
    multiple=True,
    metavar="PART=RELATION",
    help="With --refine: relation (same, rising, falling) of the stages in depth, width, bottleneck or group_width.",
)
@click.option("--space", metavar="SPACE", help="With --refine: the space of FILE, required for CSV.")
@json_option
def command(**options: Any) -> None:
    """Compare the populations of FILEs: stores of `sweep` (also during the sweep), or CSV with a column of errors.

    Prints the distributions of the errors, their distances (Kolmogorov-Smirnov), the range of the best value of each
    parameter (bootstrap), rank correlations with the error, and the expected result of random search.

    \b
    Example:
      regnet-deploy analyze AnyNetX_A.sweep RegNetX.sweep --html spaces.html
      regnet-deploy analyze A.sweep --refine new.yaml --across bottleneck=same
      regnet-deploy sweep --space new.yaml --data my-images
    """
    _check_options(options)
    require("scipy", "analysis")
    if options["html"] or options["figures"]:
        require("matplotlib", "analysis")
    from regnet_deploy.analysis import output_files
    from regnet_deploy.analysis.analysis import analyze
    from regnet_deploy.analysis.best_range import refined_space
    from regnet_deploy.analysis.tables import sections
    from regnet_deploy.populations.reader import read_trials

    files, csv, html, figures, refine = (options[name] for name in ("files", "csv", "html", "figures", "refine"))
    bootstrap = {name: options[name] for name in ("share", "repeats", "seed", "min_networks")}
    columns = [name.strip() for name in (options["columns"] or "").split(",") if name.strip()] or None
    populations = [read_trials(path) for path in files]
    analysis = analyze(populations, columns=columns, **bootstrap)
    if refine:  # before anything is written, because it can fail
        given = output_files.space_of(files[0], options["space"])
        pairs = (pair.partition("=") for pair in options["across"])
        relations = [(part.strip(), relation.strip()) for part, _, relation in pairs]
        refined = refined_space(given, populations[0], refine.stem, relations, **bootstrap)
    if options["as_json"]:
        print_json(analysis.to_json())
    else:
        _print_sections(sections(analysis, populations))
    for remark in analysis.remarks:
        print_message(remark)
    if html:
        output_files.write_page(html, analysis, populations)
        print_message(f"{html}: the analysis as one page")
    if figures:
        names = output_files.write_figures(figures, options["suffix"], analysis, populations)
        print_message(f"{figures}: {len(names)} figures, {', '.join(names)}")
    if csv:
        print_message(f"{csv}: {output_files.write_csv_file(csv, files[0])} trials")
    if refine:
        output_files.write_space_file(refine, refined)
        print_message(
            f"{refine}: {given.name} narrowed from 10^{given.log10_size:.1f} to 10^{refined.log10_size:.1f} networks "
            f"({given.degrees_of_freedom} to {refined.degrees_of_freedom} degrees of freedom) - "
            f"next: regnet-deploy sweep --space {shlex.quote(str(refine))} --data DIR{_sweep_options(files[0])}"
        )


def _print_sections(sections: Sequence[Section]) -> None:
    for section in sections:
        print_text(f"\n{section.title}", style="bold")
        for name, value in section.facts:
            print_text(f"{name}: {value}")
        for table in section.tables:
            print_table("", table.columns, table.rows)


def _sweep_options(source: Path) -> str:
    """Return the options with which ``sweep`` trains as the sweep of a store did, where they are not the defaults."""
    from regnet_deploy.cli.sweep import command as sweep_command
    from regnet_deploy.populations.store import is_store, read_store

    if not is_store(source):
        return ""
    with read_store(source) as store:
        identity = store.identity
    values = {**identity["recipe"], "resolution": identity["resolution"], "seed": identity.get("seed", 0)}
    values["precise_bn"] = values.pop("precise_bn_images", None)
    if "mmacs" in identity:
        values["mmacs"] = ":".join(f"{value:g}" for value in identity["mmacs"])
    words = []
    for parameter in sweep_command.params:
        value = values.get(parameter.name or "")
        if value is None or value == parameter.default:
            continue
        words.append(parameter.secondary_opts[-1] if value is False else f"{parameter.opts[-1]} {value}")
    return "".join(f" {word}" for word in words)


def _check_options(options: dict[str, Any]) -> None:
    """Check the options before anything is computed.

    Raises:
        UsageError: options contradict each other, or an output cannot be written.
    """
    from regnet_deploy.populations.store import is_store

    files, csv, refine, figures = (options[name] for name in ("files", "csv", "refine", "figures"))
    if (csv or refine) and len(files) > 1:
        raise UsageError(f"--csv and --refine take one population, got {len(files)} files: run them one by one")
    if csv and os.path.isfile(files[0]) and not is_store(files[0]):
        raise UsageError(f"--csv writes the content of a store, but {files[0]} is not a store")
    if (options["across"] or options["space"]) and not refine:
        raise UsageError("--across and --space require --refine FILE, the file of the narrowed space")
    for pair in options["across"]:
        if "=" not in pair:
            raise UsageError(f"--across takes PART=RELATION such as bottleneck=same, got {pair!r}")
    formats = (
        (options["html"], PAGE_SUFFIXES, "a page"),
        (csv, (".csv",), "a table"),
        (refine, (".yaml", ".yml"), "a space"),
    )
    outputs, inputs = [], set(map(os.path.realpath, files))
    for path, suffixes, what in formats:
        if path is None:
            continue
        check_regular(path)
        if os.path.realpath(path) in inputs or is_store(path):
            raise UsageError(f"{path} is a population, which is never overwritten: give another file")
        outputs.append(check_output_file(path, suffixes, what))
    if len(set(map(os.path.realpath, outputs))) < len(outputs):
        raise UsageError("two outputs have the same file name: give each its own")
    if figures is not None:
        try:
            is_file = not stat.S_ISDIR(os.stat(figures).st_mode)
        except FileNotFoundError:
            is_file = False
        except OSError as error:
            raise UsageError(f"cannot write to --figures {figures}: {error.strerror}; give another folder") from None
        if is_file:
            raise UsageError(f"--figures takes a folder, but {figures} is a file")
