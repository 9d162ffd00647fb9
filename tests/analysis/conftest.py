"""Populations made up for the tests of this room."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from regnet_deploy.populations.trials import Trials
from regnet_deploy.space.network import Network


def made_up(space: str = "RegNetX", n: int = 24, seed: int = 0, base: float = 36.0) -> Trials:
    """Return a population of two stages whose error falls with g, with the columns of a source that knows all."""
    draw = np.random.default_rng(seed)
    depths = draw.integers(1, 9, (n, 2))
    widths = np.sort(8 * draw.integers(1, 60, (n, 2)), axis=1)
    g = draw.choice([1.0, 2.0, 4.0, 8.0], n)
    error = base - np.log2(g) + draw.gamma(2, 1, n)
    networks = tuple(
        Network(tuple(d), tuple(w), (int(group),) * 2, (1.0, 1.0))
        for d, w, group in zip(depths.tolist(), widths.tolist(), g, strict=True)
    )
    columns = {
        "macs": draw.uniform(360e6, 400e6, n),
        "parameters": draw.uniform(2e6, 9e6, n),
        "activations": draw.uniform(2e6, 5e6, n),
        "d": depths.sum(axis=1).astype(np.float64),
        "w_1": widths[:, 0].astype(np.float64),
        "g": g,
        "b": np.ones(n),
        "ms": np.where(np.arange(n) % 3, draw.uniform(1, 9, n), np.nan),
    }
    return Trials(space, error, columns, networks, drawn=("w_1", "g", "b"))


@pytest.fixture
def population() -> Callable[..., Trials]:
    """Make up a population."""
    return made_up
