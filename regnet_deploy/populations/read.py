"""A trained population from the store of a sweep or from CSV, whichever the file is."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from regnet_deploy.errors import DataError
from regnet_deploy.populations.store import DONE, Store, is_store, read_store
from regnet_deploy.populations.table import read_csv
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
    return Trials(space, errors, columns, networks, names, lost=len(known) - len(done))
