"""When requests are due: a schedule that knows nothing of how fast they are answered."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

#: ``poisson``: independent clients, as an SLO means them; ``constant``: one every 1 / rate seconds.
Arrivals = Literal["poisson", "constant"]
ARRIVALS: tuple[str, ...] = get_args(Arrivals)


def arrival_schedule(rate: float, seconds: float, arrivals: Arrivals = "poisson", seed: int = 0) -> NDArray[np.float64]:
    """Return the seconds from the start at which requests are due, ascending, each in ``[0, seconds)``.

    There are ``rate * seconds`` of them, rounded, and one at least: Poisson's process given its number, so that what
    was achieved can be compared with what was offered.

    Args:
        rate: requests a second.
        seconds: length of the schedule, above 0.
        arrivals: how they are spread.
        seed: of ``poisson``; equal seeds give equal schedules.
    """
    count = max(1, round(rate * seconds))
    if arrivals == "constant":
        return np.linspace(0.0, seconds, count, endpoint=False)
    return np.sort(np.random.default_rng(seed).uniform(0.0, seconds, count))
