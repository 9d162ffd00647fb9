"""From a population to a smaller space: the range of each drawn parameter in which the best networks lie."""

from __future__ import annotations

import numpy as np

from regnet_deploy.analysis.bootstrap import REPEATS, SHARE, best_range
from regnet_deploy.errors import UsageError
from regnet_deploy.populations.trials import Trials


def refined_ranges(
    trials: Trials, *, share: float = SHARE, repeats: int = REPEATS, seed: int = 0
) -> dict[str, tuple[float, float, float]]:
    """Return low (2.5 %), median and high (97.5 %) of each column that the space draws, in its order and unit.

    Every column is drawn with the same seed, so that columns without gaps come from the same networks.

    Args:
        trials: the population.
        share: networks drawn in each repeat of the bootstrap, as a share of the population.
        repeats: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        UsageError: it is not known what the space draws.
    """
    columns = {name: trials.columns[name] for name in trials.drawn if name in trials.columns}
    known = {name: values for name, values in columns.items() if np.isfinite(values).any()}
    if not known:
        raise UsageError(f"{trials.space} does not say which parameters were drawn, so there is nothing to refine")
    ranges = [
        best_range(name, values, trials.error, share=share, repeats=repeats, seed=seed)
        for name, values in known.items()
    ]
    return {r.column: (r.low, r.median, r.high) for r in ranges}
