"""A trained population from the store of a sweep or from CSV, whichever the file is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from regnet_deploy.errors import DataError, UsageError
from regnet_deploy.populations.csv_table import read_csv
from regnet_deploy.populations.store import DONE, Outcome, Store, Trial, check_supported, is_store, read_store
from regnet_deploy.populations.training_conditions import training_conditions
from regnet_deploy.populations.trials import Trials, stage_columns


def read_trials(path: Path) -> Trials:
    """Read a population, from a store while it is being written too.

    Of networks that were trained for several numbers of epochs (successive halving) those of the most epochs count.

    Raises:
        DataError: there is no such file, it is neither a store nor CSV, or nothing in it is done.
    """
    if not path.is_file():
        raise DataError(f"no population at {path}: give the store of `regnet-deploy sweep`, or a CSV file")
    if is_store(path):
        with read_store(path) as store:
            trials = trials_of(store)
    else:
        trials = read_csv(path)
    if not len(trials):
        lost = f" ({trials.lost} diverged or failed)" if trials.lost else ""
        raise DataError(f"{path} has no trial that is done{lost}")
    return trials


def trials_of(store: Store) -> Trials:
    """Return what is done of a store."""
    identity = store.identity
    outcomes = store.outcomes()
    known = [trial for trial in store.trials() if trial.number in outcomes]
    most = max((trial.epochs for trial in known), default=0)
    known = [trial for trial in known if trial.epochs == most]
    done = [trial for trial in known if outcomes[trial.number].state == DONE]
    networks = tuple(trial.network for trial in done)
    names = tuple(done[0].drawn) if done else ()
    columns = {
        name: np.array([getattr(trial, name) for trial in done], dtype=np.float64)
        for name in ("macs", "parameters", "activations")
    }
    columns |= {name: np.array([trial.drawn.get(name, np.nan) for trial in done]) for name in names}
    columns |= {name: values for name, values in stage_columns(networks).items() if name not in columns}
    errors = np.array([outcomes[trial.number].error for trial in done], dtype=np.float64)
    space = identity.get("space", {}).get("name", store.path.stem)
    with check_supported(store.path):
        regime = training_conditions(identity, most)
    return Trials(space, errors, columns, networks, names, len(known) - len(done), regime)


def find_trial(path: Path, number: int | None) -> tuple[Trial, Outcome, dict[str, Any]]:
    """Return a trial of a store, what came of it, and the identity of the sweep.

    Args:
        path: the store.
        number: of the trial; None takes the one of least error, among those of the most epochs.

    Raises:
        DataError: no store, or nothing in it is done.
        UsageError: no such trial, or it has no error.
    """
    if path.is_file() and not is_store(path):
        raise DataError(f"{path} is not the store of a sweep: a network is taken from what `regnet-deploy sweep` wrote")
    with read_store(path) as store:
        outcomes = store.outcomes()
        done = [t for t in store.trials() if t.number in outcomes and outcomes[t.number].error is not None]
        if not done:
            raise DataError(f"{path} has no trial that is done")
        if number is None:
            trial = min(done, key=lambda each: (-each.epochs, outcomes[each.number].error))
        else:
            found = [each for each in done if each.number == number]
            if not found:
                raise UsageError(
                    f"{path} has no trial {number} that is done; it has {done[0].number} to {done[-1].number}"
                )
            (trial,) = found
        return trial, outcomes[trial.number], store.identity
