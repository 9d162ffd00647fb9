"""The files that ``analyze`` writes: page, figures, CSV, narrowed space."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from regnet_deploy.cli.output import print_message
from regnet_deploy.errors import UsageError
from regnet_deploy.plotting import save_figure, write_atomically

if TYPE_CHECKING:
    from regnet_deploy.analysis.analysis import Analysis
    from regnet_deploy.populations.trials import Trials
    from regnet_deploy.space.spaces import Space


def write_page(path: Path, analysis: Analysis, populations: Sequence[Trials]) -> None:
    """Write the page with every table and figure."""
    from regnet_deploy.analysis.html_page import analysis_html

    write_atomically(path, analysis_html(analysis, populations).encode())
    print_message(f"{path}: the whole analysis as one page")


def write_figures(folder: Path, suffix: str, analysis: Analysis, populations: Sequence[Trials]) -> None:
    """Write every figure as a file."""
    from regnet_deploy.analysis.figures import all_figures

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {folder}: {error.strerror}") from None
    made = all_figures(analysis, populations)
    for named in made:
        save_figure(named.figure, folder / f"{named.name}.{suffix}")
    print_message(f"{folder}: {len(made)} figures, {', '.join(named.name for named in made)}")


def write_csv_file(path: Path, source: Path) -> None:
    """Write the population of a store as CSV, those that diverged or failed included."""
    from regnet_deploy.populations.csv_table import write_csv
    from regnet_deploy.populations.store import read_store

    with read_store(source) as store:
        write_atomically(path, write_csv(store).encode())
        print_message(f"{path}: {len(store.outcomes())} trials")


def write_refined(path: Path, source: Path, given: Space, made: Space) -> None:
    """Write a narrowed space as a file, and say how to sweep it as the population of ``source`` was."""
    from regnet_deploy.space.space_file import write_space

    write_atomically(path, write_space(made).encode())
    print_message(
        f"{path}: {given.name} narrowed from 10^{given.log10_size:.1f} to 10^{made.log10_size:.1f} networks "
        f"({given.freedom} to {made.freedom} degrees of freedom) - next: regnet-deploy sweep --space {path} --data DIR"
        f"{_as_before(source)}"
    )


def _as_before(source: Path) -> str:
    """Return the options of the sweep of a store that are not the default ones, band and recipe."""
    from regnet_deploy.cli.sweep import command
    from regnet_deploy.populations.store import is_store, read_store

    if not is_store(source):
        return ""
    with read_store(source) as store:
        identity = store.identity
    said = {**identity["recipe"], "resolution": identity["resolution"], "seed": identity.get("seed", 0)}
    said["precise_bn"] = said.pop("precise_bn_images", None)
    if "mmacs" in identity:
        said["mmacs"] = ":".join(f"{value:g}" for value in identity["mmacs"])
    words = []
    for parameter in command.params:
        value = said.get(parameter.name or "")
        if value is None or value == parameter.default:
            continue
        words.append(parameter.secondary_opts[-1] if value is False else f"{parameter.opts[-1]} {value}")
    return "".join(f" {word}" for word in words)


def space_of(source: Path, space: str | None) -> Space:
    """Return the space that a population was drawn from: the one that is named, else what its store says."""
    from regnet_deploy.populations.store import is_store, read_store
    from regnet_deploy.space.space_file import find_space, space_from

    if space:
        return find_space(space)
    if not is_store(source):
        raise UsageError(f"{source} does not say what its space is: name it with --space")
    with read_store(source) as store:
        data = store.identity.get("space")
    if data is None:
        raise UsageError(f"{source} was not drawn from a space: name one with --space")
    return space_from(data)
