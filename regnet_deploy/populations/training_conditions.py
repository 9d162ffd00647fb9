"""Under which conditions a population was trained: what must be the same before errors of two can be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: What it is called in CSV and in words, beside what a recipe says.
DATA = ("data_sha256", "split", "classes", "train_images", "val_images")
#: Parts of a recipe that are the same for every population or do not matter to a comparison.
_ALIKE = ("optimizer", "momentum", "nesterov", "schedule", "warmup_factor", "epochs", "seed")


def training_conditions(identity: Mapping[str, Any], epochs: int) -> dict[str, str]:
    """Return the regime of a sweep, by the names that its CSV has for the columns.

    Args:
        identity: of the store.
        epochs: of the trials that count.
    """
    data, recipe = identity["data"], identity["recipe"]
    said = {
        "epochs": epochs,
        "resolution": identity["resolution"],
        "data_sha256": data["digest"],
        **{name: data[name] for name in DATA[1:]},
        **{name: value for name, value in recipe.items() if name not in _ALIKE},
        "precision": identity["execution"]["precision"],
    }
    if "mmacs" in identity:
        said["mmacs"] = ":".join(f"{value:g}" for value in identity["mmacs"])
    return {name: str(value) for name, value in said.items()}


def condition_differences(regimes: Sequence[Mapping[str, str]]) -> list[str]:
    """Return in words in what conditions that all of them state they differ."""
    if not regimes:
        return []
    stated = [name for name in regimes[0] if all(name in regime for regime in regimes)]
    found = []
    for name in stated:
        values = list(dict.fromkeys(regime[name][:12] for regime in regimes))
        if len(values) > 1:
            found.append(f"{name.replace('_', ' ')} ({', '.join(values)})")
    return found
