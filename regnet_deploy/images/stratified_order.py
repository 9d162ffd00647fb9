"""A seeded order that takes from every class in turn, so that any number of images from its start is spread evenly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def stratified_order(labels: Sequence[int], seed: int) -> list[int]:
    """Return all places in an order that takes one of each class, then a second of each, and so on; seeded."""
    rng = np.random.default_rng(seed)
    seen: dict[int, int] = {}
    turns = []
    for number in rng.permutation(len(labels)).tolist():
        turn = seen.get(labels[number], 0)
        seen[labels[number]] = turn + 1
        turns.append((turn, number))
    return [number for _, number in sorted(turns, key=lambda each: each[0])]
