"""The files that ``analyze`` writes: page, figures, CSV, narrowed space."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from regnet_deploy.cli.output import say
from regnet_deploy.errors import UsageError
from regnet_deploy.pictures import save_picture, write_whole

if TYPE_CHECKING:
    from regnet_deploy.analysis.analysis import Analysis, PopulationAnalysis
    from regnet_deploy.populations.trials import Trials
    from regnet_deploy.space.spaces import Space


def write_page(path: Path, analysis: Analysis, populations: Sequence[Trials]) -> None:
    """Write the page with every table and figure."""
    from regnet_deploy.analysis.page import analysis_page

    write_whole(path, analysis_page(analysis, populations).encode())
    say(f"{path}: the whole analysis as one page")


def write_figures(folder: Path, suffix: str, analysis: Analysis, populations: Sequence[Trials]) -> None:
    """Write every figure as a file."""
    from regnet_deploy.analysis.figures import all_figures

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {folder}: {error.strerror}") from None
    made = all_figures(analysis, populations)
    for named in made:
        save_picture(named.figure, folder / f"{named.name}.{suffix}")
    say(f"{folder}: {len(made)} figures, {', '.join(named.name for named in made)}")


def write_csv_file(path: Path, source: Path) -> None:
    """Write the population of a store as CSV, those that diverged or failed included."""
    from regnet_deploy.populations.store import read_store
    from regnet_deploy.populations.table import write_csv

    with read_store(source) as store:
        identity, outcomes = store.identity, store.outcomes()
        recipe, data = identity["recipe"], identity["data"]
        of_all = {
            "seed": identity.get("seed", ""),
            "resolution": identity["resolution"],
            "classes": data["classes"],
            "train_images": data["train_images"],
            "val_images": data["val_images"],
            **{name: recipe[name] for name in ("batch_size", "lr", "weight_decay", "warmup_epochs", "crop_area")},
            "data_sha256": data["digest"],
        }
        name = identity.get("space", {}).get("name", source.stem)
        write_whole(path, write_csv(name, store.trials(), outcomes, of_all).encode())
    say(f"{path}: {len(outcomes)} trials")


def refined_space(
    path: Path,
    source: Path,
    trials: Trials,
    population: PopulationAnalysis,
    across: Sequence[str],
    space: str | None,
) -> tuple[Space, Space]:
    """Return the space of a population, and it with each drawn parameter narrowed to the interval of its best values.

    The new one is named after the file that it will be written to.
    """
    from regnet_deploy.space.narrow import narrowed, related

    given = _space_of(source, space)
    intervals = {each.column: (each.low, each.high) for each in population.ranges if each.column in trials.drawn}
    made = narrowed(given, intervals, path.stem)
    for pair in across:
        part, _, relation = pair.partition("=")
        made = related(made, part.strip(), relation.strip())
    return given, made


def write_refined(path: Path, given: Space, made: Space) -> None:
    """Write a narrowed space as a file."""
    from regnet_deploy.space.space_file import write_space

    write_whole(path, write_space(made).encode())
    say(
        f"{path}: {given.name} narrowed from 10^{given.log10_size:.1f} to 10^{made.log10_size:.1f} networks "
        f"({given.freedom} to {made.freedom} degrees of freedom) - next: regnet-deploy sweep --space {path}"
    )


def _space_of(source: Path, space: str | None) -> Space:
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
