"""``regnet-deploy analyze``: what trained populations say of their design spaces."""

from __future__ import annotations

from pathlib import Path

import click

from regnet_deploy.cli.options import json_option
from regnet_deploy.cli.output import print_json, print_message, print_table, stdout_console
from regnet_deploy.errors import UsageError, did_you_mean, require

_FORMATS = ("svg", "png", "pdf")


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--columns", metavar="NAME,...", help="Columns to look at.  [default: what was drawn, and the costs]")
@click.option("--share", default=0.25, show_default=True, help="Share of the networks in a draw of the bootstrap.")
@click.option("--repeats", type=click.IntRange(1), default=10_000, show_default=True, help="Draws of the bootstrap.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the bootstrap.")
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write one page with every figure.")
@click.option("--figures", type=click.Path(path_type=Path), metavar="DIR", help="Write the figures as files.")
@click.option("--format", "suffix", type=click.Choice(_FORMATS), default="svg", show_default=True, help="Of --figures.")
@click.option("--csv", type=click.Path(path_type=Path), metavar="FILE", help="Write the population of a store as CSV.")
@click.option(
    "--refine",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the space, narrowed to where the best networks lie, as a file for `sweep --space`.",
)
@click.option(
    "--across",
    multiple=True,
    metavar="PART=RELATION",
    help="With --refine: stages have the same, a rising or a falling depth, width, bottleneck, group_width.",
)
@click.option("--space", metavar="SPACE", help="With --refine: the space, where FILE is CSV and does not say it.")
@json_option
def command(
    files: tuple[Path, ...],
    columns: str | None,
    share: float,
    repeats: int,
    seed: int,
    html: Path | None,
    figures: Path | None,
    suffix: str,
    csv: Path | None,
    refine: Path | None,
    across: tuple[str, ...],
    space: str | None,
    as_json: bool,
) -> None:
    """Compare the populations of FILEs: stores of `sweep`, while it runs too, or CSV with a column of errors.

    Prints error distributions, their distance (KS), where the best value of each parameter lies (bootstrap), how each
    goes with the error, and what random search would find.

    \b
    Example:
      regnet-deploy analyze AnyNetX_A.sweep RegNetX.sweep --html spaces.html
      regnet-deploy analyze AnyNetX_A.sweep --refine narrowed.yaml --across bottleneck=same
      regnet-deploy sweep --space narrowed.yaml --data my-images
    """
    _check(files, csv, refine, across, space, [path for path in (html, csv, refine) if path is not None], figures)
    require("scipy", "analysis")
    if html or figures:
        require("matplotlib", "analysis")
    from regnet_deploy.analysis.analysis import analyze
    from regnet_deploy.analysis.refinement import refined_space
    from regnet_deploy.analysis.tables import sections
    from regnet_deploy.cli.analysis_files import space_of, write_csv_file, write_figures, write_page, write_refined
    from regnet_deploy.populations.reader import read_trials

    populations = [read_trials(path) for path in files]
    asked = [name.strip() for name in columns.split(",") if name.strip()] if columns else None
    analysis = analyze(populations, repeats=repeats, share=share, seed=seed, columns=asked)
    if refine:  # before anything is written: what cannot be refined is said alone
        given = space_of(files[0], space)
        relations = [(part.strip(), relation.strip()) for part, _, relation in (pair.partition("=") for pair in across)]
        refined = refined_space(given, populations[0], refine.stem, relations, share=share, repeats=repeats, seed=seed)
    if as_json:
        print_json(analysis.to_json())
    else:
        for section in sections(analysis, populations):
            console = stdout_console()
            console.print(f"\n{section.title}", style="bold", markup=False)
            for fact in section.facts:
                console.print(f"{fact[0]}: {fact[1]}", markup=False, soft_wrap=True)
            for table in section.tables:
                print_table("", table.columns, table.rows)
    for remark in analysis.remarks:
        print_message(remark)
    if html:
        write_page(html, analysis, populations)
    if figures:
        write_figures(figures, suffix, analysis, populations)
    if csv:
        write_csv_file(csv, files[0])
    if refine:
        write_refined(refine, files[0], given, refined)


def _check(
    files: tuple[Path, ...],
    csv: Path | None,
    refine: Path | None,
    across: tuple[str, ...],
    space: str | None,
    outputs: list[Path],
    figures: Path | None,
) -> None:
    """Refuse what does not go together before anything is computed."""
    from regnet_deploy.populations.store import is_store

    if (csv or refine) and len(files) > 1:
        raise UsageError(f"--csv and --refine are of one population, got {len(files)} files: give them one by one")
    if csv and files[0].is_file() and not is_store(files[0]):
        raise UsageError(f"--csv writes what is in a store, and {files[0]} is none")
    if (across or space) and not refine:
        raise UsageError("--across and --space belong to --refine FILE: say where the space is to be written")
    for pair in across:
        if "=" not in pair:
            raise UsageError(f"--across takes PART=RELATION as in bottleneck=same, got {pair!r}")
    read = {path.resolve() for path in files}
    for path in outputs:
        if not path.parent.is_dir():
            raise UsageError(f"there is no folder {path.parent} for {path.name}: make it first")
        if path.is_dir():
            raise UsageError(f"{path} is a folder: give the name of a file to write")
        if path.resolve() in read or is_store(path):
            raise UsageError(f"{path} is a population, which nothing else must replace: choose another file to write")
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise UsageError("two outputs have one file name: give each its own")
    if figures is not None and figures.exists() and not figures.is_dir():
        raise UsageError(f"--figures takes a folder, and {figures} is a file")
    if refine and refine.suffix not in (".yaml", ".yml"):
        raise UsageError(
            f"a space file ends in .yaml, got {refine.name}{did_you_mean(refine.suffix, ('.yaml', '.yml'))}"
        )
