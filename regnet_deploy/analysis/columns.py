"""The columns of a population: which ones are analyzed, and how they are labeled."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.analysis.line_fit import LineFit
from regnet_deploy.errors import UsageError, did_you_mean
from regnet_deploy.populations.trials import Trials

Float = NDArray[np.float64]

#: The costs of a network, in the order of all tables.
COMPLEXITIES = ("macs", "parameters", "activations")
#: Name of the column that :mod:`regnet_deploy.analysis.line_fit` computes.
E_FIT = "e_fit"
_DIVISORS = dict.fromkeys(COMPLEXITIES, 1e6)
_LABELS = {
    "macs": "MACs (M)",
    "parameters": "parameters (M)",
    "activations": "activations (M)",
    "d": "d (blocks)",
    "w_0": "w_0 (channels)",
    "w_a": "w_a (channels per block)",
    "g": "g (channels)",
}
_OF_STAGES = {"d": "blocks", "w": "channels", "g": "channels"}


def label(column: str) -> str:
    """Return the name of a column with its unit, for the axes of figures."""
    if column in _LABELS:
        return _LABELS[column]
    stage = re.fullmatch(r"([dwg])_\d+", column)
    return f"{column} ({_OF_STAGES[stage[1]]})" if stage else column


def short_label(column: str) -> str:
    """Return the name of a column without its unit."""
    return label(column).partition(" (")[0]


def divisor(column: str) -> float:
    """Return the divisor that converts a value to the unit of :func:`label`."""
    return _DIVISORS.get(column, 1.0)


def format_value(column: str, value: float) -> str:
    """Return a value in the unit of :func:`label`, with four digits."""
    return f"{value / divisor(column):.4g}"


def columns_of(trials: Trials, fits: Sequence[LineFit]) -> Mapping[str, Float]:
    """Return the columns of a population, with e_fit if the networks are known."""
    if not fits:
        return trials.columns
    return {**trials.columns, E_FIT: np.array([fit.e_fit for fit in fits])}


def varies(values: Float) -> bool:
    """Return whether a column has at least two different values."""
    known = values[np.isfinite(values)]
    return len(known) > 1 and bool(np.ptp(known) > 0)


def default_columns(columns: Mapping[str, Float], drawn: Sequence[str]) -> tuple[str, ...]:
    """Return the drawn parameters, the depth, the costs and e_fit, as far as they are known and vary."""
    candidates = dict.fromkeys((*drawn, "d", *COMPLEXITIES, E_FIT))
    return tuple(name for name in candidates if name in columns and varies(columns[name]))


def check_columns(asked: Iterable[str], populations: Sequence[Mapping[str, Float]]) -> None:
    """Check that each column is in at least one population.

    Raises:
        UsageError: a column is not; the message has the nearest name, and all names.
    """
    known = dict.fromkeys(
        name for columns in populations for name, values in columns.items() if np.isfinite(values).any()
    )
    for name in asked:
        if name not in known:
            raise UsageError(
                f"no population has a column {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}"
            )
