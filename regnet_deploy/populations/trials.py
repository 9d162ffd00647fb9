"""Trained populations side by side: what was drawn, what it costs, how well it did."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.space.network import Network

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Trials:
    """Networks of one space that were trained to their end, one row each.

    Attributes:
        space: name of the design space, or of the file that they come from.
        error: top-1 error, percent, ``(n,)``.
        columns: every number that is known of each network, ``(n,)`` each, NaN where it is not known of some. Always
            ``macs``, ``parameters``, ``activations`` (at the resolution they were trained at) where the source has
            them, ``d`` (blocks in all); the parameters that were drawn by the paper's symbols: ``w_0``, ``w_a``,
            ``w_m``, ``b``, ``g``, and by stage ``d_1``, ``w_1``, ``b_1``, ``g_1``, ...
        networks: the networks; empty where the source does not say.
        drawn: names of the columns that the space draws, in its order.
        lost: networks that diverged or failed, and have no error.
        regime: under which conditions they were trained, as far as the source says; see :mod:`.regime`.
    """

    space: str
    error: Float
    columns: Mapping[str, Float]
    networks: tuple[Network, ...] = ()
    drawn: tuple[str, ...] = ()
    lost: int = 0
    regime: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of trials."""
        return len(self.error)


def stage_columns(networks: Sequence[Network]) -> dict[str, Float]:
    """Return what the stages of networks say as columns: ``d``, and ``d_1``, ``w_1``, ``b_1``, ``g_1``, ...

    Stages that some of the networks do not have are left out.
    """
    if not networks:
        return {}
    stages = min(len(network.depths) for network in networks)
    columns = {"d": np.array([sum(network.depths) for network in networks], dtype=np.float64)}
    for symbol, name in (("d", "depths"), ("w", "widths"), ("b", "bottlenecks"), ("g", "group_widths")):
        for i in range(stages):
            columns[f"{symbol}_{i + 1}"] = np.array([getattr(n, name)[i] for n in networks], dtype=np.float64)
    return columns


def file_name(space: str) -> str:
    """Return the name of a space as that of a file, without folders and without what file systems refuse."""
    return re.sub(r"[^\w.-]+", "-", space).strip("-.") or "population"
