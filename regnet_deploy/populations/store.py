"""The store of a sweep: one SQLite file with the trials and their outcomes.

Every trial is a row from the start. Its outcome is written immediately, in one transaction that is on the disk when it
returns, so that only the running trials are lost if a process is killed. Other processes can read at the same time.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regnet_deploy.durable_files import sync_folder
from regnet_deploy.errors import DataError, UsageError
from regnet_deploy.file_lock import file_lock
from regnet_deploy.output_file import check_regular
from regnet_deploy.space.network import Network

SCHEMA = 1
PLANNED, DONE, DIVERGED, FAILED = "planned", "done", "diverged", "failed"
#: Ended before its last epoch, because others were better; only in the store of a search of recipes.
STOPPED = "stopped"
#: The application id in the header of the SQLite file, "rgnt".
_APPLICATION = 0x72676E74
_LOCK_TIMEOUT_S = 30.0
#: Number of differences that an error message lists.
_MAX_LISTED = 5

_TABLES = """
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE trials (
    number INTEGER PRIMARY KEY,
    network TEXT NOT NULL,
    drawn TEXT NOT NULL,
    macs INTEGER NOT NULL,
    parameters INTEGER NOT NULL,
    activations INTEGER NOT NULL,
    epochs INTEGER NOT NULL,
    state TEXT NOT NULL,
    error REAL,
    outcome TEXT
);
"""


@dataclass(frozen=True)
class Trial:
    """A network of a sweep.

    Attributes:
        number: its index in the sweep.
        network: the network.
        drawn: what was drawn: parameters of the network by the symbols of the paper, or values of the recipe.
        macs: MACs for one image at the resolution of the sweep.
        parameters: number of parameters.
        activations: number of output elements of the convolutions and the linear layer for one image.
        epochs: number of training epochs.
    """

    number: int
    network: Network
    drawn: Mapping[str, float | str]
    macs: int
    parameters: int
    activations: int
    epochs: int


@dataclass(frozen=True)
class TrialOutcome:
    """The outcome of a trial.

    Attributes:
        state: ``done``, ``diverged`` or ``failed``; ``stopped`` before its last epoch, because others were better.
        error: top-1 error of the best epoch on the validation images, percent; None unless the state is ``done``.
        best_epoch: number of that epoch, from 1.
        history: metrics of each epoch.
        seconds: duration.
        images_per_s: training images per second, without the time between epochs.
        message: why the trial diverged or failed.
        machine: the machine, with device, threads and precision.
        finished: date and time of the end, UTC.
        test: ``top1`` of the best epoch, as a share, on ``images`` to test on, and their ``digest``; None if it was not
            measured.
    """

    state: str
    error: float | None = None
    best_epoch: int = 0
    history: Sequence[Mapping[str, Any]] = ()
    seconds: float = 0.0
    images_per_s: float = 0.0
    message: str = ""
    machine: Mapping[str, Any] = field(default_factory=dict)
    finished: str = ""
    test: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return JSON data; ``TrialOutcome(**data)`` reads it."""
        data = {**self.__dict__, "history": [dict(each) for each in self.history], "machine": dict(self.machine)}
        if self.test is None:
            del data["test"]  # earlier versions do not have it
        return data


class Store:
    """An open store; see :func:`open_store` and :func:`read_store`."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection

    @property
    def identity(self) -> dict[str, Any]:
        """What determines the results of the sweep: space, band, data, recipe, execution, seed."""
        rows = self._rows("SELECT value FROM about WHERE key = 'identity'")
        with store_errors(self.path):
            identity: dict[str, Any] = json.loads(rows[0][0])
            return identity

    def add(self, trials: Sequence[Trial]) -> None:
        """Add the trials that are not in the store yet.

        Raises:
            UsageError: the store has another trial with the same number.
        """
        known = {trial.number: trial for trial in self.trials()}
        for trial in trials:
            if trial.number in known and known[trial.number] != trial:
                raise UsageError(
                    f"trial {trial.number} of {self.path} differs from the network that this version draws: use "
                    "another --store"
                )
        new = [trial for trial in trials if trial.number not in known]
        with self._writing() as connection:
            connection.executemany(
                "INSERT INTO trials VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL)",
                [
                    (
                        trial.number,
                        json.dumps(trial.network.to_json()),
                        json.dumps(dict(trial.drawn)),
                        trial.macs,
                        trial.parameters,
                        trial.activations,
                        trial.epochs,
                        PLANNED,
                    )
                    for trial in new
                ],
            )

    def record(self, number: int, outcome: TrialOutcome) -> None:
        """Write the outcome of a trial; it is on the disk when this returns."""
        with self._writing() as connection:
            connection.execute(
                "UPDATE trials SET state = ?, error = ?, outcome = ? WHERE number = ?",
                (outcome.state, outcome.error, json.dumps(outcome.to_json()), number),
            )

    def reset(self, states: Sequence[str]) -> int:
        """Delete the outcomes of trials in these states; return the number of trials."""
        with self._writing() as connection:
            marks = ", ".join("?" * len(states))
            changed = connection.execute(
                f"UPDATE trials SET state = '{PLANNED}', error = NULL, outcome = NULL WHERE state IN ({marks})",
                tuple(states),
            )
            return changed.rowcount

    def trials(self) -> list[Trial]:
        """Return all trials, in the order of their numbers."""
        rows = self._rows(
            "SELECT number, network, drawn, macs, parameters, activations, epochs FROM trials ORDER BY number"
        )
        with store_errors(self.path):
            return [Trial(row[0], Network.from_json(json.loads(row[1])), json.loads(row[2]), *row[3:]) for row in rows]

    def outcomes(self) -> dict[int, TrialOutcome]:
        """Return the outcomes by the number of the trial."""
        rows = self._rows("SELECT number, outcome FROM trials WHERE outcome IS NOT NULL ORDER BY number")
        with store_errors(self.path):
            return {number: TrialOutcome(**json.loads(text)) for number, text in rows}

    def _rows(self, query: str) -> list[Any]:
        try:
            return self._connection.execute(query).fetchall()
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise _damaged(self.path, error) from None

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._connection:
                yield self._connection
        except sqlite3.Error as error:
            raise DataError(f"cannot write {self.path}: {error}; the earlier results are intact") from None


@contextlib.contextmanager
def open_store(path: Path, identity: Mapping[str, Any]) -> Iterator[Store]:
    """Open the store of a sweep for writing, and create it if it does not exist; within :func:`lock_store`.

    Raises:
        UsageError: the store belongs to another sweep, and the message names the differences; or the path is not a
            regular file.
        DataError: the file is not a store, or cannot be written.
    """
    target = check_regular(path)  # a link stays one
    if not target.exists() or not target.stat().st_size:
        _create(target, identity)
    with contextlib.closing(_connect(path)) as connection:
        store = Store(path, connection)
        found = sweep_differences(store.identity, json.loads(json.dumps(identity)))
        if found:
            more = f"; and {len(found) - _MAX_LISTED} more" if len(found) > _MAX_LISTED else ""
            raise UsageError(
                f"{path} is the store of another sweep: {'; '.join(found[:_MAX_LISTED])}{more}. Run the command "
                "with the original options, or with another --store"
            )
        yield store


@contextlib.contextmanager
def lock_store(path: Path) -> Iterator[None]:
    """Lock a store against other sweeps, even before it exists, and whatever link leads to it.

    Raises:
        DataError: another sweep holds the lock, or the folder cannot be written.
    """
    target = path.resolve()
    busy = f"another sweep writes {path}: wait until it ends, or give another --store"
    unwritable = f"cannot write {path}: {{}}; give another --store"
    with file_lock(target.with_name(f".{target.name}.lock"), busy=busy, unwritable=unwritable):
        yield


def check_store_path(path: Path) -> None:
    """Check before any work that a sweep can write its results to this path.

    Raises:
        UsageError: the folder does not exist, or the path is not a regular file.
        DataError: the file is not a store.
    """
    target = check_regular(path)
    if target.exists() and target.stat().st_size:
        _connect(path).close()


@contextlib.contextmanager
def read_store(path: Path) -> Iterator[Store]:
    """Open a store for reading; a sweep may write it at the same time.

    Raises:
        DataError: the file does not exist, or is not a store.
    """
    if not os.path.isfile(path):  # False also where Path would raise: a name too long, a folder that may not be read
        raise DataError(
            f"no store of a sweep at {path}: `regnet-deploy sweep --store {shlex.quote(str(path))}` creates one"
        )
    with contextlib.closing(_connect(path)) as connection:
        yield Store(path, connection)


def is_store(path: Path) -> bool:
    """Return whether a file is an SQLite file, by its first bytes."""
    if not os.path.isfile(path):  # a pipe would be waited for
        return False
    try:
        with path.open("rb") as file:
            return file.read(16) == b"SQLite format 3\0"
    except OSError:
        return False


def sweep_differences(before: Any, now: Any, key: str = "") -> list[str]:
    """Return the differences between two sweep identities as text."""
    if isinstance(before, dict) and isinstance(now, dict):
        if key == "space" and before.get("name") != now.get("name"):
            return [f"space is {now.get('name')} and was {before.get('name')}"]
        names = [*now, *(name for name in before if name not in now)]
        inner = [sweep_differences(before.get(n), now.get(n), f"{key} {n}".strip()) for n in names]
        return [each for found in inner for each in found]
    return [] if before == now else [f"{key} is {json.dumps(now)} and was {json.dumps(before)}"]


def _create(path: Path, identity: Mapping[str, Any]) -> None:
    """Create a store under a temporary name, and rename it."""
    incomplete = path.with_name(f".{path.name}.incomplete")
    journal = incomplete.with_name(f"{incomplete.name}-journal")
    try:
        for file in (incomplete, journal):  # left by a process that was killed
            file.unlink(missing_ok=True)
        with contextlib.closing(sqlite3.connect(incomplete)) as connection, connection:
            connection.executescript(_TABLES)
            connection.execute(f"PRAGMA application_id = {_APPLICATION}")
            connection.execute("INSERT INTO about VALUES ('schema', ?)", (str(SCHEMA),))
            connection.execute("INSERT INTO about VALUES ('identity', ?)", (json.dumps(identity),))
        incomplete.replace(path)
        sync_folder(path.parent)
    except (OSError, sqlite3.Error) as error:
        raise DataError(f"cannot write {path}: {error}; give another --store") from None


def _connect(path: Path) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(path, timeout=_LOCK_TIMEOUT_S)
    except sqlite3.Error as error:
        raise _damaged(path, error) from None
    try:
        _check(path, connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _check(path: Path, connection: sqlite3.Connection) -> None:
    """Check that a file is a store which this version can read."""
    try:
        connection.execute("PRAGMA synchronous = EXTRA")
        if connection.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION:
            raise DataError(f"{path} is not the store of a sweep: give a file that `regnet-deploy sweep` wrote")
        rows = connection.execute("SELECT value FROM about WHERE key = 'schema'").fetchall()
    except (sqlite3.Error, UnicodeDecodeError) as error:  # raised for damaged text
        raise _damaged(path, error) from None
    with store_errors(path):
        schema = int(rows[0][0])
    if schema > SCHEMA:
        raise DataError(
            f"{path} was written by a newer regnet-deploy (schema {schema}, this version reads up to {SCHEMA})"
        )


@contextlib.contextmanager
def store_errors(path: Path) -> Iterator[None]:
    """Turn errors of the content of a store into a :class:`DataError`."""
    try:
        yield
    except (LookupError, TypeError, ValueError, UsageError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> DataError:
    reason = " ".join(f"{error}".split())
    return DataError(
        f"{path} cannot be read as the store of a sweep: {reason:.200}; restore it from a copy, or start a new one"
    )
