"""Reads and writes populations as CSV.

Columns are identified by name. ``error`` is the top-1 error in percent; ``top1_err`` is read as the same, and
``top1_acc`` as 100 minus the error. Stages are lists of numbers separated by spaces. Every other column of numbers is a
column of the population.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from regnet_deploy.errors import DataError, RegnetDeployError, did_you_mean
from regnet_deploy.populations.store import DONE, Store, Trial, TrialOutcome
from regnet_deploy.populations.trials import DATA_CONDITIONS, Trials, stage_columns, training_conditions
from regnet_deploy.space.network import Network, default_stem_stride
from regnet_deploy.space.spaces import MAX_BLOCKS

#: Columns that describe the stages of the network.
STAGES = ("depths", "widths", "group_widths", "bottlenecks")
#: Names of the columns in files of other programs.
ALIASES = {
    "top1_err": "error",
    "top1_error": "error",
    "params": "parameters",
    "acts": "activations",
    "depth": "d",
    "group_w": "g",
    "bot_mul": "bottleneck_multiplier",
    "stage_depths": "depths",
    "stage_widths": "widths",
}
#: Columns that describe the training run, not the network: they are not columns of the population.
_RUN = (
    "id",
    "number",
    "n_stages",
    "epochs",
    "lr",
    "wd",
    "batch",
    "best_epoch",
    "seconds",
    "images_per_s",
    "seed",
    "training_seed",
    "threads",
)
#: Columns that describe the training conditions.
_CONDITIONS = (
    *(
        "epochs",
        "resolution",
        *DATA_CONDITIONS,
        "batch_size",
        "lr",
        "weight_decay",
        "warmup_epochs",
        "crop_area",
        "flip",
    ),
    *("lighting", "label_smoothing", "precise_bn_images", "precision", "mmacs"),
)
#: Larger numbers cannot describe a network.
_LARGEST = 1 << 31
_NETWORK = (*STAGES, "se_ratio", "stem_stride", "block")


def write_csv(store: Store) -> str:
    """Return the trials of a store that have an outcome as CSV; each row includes the recipe and the machine."""
    identity, outcomes = store.identity, store.outcomes()
    space = identity.get("space", {}).get("name", store.path.stem)
    known = [trial for trial in store.trials() if trial.number in outcomes]
    rows = [_row(space, trial, outcomes[trial.number], identity) for trial in known]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["space"], lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _row(space: str, trial: Trial, outcome: TrialOutcome, identity: Mapping[str, Any]) -> dict[str, Any]:
    network, conditions = trial.network, training_conditions(identity, trial.epochs)
    return {
        "space": space,
        "number": trial.number,
        "state": outcome.state,
        "error": "" if outcome.error is None else _shortest(outcome.error),
        "epochs": conditions.pop("epochs"),
        "best_epoch": outcome.best_epoch,
        "macs": trial.macs,
        "parameters": trial.parameters,
        "activations": trial.activations,
        **{name: " ".join(_shortest(value) for value in getattr(network, name)) for name in STAGES},
        "block": network.block,
        "se_ratio": network.se_ratio,
        "stem_stride": network.stem_stride,
        **{f"drawn:{name}": _shortest(value) for name, value in trial.drawn.items()},
        "seconds": f"{outcome.seconds:.1f}",
        "images_per_s": f"{outcome.images_per_s:.1f}",
        **{name: outcome.machine.get(name, "") for name in ("cpu", "device", "threads", "torch")},
        "gpus": " + ".join(outcome.machine.get("gpus", ())),
        "finished": outcome.finished,
        "message": outcome.message,
        "seed": identity.get("seed", ""),
        "training_seed": identity["recipe"]["seed"],
        **conditions,
    }


def read_csv(path: Path) -> Trials:
    """Read a population from CSV.

    Raises:
        DataError: the file cannot be read, or has no column of errors.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(text)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if not rows:
        raise DataError(
            f"{path} has no rows: a population is a CSV file with a line of column names and one line for each network"
        )
    named = {name: ALIASES.get(name, name) for name in rows[0] if name}
    table = [{new: (row[old] or "").strip() for old, new in named.items()} for row in rows]
    if "error" not in table[0] and "top1_acc" in table[0]:
        table = [{**row, "error": _complement(row["top1_acc"])} for row in table]
    if "error" not in table[0]:
        hint = did_you_mean("error", named)
        listed = " ".join(", ".join(named).split())
        raise DataError(f"{path} has no column error (top-1 error, percent), top1_err or top1_acc{hint}: {listed:.300}")
    numbered = _longest_training(list(enumerate(table, start=2)))
    kept = [(number, row) for number, row in numbered if row.get("state", DONE) == DONE]
    errors = np.array([_error(row["error"], path, line) for line, row in kept], dtype=np.float64)
    table = [row for _, row in kept]
    drawn = tuple(name.removeprefix("drawn:") for name in named.values() if name.startswith("drawn:"))
    columns = {}
    for name in named.values():
        if name not in ("error", "top1_acc", *_RUN, *_CONDITIONS, *_NETWORK):
            numbers = np.array([_number(row[name]) for row in table], dtype=np.float64)
            if not np.isnan(numbers).all():
                columns[name.removeprefix("drawn:")] = numbers
    networks = (
        tuple(_network(row, path) for row in table) if {"depths", "widths"} <= set(table[0] if table else ()) else ()
    )
    found = () if any(network is None for network in networks) else tuple(each for each in networks if each)
    spaces = {row["space"] for row in table if row.get("space")}
    name = spaces.pop() if len(spaces) == 1 else path.stem
    columns = {**columns, **{k: v for k, v in stage_columns(found).items() if k not in columns}}
    likely = tuple(each for each in ("d", "w_0", "w_a", "w_m", "b", "g") if each in columns)
    conditions = {} if not table else {name: table[0][name] for name in _CONDITIONS if table[0].get(name)}
    return Trials(name, errors, columns, found, drawn or likely, len(numbered) - len(table), conditions)


def _longest_training(rows: list[tuple[int, dict[str, str]]]) -> list[tuple[int, dict[str, str]]]:
    """Return the rows with the largest number of epochs, and those without a number of epochs."""
    epochs = [_number(row.get("epochs", "")) for _, row in rows]
    most = max((value for value in epochs if not math.isnan(value)), default=math.nan)
    return [row for row, value in zip(rows, epochs, strict=True) if math.isnan(value) or value == most]


def _network(row: Mapping[str, str], path: Path) -> Network | None:
    """Return the network of a row; None where the row does not describe one."""
    try:
        depths, widths = ([_whole(value) for value in row[name].split()] for name in ("depths", "widths"))
        if sum(depths) > MAX_BLOCKS:
            raise ValueError(f"{sum(depths):,} blocks are more than {MAX_BLOCKS:,}")
        ratios = [float(value) for value in row.get("bottlenecks", "").split()] or [1.0] * len(widths)
        if not all(math.isfinite(ratio) and ratio > 0 for ratio in ratios):
            raise ValueError("bottlenecks must be above 0")
        inner = [round(width / ratio) for width, ratio in zip(widths, ratios, strict=True)]
        groups = [_whole(value) for value in row.get("group_widths", "").split()]
        if not groups and not row.get("g"):
            return None
        groups = groups or [min(int(float(row["g"])), width) for width in inner]
        return Network(
            tuple(depths),
            tuple(widths),
            tuple(groups),
            tuple(ratios),
            se_ratio=float(row.get("se_ratio") or 0),
            stem_stride=int(row.get("stem_stride") or default_stem_stride(224)),
            block=row.get("block") or "bottleneck",
        )
    except (ValueError, ArithmeticError, RegnetDeployError) as error:
        raise DataError(f"{path}: a network cannot be built from {dict(row)!r:.200}: {error}") from None


def _whole(text: str) -> int:
    value = int(text)
    if abs(value) > _LARGEST:
        raise ValueError(f"{text:.20}... is too large")
    return value


def _error(text: str, path: Path, line: int) -> float:
    value = _number(text)
    if not 0 <= value <= 100:
        raise DataError(f"{path} line {line}: the error must be 0 to 100 percent, got {text!r}")
    return value


def _shortest(value: float) -> str:
    """Return the shortest text that is read back as the same number."""
    return str(int(value)) if value == int(value) else repr(value)


def _complement(text: str) -> str:
    return f"{100 - _number(text):.6f}"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
