"""Trained populations: the networks of a design space with their parameters, costs, errors and training conditions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.space.network import Network

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Trials:
    """Networks of one space whose training was completed, one row each.

    Attributes:
        space: name of the design space, or of the file.
        error: top-1 error, percent, ``(n,)``.
        columns: the known numbers of each network, ``(n,)`` each, NaN where a number is not known: ``macs``,
            ``parameters`` and ``activations`` at the training resolution; ``d``, the number of blocks; the parameters
            of the space: ``w_0``, ``w_a``, ``w_m``, ``b``, ``g``, and by stage ``d_1``, ``w_1``, ``b_1``, ``g_1``, ...
        networks: the networks; empty where the source does not describe them.
        drawn: names of the columns that are drawn, in the order of the space.
        unsuccessful: number of networks that diverged or failed and have no error.
        conditions: the training conditions, as far as the source describes them; see :func:`training_conditions`.
        remarks: what was left out of the source, and how it was read where that is not evident, one sentence each.
    """

    space: str
    error: Float
    columns: Mapping[str, Float]
    networks: tuple[Network, ...] = ()
    drawn: tuple[str, ...] = ()
    unsuccessful: int = 0
    conditions: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of trials."""
        return len(self.error)


def stage_columns(networks: Sequence[Network]) -> dict[str, Float]:
    """Return the numbers of the stages as columns: ``d``, and ``d_1``, ``w_1``, ``b_1``, ``g_1``, ...

    Stages that not all networks have are omitted.
    """
    if not networks:
        return {}
    stages = min(len(network.depths) for network in networks)
    columns = {"d": np.array([sum(network.depths) for network in networks], dtype=np.float64)}
    for symbol, name in (("d", "depths"), ("w", "widths"), ("b", "bottlenecks"), ("g", "group_widths")):
        for i in range(stages):
            columns[f"{symbol}_{i + 1}"] = np.array([getattr(n, name)[i] for n in networks], dtype=np.float64)
    return columns


def left_out_rounds(name: str, count: int, epochs: float) -> str:
    """Return the remark that ``count`` networks with fewer than ``epochs`` epochs were left out."""
    return (
        f"{name}: {count} networks with fewer than {epochs:g} epochs are left out: they are of earlier rounds of "
        "successive halving"
    )


def file_name(space: str) -> str:
    """Return the name of a space as a file name, without folders and special characters."""
    return re.sub(r"[^\w.-]+", "-", space).strip("-.") or "population"


#: Names of the conditions that describe the data, in CSV and in messages.
DATA_CONDITIONS = ("data_sha256", "split", "classes", "train_images", "val_images")
#: Parts of a recipe that are the same for every population, or irrelevant for a comparison.
_IGNORED = ("optimizer", "momentum", "nesterov", "schedule", "warmup_factor", "epochs", "seed")


def training_conditions(identity: Mapping[str, Any], epochs: int) -> dict[str, str]:
    """Return the training conditions of a sweep, by the names of the columns in its CSV.

    Args:
        identity: identity of the store.
        epochs: number of epochs of the trials.
    """
    data, recipe = identity["data"], identity["recipe"]
    conditions = {
        "epochs": epochs,
        "resolution": identity["resolution"],
        "data_sha256": data["digest"],
        **{name: data[name] for name in DATA_CONDITIONS[1:]},
        **{name: value for name, value in recipe.items() if name not in _IGNORED},
        "precision": identity["execution"]["precision"],
    }
    if "mmacs" in identity:
        conditions["mmacs"] = ":".join(f"{value:g}" for value in identity["mmacs"])
    return {name: str(value) for name, value in conditions.items()}


def condition_differences(populations: Sequence[Trials]) -> list[str]:
    """Return the training conditions that are known of all populations and differ, as text with their values."""
    conditions = [trials.conditions for trials in populations]
    shared = [name for name in conditions[0] if all(name in each for each in conditions)] if conditions else []
    found = []
    for name in shared:
        values = list(dict.fromkeys(each[name][:12] for each in conditions))
        if len(values) > 1:
            found.append(f"{name.replace('_', ' ')} ({', '.join(values)})")
    return found
