"""From a population to a smaller space: the range of each drawn parameter in which the best networks lie."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from regnet_deploy.analysis.bootstrap import REPEATS, SHARE, best_range
from regnet_deploy.errors import UsageError
from regnet_deploy.populations.trials import Trials
from regnet_deploy.space.narrowing import narrow_space, with_relation
from regnet_deploy.space.spaces import Space


def refined_space(
    space: Space,
    trials: Trials,
    name: str,
    across: Sequence[tuple[str, str]] = (),
    *,
    share: float = SHARE,
    repeats: int = REPEATS,
    seed: int = 0,
) -> Space:
    """Return the space with each free parameter narrowed to the 95 % interval of its best values.

    Args:
        space: that the population was drawn from.
        trials: the population.
        name: of the new space.
        across: relations between stages to add, as (part, relation).
        share: networks drawn in each repeat of the bootstrap, as a share of the population.
        repeats: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        UsageError: the population has none of the parameters that the space draws.
    """
    ranges = refined_ranges(space, trials, share=share, repeats=repeats, seed=seed)
    made = narrow_space(space, {column: (low, high) for column, (low, _, high) in ranges.items()}, name)
    for part, relation in across:
        made = with_relation(made, part, relation)
    return made


def refined_ranges(
    space: Space, trials: Trials, *, share: float = SHARE, repeats: int = REPEATS, seed: int = 0
) -> dict[str, tuple[float, float, float]]:
    """Return low (2.5 %), median and high (97.5 %) of each free parameter of a space, in its order and unit.

    Every column is drawn with the same seed, so that columns without gaps come from the same networks.

    Args:
        space: that the population was drawn from.
        trials: the population.
        share: networks drawn in each repeat of the bootstrap, as a share of the population.
        repeats: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        UsageError: the population was drawn from another space, or has none of them.
    """
    strange = [name for name in trials.drawn if name not in space.symbols and name != "d"]
    if strange:
        raise UsageError(f"{trials.space} was not drawn from {space.name}, which does not draw {', '.join(strange)}")
    wanted = [name for name, free in space.symbols.items() if free]
    known = [name for name in wanted if name in trials.columns and np.isfinite(trials.columns[name]).any()]
    if not known:
        raise UsageError(
            f"{trials.space} has none of the columns that {space.name} draws, {', '.join(wanted)}: there is nothing to "
            "refine"
        )
    ranges = [
        best_range(name, trials.columns[name], trials.error, share=share, repeats=repeats, seed=seed) for name in known
    ]
    return {r.column: (r.low, r.median, r.high) for r in ranges}
