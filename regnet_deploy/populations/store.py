"""The store of a sweep: one SQLite file with what is to be trained and what has come of it.

Every trial is a row from the start. What comes of it is written in one transaction as soon as it is known and is then
on the disk, so that whatever is killed, no more is lost than the trials that were running. Others may read meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regnet_deploy.errors import DataError, UsageError
from regnet_deploy.file_lock import file_lock
from regnet_deploy.space.network import Network

SCHEMA = 1
PLANNED, DONE, DIVERGED, FAILED = "planned", "done", "diverged", "failed"
#: "rgnt", where SQLite files say whose they are.
_APPLICATION = 0x72676E74
_PATIENCE_S = 30.0
#: Differences that are named one by one.
_NAMED = 5

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
    """A network that is to be trained, or has been.

    Attributes:
        number: its place in the sweep, from 0.
        network: the network.
        drawn: the parameters that were drawn, by the paper's symbols.
        macs: MACs for one image at the sweep's resolution.
        parameters: weights.
        activations: elements that its convolutions and its linear put out for one image.
        epochs: epochs it is trained for.
    """

    number: int
    network: Network
    drawn: Mapping[str, float]
    macs: int
    parameters: int
    activations: int
    epochs: int


@dataclass(frozen=True)
class Outcome:
    """What has come of a trial.

    Attributes:
        state: ``done``, ``diverged`` or ``failed``.
        error: top-1 error of its best epoch on the validation images, percent; None unless it is done.
        best_epoch: that epoch, from 1.
        history: metrics of each epoch.
        seconds: from start to end.
        images_per_s: training images a second, over the steps.
        message: why it is not done.
        machine: where it ran: machine, device, threads, precision.
        finished: date and time, UTC.
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

    def to_json(self) -> dict[str, Any]:
        """Return JSON data; ``Outcome(**data)`` reads it."""
        return {**self.__dict__, "history": [dict(each) for each in self.history], "machine": dict(self.machine)}


class Store:
    """An open store; made by :func:`open_store` and :func:`read_store`."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the results of the sweep: space, band, data, recipe, seed."""
        rows = self._rows("SELECT value FROM about WHERE key = 'identity'")
        with check_supported(self.path):
            identity: dict[str, Any] = json.loads(rows[0][0])
            return identity

    def add(self, trials: Sequence[Trial]) -> None:
        """Add trials that are not there yet.

        Raises:
            UsageError: a trial of this number is another one.
        """
        known = {trial.number: trial for trial in self.trials()}
        for trial in trials:
            if trial.number in known and known[trial.number] != trial:
                raise UsageError(
                    f"trial {trial.number} of {self.path} is another network than this version draws: use a new --store"
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

    def record(self, number: int, outcome: Outcome) -> None:
        """Write what has come of a trial; it is on the disk when this returns."""
        with self._writing() as connection:
            connection.execute(
                "UPDATE trials SET state = ?, error = ?, outcome = ? WHERE number = ?",
                (outcome.state, outcome.error, json.dumps(outcome.to_json()), number),
            )

    def reset(self, states: Sequence[str]) -> int:
        """Plan the trials in these states again; return how many there were."""
        with self._writing() as connection:
            marks = ", ".join("?" * len(states))
            changed = connection.execute(
                f"UPDATE trials SET state = '{PLANNED}', error = NULL, outcome = NULL WHERE state IN ({marks})",
                tuple(states),
            )
            return changed.rowcount

    def trials(self) -> list[Trial]:
        """Return all trials by number."""
        rows = self._rows(
            "SELECT number, network, drawn, macs, parameters, activations, epochs FROM trials ORDER BY number"
        )
        with check_supported(self.path):
            return [Trial(row[0], Network.from_json(json.loads(row[1])), json.loads(row[2]), *row[3:]) for row in rows]

    def outcomes(self) -> dict[int, Outcome]:
        """Return what is known, by the number of the trial."""
        rows = self._rows("SELECT number, outcome FROM trials WHERE outcome IS NOT NULL ORDER BY number")
        with check_supported(self.path):
            return {number: Outcome(**json.loads(text)) for number, text in rows}

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
            raise DataError(f"cannot write {self.path}: {error}; nothing of the earlier results is lost") from None


@contextlib.contextmanager
def open_store(path: Path, identity: Mapping[str, Any]) -> Iterator[Store]:
    """Open the store of a sweep to write, and make it where there is none; within :func:`hold_store`.

    Raises:
        UsageError: the store is of another sweep; with what differs.
        DataError: it is no store, or it cannot be written.
    """
    if not path.exists() or not path.stat().st_size:
        _create(path, identity)
    with contextlib.closing(_connect(path)) as connection:
        store = Store(path, connection)
        found = sweep_differences(store.identity, json.loads(json.dumps(identity)))
        if found:
            more = f"; and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
            raise UsageError(
                f"{path} is the store of another sweep: {'; '.join(found[:_NAMED])}{more}. Give what it was started "
                "with to go on, or another --store"
            )
        yield store


@contextlib.contextmanager
def lock_store(path: Path) -> Iterator[None]:
    """Keep other sweeps from a store, by whatever link it is named, from before there is one.

    Raises:
        DataError: another sweep writes it, or its folder cannot be written.
    """
    where = path.resolve()
    busy = f"another sweep writes {path}: wait for it, or give another --store"
    unwritable = f"cannot write {path}: {{}}; give another --store"
    with file_lock(where.with_name(f".{where.name}.lock"), busy=busy, unwritable=unwritable):
        yield


def check_store_path(path: Path) -> None:
    """Refuse, before any work, a file that a sweep cannot write its results to.

    Raises:
        DataError: the folder is not there, or something that is no store lies in its place.
    """
    if not path.parent.is_dir():
        raise DataError(f"there is no folder {path.parent} for the store {path.name}: make it first")
    if path.is_dir():
        raise DataError(f"{path} is a folder, and a store is a file: give another --store")
    if path.exists() and path.stat().st_size:
        _connect(path).close()


@contextlib.contextmanager
def read_store(path: Path) -> Iterator[Store]:
    """Open a store to read, while a sweep writes it or not.

    Raises:
        DataError: there is none, or the file is something else.
    """
    if not path.is_file():
        raise DataError(f"no store of a sweep at {path}: `regnet-deploy sweep --store {path}` makes one")
    with contextlib.closing(_connect(path)) as connection:
        yield Store(path, connection)


def is_store(path: Path) -> bool:
    """Tell whether a file is SQLite's, by its first bytes."""
    try:
        with path.open("rb") as file:
            return file.read(16) == b"SQLite format 3\0"
    except OSError:
        return False


def sweep_differences(before: Any, now: Any, where: str = "") -> list[str]:
    """Return in words what is not the same in two pieces of JSON data."""
    if isinstance(before, dict) and isinstance(now, dict):
        if where == "space" and before.get("name") != now.get("name"):
            return [f"space is {now.get('name')} and was {before.get('name')}"]
        names = [*now, *(name for name in before if name not in now)]
        inner = [sweep_differences(before.get(n), now.get(n), f"{where} {n}".strip()) for n in names]
        return [each for found in inner for each in found]
    return [] if before == now else [f"{where} is {json.dumps(now)} and was {json.dumps(before)}"]


def _create(path: Path, identity: Mapping[str, Any]) -> None:
    """Make a store beside its place and put it there whole."""
    beside = path.with_name(f".{path.name}.incomplete")
    journal = beside.with_name(f"{beside.name}-journal")
    try:
        for left in (beside, journal):  # by one that was killed
            left.unlink(missing_ok=True)
        with contextlib.closing(sqlite3.connect(beside)) as connection, connection:
            connection.executescript(_TABLES)
            connection.execute(f"PRAGMA application_id = {_APPLICATION}")
            connection.execute("INSERT INTO about VALUES ('schema', ?)", (str(SCHEMA),))
            connection.execute("INSERT INTO about VALUES ('identity', ?)", (json.dumps(identity),))
        beside.replace(path)
    except (OSError, sqlite3.Error) as error:
        raise DataError(f"cannot write {path}: {error}; give another --store") from None


def _connect(path: Path) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(path, timeout=_PATIENCE_S)
    except sqlite3.Error as error:
        raise _damaged(path, error) from None
    try:
        _check(path, connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _check(path: Path, connection: sqlite3.Connection) -> None:
    """Refuse what is no store that this version reads."""
    try:
        connection.execute("PRAGMA synchronous = EXTRA")
        if connection.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION:
            raise DataError(f"{path} is not the store of a sweep: give the file that `regnet-deploy sweep` wrote")
        rows = connection.execute("SELECT value FROM about WHERE key = 'schema'").fetchall()
    except (sqlite3.Error, UnicodeDecodeError) as error:  # of what SQLite says of damaged text
        raise _damaged(path, error) from None
    with check_supported(path):
        schema = int(rows[0][0])
    if schema > SCHEMA:
        raise DataError(f"{path} was written by a newer regnet-deploy (schema {schema}, this one reads {SCHEMA})")


@contextlib.contextmanager
def check_supported(path: Path) -> Iterator[None]:
    """Say in one line that what a file holds is not what a sweep writes."""
    try:
        yield
    except (LookupError, TypeError, ValueError, UsageError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> DataError:
    said = " ".join(f"{error}".split())
    return DataError(
        f"{path} cannot be read as the store of a sweep: {said:.200}; take it from a copy, or begin a new one"
    )
