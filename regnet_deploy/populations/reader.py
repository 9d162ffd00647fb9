"""Reads trained populations from the stores of sweeps and from CSV files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from regnet_deploy.errors import DataError, UsageError
from regnet_deploy.populations.csv_table import read_csv
from regnet_deploy.populations.store import (
    DONE,
    STOPPED,
    Store,
    Trial,
    TrialOutcome,
    is_store,
    read_store,
    store_errors,
)
from regnet_deploy.populations.trials import Trials, left_out_rounds, stage_columns, training_conditions


def read_trials(path: Path) -> Trials:
    """Read a population; a store can be read while a sweep writes it.

    Only the trials with the largest number of epochs are read, which are those of the last round of successive halving.

    Raises:
        DataError: the file does not exist, is neither a store nor CSV, or has no completed trial.
    """
    if not os.path.isfile(path):  # False also where Path would raise: a name too long, a folder that may not be read
        raise DataError(f"no population at {path}: give the store of `regnet-deploy sweep`, or a CSV file")
    if is_store(path):
        with read_store(path) as store:
            trials = trials_of(store)
    else:
        trials = read_csv(path)
    if not len(trials):
        failed = f" ({trials.unsuccessful} diverged or failed)" if trials.unsuccessful else ""
        raise DataError(f"{path} has no completed trial{failed}")
    return trials


def trials_of(store: Store) -> Trials:
    """Return the completed trials of a store."""
    identity = store.identity
    outcomes = store.outcomes()
    ended = [trial for trial in store.trials() if trial.number in outcomes]
    known = [trial for trial in ended if outcomes[trial.number].state != STOPPED]
    most = max((trial.epochs for trial in known), default=0)
    last = [trial for trial in known if trial.epochs == most]
    remarks: tuple[str, ...] = (
        (left_out_rounds(store.path.name, len(known) - len(last), most),) if len(last) < len(known) else ()
    )
    if len(known) < len(ended):
        stopped = len(ended) - len(known)
        remarks += (f"{store.path.name}: {stopped} trials that were stopped early are left out",)
    known = last
    done = [trial for trial in known if outcomes[trial.number].state == DONE]
    networks = tuple(trial.network for trial in done)
    drawn = dict.fromkeys(name for trial in done for name in trial.drawn)
    names = tuple(n for n in drawn if not any(isinstance(trial.drawn.get(n), str) for trial in done))
    columns = {
        name: np.array([getattr(trial, name) for trial in done], dtype=np.float64)
        for name in ("macs", "parameters", "activations")
    }
    columns |= {name: np.array([trial.drawn.get(name, np.nan) for trial in done], dtype=np.float64) for name in names}
    columns |= {name: values for name, values in stage_columns(networks).items() if name not in columns}
    errors = np.array([outcomes[trial.number].error for trial in done], dtype=np.float64)
    space = identity.get("space", {}).get("name", store.path.stem)
    with store_errors(store.path):
        conditions = training_conditions(identity, most)
    return Trials(space, errors, columns, networks, names, len(known) - len(done), conditions, remarks)


def find_trial(path: Path, number: int | None) -> tuple[Trial, TrialOutcome, dict[str, Any]]:
    """Return a trial of a store, its outcome, and the identity of the sweep.

    Args:
        path: the store.
        number: number of the trial; None means the one with the lowest error among those with the most epochs.

    Raises:
        DataError: the file is not a store, or has no completed trial.
        UsageError: the trial does not exist, or is not completed.
    """
    if os.path.isfile(path) and not is_store(path):
        raise DataError(f"{path} is not the store of a sweep: give a file that `regnet-deploy sweep` wrote")
    with read_store(path) as store:
        outcomes = store.outcomes()
        done = [t for t in store.trials() if t.number in outcomes and outcomes[t.number].error is not None]
        if not done:
            raise DataError(f"{path} has no completed trial")
        if number is None:
            trial = min(done, key=lambda each: (-each.epochs, outcomes[each.number].error))
        else:
            found = [each for each in done if each.number == number]
            if not found:
                raise UsageError(
                    f"{path} has no completed trial {number}; it has trials {done[0].number} to {done[-1].number}"
                )
            (trial,) = found
        return trial, outcomes[trial.number], store.identity
