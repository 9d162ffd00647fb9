"""The highest rate that keeps to a limit, found with few trials."""

from __future__ import annotations

import math
from collections.abc import Callable

#: First step of the bracket; each further one is the square of the one before.
_STEP = 1.2
#: A bracket is found and halved within as many trials, or what is known is taken.
_MOST_TRIALS = 14


def find_rate(passes: Callable[[float], bool], start: float, *, least: float, precision: float = 0.05) -> float:
    """Return the highest rate that was seen to pass; 0 where not even ``least`` does.

    Goes up or down from ``start`` in growing steps until one rate passes and a higher one does not, and halves what
    lies between, as ratios. Where ``passes`` is true up to some rate and false beyond, the result is at most
    ``precision`` below it.

    Args:
        passes: tries a rate.
        start: the first one.
        least: below which none is tried.
        precision: ratio of the lowest rate that failed to the highest that passed, less 1, that is good enough.
    """
    low, high, step = 0.0, math.inf, _STEP
    rate = max(start, least)
    for _ in range(_MOST_TRIALS):
        if passes(rate):
            low = rate
        else:
            high = rate
        if low and high < math.inf:
            if high <= low * (1 + precision):
                break
            rate = math.sqrt(low * high)
        elif not low and rate <= least:
            break
        else:
            rate = low * step if low else max(least, high / step)
            step *= step
    return low
