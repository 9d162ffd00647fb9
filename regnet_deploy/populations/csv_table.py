"""Reads and writes populations as CSV.

Columns are identified by name; :mod:`regnet_deploy.populations.csv_rows` says which names and forms are read. Stages
are lists of numbers separated by spaces. Every other column of numbers is a column of the population.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from regnet_deploy.errors import DataError, RegnetDeployError
from regnet_deploy.populations.csv_rows import STOPPED, CsvRows, Row, number, read_rows
from regnet_deploy.populations.store import DONE, PLANNED, Store, Trial, TrialOutcome
from regnet_deploy.populations.trials import (
    DATA_CONDITIONS,
    Trials,
    left_out_rounds,
    stage_columns,
    training_conditions,
)
from regnet_deploy.space.network import Network, default_stem_stride
from regnet_deploy.space.spaces import MAX_BLOCKS

#: Columns that describe the stages of the network.
STAGES = ("depths", "widths", "group_widths", "bottlenecks")
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
#: Larger numbers of a column, infinity included, are unknown values: statistics would overflow.
_BEYOND = 1e30
_NETWORK = (*STAGES, "se_ratio", "stem_stride", "block", "input_channels")


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
        "input_channels": network.input_channels,
        **{f"drawn:{n}": v if isinstance(v, str) else _shortest(v) for n, v in trial.drawn.items()},
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

    Rows without an outcome are left out. So are, in a file of :func:`write_csv`, the networks of the earlier rounds of
    successive halving. ``remarks`` of the result say how many, and why.

    Raises:
        DataError: the file cannot be read, has no column of errors, or a row has an error outside 0 to 100 percent.
    """
    table = read_rows(path)
    outcomes, remarks = _of_one_training(table, path.name)
    completed = [row for row in outcomes if row.state == DONE]
    errors = np.array([_error(row, path) for row in completed], dtype=np.float64)
    rows = [row.values for row in completed]
    drawn = tuple(name.removeprefix("drawn:") for name in table.names if name.startswith("drawn:"))
    columns = {}
    for name in filter(None, table.names):
        if name not in ("error", "top1_acc", *_RUN, *_CONDITIONS, *_NETWORK):
            numbers = np.array([number(row[name]) for row in rows], dtype=np.float64)
            beyond = np.abs(numbers) > _BEYOND
            if beyond.any():
                numbers[beyond] = np.nan
                remarks = (*remarks, f"{path.name}: {beyond.sum()} values of {name} are beyond 10^30 and are left out")
            if not np.isnan(numbers).all():
                columns[name.removeprefix("drawn:")] = numbers
    networks = tuple(_network(row, path) for row in rows) if {"depths", "widths"} <= set(table.names) else ()
    found = () if any(network is None for network in networks) else tuple(each for each in networks if each)
    spaces = {row["space"] for row in rows if row.get("space")}
    name = spaces.pop() if len(spaces) == 1 else path.stem
    columns = {**columns, **{k: v for k, v in stage_columns(found).items() if k not in columns}}
    likely = tuple(each for each in ("d", "w_0", "w_a", "w_m", "b", "g") if each in columns)
    conditions = {} if not rows else {name: rows[0][name] for name in _CONDITIONS if rows[0].get(name)}
    if len({row.get("epochs") for row in rows}) > 1:
        conditions.pop("epochs", None)
    unsuccessful = len(outcomes) - len(completed)
    return Trials(name, errors, columns, found, drawn or likely, unsuccessful, conditions, remarks)


def _of_one_training(table: CsvRows, file: str) -> tuple[list[Row], tuple[str, ...]]:
    """Return the rows with an outcome that belong to one population, and remarks on those that are left out."""
    remarks = list(table.remarks)
    rows = []
    for state, reason in ((PLANNED, "have no result"), (STOPPED, "were stopped before the end of their training")):
        left_out = sum(row.state == state for row in table.rows)
        if left_out:
            remarks.append(f"{file}: {left_out} of {len(table.rows)} networks {reason} and are left out")
    rows = [row for row in table.rows if row.state not in (PLANNED, STOPPED)]
    epochs = [number(row.values.get("epochs", "")) for row in rows]
    known = [value for value in epochs if not math.isnan(value)]
    if not known or min(known) == max(known):
        return rows, tuple(remarks)
    fewest, most = min(known), max(known)
    if "training_seed" in table.names:  # a file of write_csv: fewer epochs are earlier rounds of successive halving
        last = [row for row, value in zip(rows, epochs, strict=True) if math.isnan(value) or value == most]
        remarks.append(left_out_rounds(file, len(rows) - len(last), most))
        return last, tuple(remarks)
    remarks.append(
        f"{file}: the networks were trained for {fewest:g} to {most:g} epochs; all are used, but their errors also "
        "differ because of that"
    )
    return rows, tuple(remarks)


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
            stem_stride=_whole(row.get("stem_stride") or str(default_stem_stride(224))),
            block=row.get("block") or "bottleneck",
            input_channels=_whole(row.get("input_channels") or "3"),
        )
    except (ValueError, ArithmeticError, RegnetDeployError) as error:
        raise DataError(f"{path}: a network cannot be built from {dict(row)!r:.200}: {error}") from None


def _whole(text: str) -> int:
    value = int(text.removesuffix(".0"))  # pandas writes 2.0 where a number of the column is missing
    if abs(value) > _LARGEST:
        raise ValueError(f"{text:.20}... is too large")
    return value


def _error(row: Row, path: Path) -> float:
    value = number(row.values["error"])
    if not 0 <= value <= 100:
        of, given = ("accuracy", row.values["top1_acc"]) if "top1_acc" in row.values else ("error", row.values["error"])
        raise DataError(
            f"{path} line {row.line}: the {of} must be 0 to 100 percent, got {given!r}: correct it, or give the row a "
            "state such as failed"
        )
    return value


def _shortest(value: float) -> str:
    """Return the shortest text that is read back as the same number."""
    return str(int(value)) if value == int(value) else repr(value)
