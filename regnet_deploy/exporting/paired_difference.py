"""How certain a difference of two shares is, where both were measured on the same images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

#: Two-sided 95 % point of the normal distribution.
_Z = 1.959963984540054


@dataclass(frozen=True)
class PairedDifference:
    """A difference of two shares, -1 to 1, and its 95 % interval."""

    value: float
    low: float
    high: float


def paired_difference(lost: int, gained: int, n: int) -> PairedDifference:
    """Return the first share minus the second, of two answers to each of ``n`` questions.

    The interval is T. Tango's ("Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design", Statistics in Medicine 17, 1998, 891-908): all differences that a score test does not reject,
    which at 0 is McNemar's. It nearly holds its level with few questions, too, and where nothing differs.

    Args:
        lost: questions that only the first answered rightly.
        gained: questions that only the second answered rightly.
        n: all questions, 1 or more.
    """
    value = (lost - gained) / n
    low = -1.0 if value <= -1 else _root(lambda d: _score(lost, gained, n, d) > _Z, -1.0, value)
    high = 1.0 if value >= 1 else _root(lambda d: _score(lost, gained, n, d) >= -_Z, value, 1.0)
    return PairedDifference(value, low, high)


def _score(lost: int, gained: int, n: int, d: float) -> float:
    """Return the statistic for a true difference of ``d``; it falls as ``d`` rises."""
    # The likeliest share of questions that only the second answers rightly, given d.
    a, b, c = 2 * n, -lost - gained + (2 * n - lost + gained) * d, -gained * d * (1 - d)
    only_second = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = n * (2 * only_second + d * (1 - d))
    over = lost - gained - n * d
    if variance <= 0:
        return 0.0 if over == 0 else math.copysign(math.inf, over)
    return over / math.sqrt(variance)


def _root(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Return where ``holds``, true at ``low`` and not at ``high``, turns, to the last bit."""
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if holds(middle) else (low, middle)
    return middle
