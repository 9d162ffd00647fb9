"""Reads the rows of CSV files of populations, as this and other programs write them, under one set of names.

Columns are separated by commas, semicolons or tabs. With semicolons, numbers may have a decimal comma. Names of columns
and states of trials that other programs use are replaced by those of :mod:`regnet_deploy.populations.csv_table`.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from regnet_deploy.errors import DataError, did_you_mean
from regnet_deploy.populations.store import DIVERGED, DONE, FAILED, PLANNED

#: Names of the columns in files of other programs.
ALIASES = {
    "top1_err": "error",
    "top1_error": "error",
    "error_percent": "error",
    "acc1": "top1_acc",
    "top1": "top1_acc",
    "top1_accuracy": "top1_acc",
    "accuracy": "top1_acc",
    "val_acc": "top1_acc",
    "params": "parameters",
    "acts": "activations",
    "depth": "d",
    "group_w": "g",
    "bot_mul": "bottleneck_multiplier",
    "stage_depths": "depths",
    "stage_widths": "widths",
}
STOPPED = "stopped"
#: States of trials in lower case, as this program, Optuna, Ray Tune, MLflow and W&B call them, and their meaning here.
_STATES = {
    **dict.fromkeys(("", DONE, "complete", "completed", "finished", "terminated", "succeeded", "success", "ok"), DONE),
    DIVERGED: DIVERGED,
    **dict.fromkeys((FAILED, "fail", "error", "errored", "crashed"), FAILED),
    **dict.fromkeys((PLANNED, "waiting", "pending", "scheduled", "queued", "running", "paused"), PLANNED),
    **dict.fromkeys((STOPPED, "pruned", "killed"), STOPPED),
}
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+")


@dataclass(frozen=True)
class Row:
    """One network.

    Attributes:
        line: number of its line in the file.
        values: name of the column -> text, without surrounding blanks; "" where the file has no value.
        state: a state of :mod:`regnet_deploy.populations.store`, or :data:`STOPPED`.
    """

    line: int
    values: Mapping[str, str]
    state: str


@dataclass(frozen=True)
class CsvRows:
    """The rows of a CSV file; each has a value of ``error``, the top-1 error in percent, or no outcome.

    Attributes:
        names: names of the columns.
        rows: the rows, in the order of the file.
        remarks: how the file was read where that is not evident, one sentence each.
    """

    names: tuple[str, ...]
    rows: tuple[Row, ...]
    remarks: tuple[str, ...]


def read_rows(path: Path) -> CsvRows:
    """Read a CSV file with a line of column names.

    Raises:
        DataError: the file cannot be read as UTF-8 or has no rows; two columns have one name; no column has errors or
            accuracies; a row has more values than there are columns, or a state that is not known.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"cannot read {path}: it is not UTF-8 ({error.reason}): save it as CSV UTF-8") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    delimiter = _delimiter(text)
    try:
        reader = csv.reader(io.StringIO(text), delimiter=delimiter)
        lines = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise DataError(f"cannot read {path}: {error}") from None
    if len(lines) < 2:
        raise DataError(
            f"{path} has no rows: a population is a CSV file with a line of column names and one line for each network"
        )
    names = _names(lines[0][1], path)
    for line, cells in lines[1:]:
        if any(cell.strip() for cell in cells[len(names) :]):
            raise DataError(
                f"{path} line {line} has {len(cells)} values, but the file has {len(names)} columns, separated by "
                f"{_DELIMITERS[delimiter]}: quote values that contain the separator"
            )
    table = [(line, _cells(names, cells, delimiter)) for line, cells in lines[1:]]
    table, remarks = _with_errors(names, table, path)
    return CsvRows(tuple(names), tuple(Row(line, row, _state(row, path, line)) for line, row in table), remarks)


def number(text: str) -> float:
    """Return the number that a text is, NaN if it is none; ``75.3 %`` is 75.3."""
    try:
        return float(text.removesuffix("%"))
    except ValueError:
        return math.nan


def _delimiter(text: str) -> str:
    """Return the delimiter that is most frequent in the line of column names."""
    header = next((line for line in text.splitlines() if line.strip()), "")
    return max(_DELIMITERS, key=header.count)


def _names(header: Sequence[str], path: Path) -> list[str]:
    """Return the names of this program for the columns of a file; an alias gives way to a column of that name."""
    found = [name.strip() for name in header]
    lower = {name.lower() for name in found}
    taken: set[str] = set()
    names = []
    for name in found:
        known = ALIASES.get(name.lower(), name.lower() if name.lower() in ALIASES.values() else name)
        if known != name.lower() and (known in lower or known in taken):
            known = name
        if known and known in taken:
            raise DataError(f"{path} has two columns {known!r}: remove or rename one")
        taken.add(known)
        names.append(known)
    return names


def _cells(names: Sequence[str], cells: Sequence[str], delimiter: str) -> dict[str, str]:
    values = [cell.strip() for cell in cells] + [""] * (len(names) - len(cells))
    if delimiter == ";":
        values = [value.replace(",", ".") if _DECIMAL_COMMA.fullmatch(value) else value for value in values]
    return {name: value for name, value in zip(names, values, strict=False) if name}


def _with_errors(
    names: Sequence[str], table: list[tuple[int, dict[str, str]]], path: Path
) -> tuple[list[tuple[int, dict[str, str]]], tuple[str, ...]]:
    """Return the rows with a value of ``error``, computed from the accuracies where there is no such column."""
    if "error" in names:
        return table, ()
    if "top1_acc" not in names:
        listed = " ".join(", ".join(filter(None, names)).split())
        raise DataError(
            f"{path} has no column error (top-1 error, percent), top1_err or top1_acc"
            f"{did_you_mean('error', names)}: {listed:.300}; rename the column with the errors or accuracies"
        )
    known = [value for _, row in table if not math.isnan(value := number(row["top1_acc"]))]
    percent = any(row["top1_acc"].endswith("%") for _, row in table)
    fraction = not percent and any(value > 0 for value in known) and all(0 <= value <= 1 for value in known)
    scale = 100 if fraction else 1
    computed = [(line, {**row, "error": _complement(row["top1_acc"], scale)}) for line, row in table]
    low = sum(0 < value <= 1 for value in known)
    if low and not fraction and not percent:
        others = len(known) - low
        return computed, (
            f"{path.name}: {low} accuracies are at most 1 and {others} are not; all are read as percent: correct those "
            "that are fractions",
        )
    if not fraction:
        return computed, ()
    return computed, (f"{path.name}: no accuracy is above 1, so they are read as fractions, not as percent",)


def _complement(text: str, scale: int) -> str:
    return f"{100 - scale * number(text):.6f}" if text else ""


def _state(row: Mapping[str, str], path: Path, line: int) -> str:
    text = row.get("state", "")
    state = _STATES.get(text.lower().rpartition(".")[2])  # Optuna writes TrialState.COMPLETE
    if state is None:
        raise DataError(
            f"{path} line {line}: the state {text!r} is not known{did_you_mean(text.lower(), _STATES)}; known: "
            f"{', '.join(filter(None, _STATES))}"
        )
    return PLANNED if state == DONE and not row["error"] else state
