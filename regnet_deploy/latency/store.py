"""The store of measured times: one SQLite file of the user, which several processes may read and write at once.

Each measurement is written in one transaction, which is on the disk when :meth:`MeasurementStore.add` returns, so a
process that is killed loses at most the measurement that is running. Measurements are only added, never changed.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from regnet_deploy.bundle.record import Record, from_json
from regnet_deploy.errors import BundleError, DataError
from regnet_deploy.latency.json_lines import VARIABLE, check_schema, json_lines, read_json_lines
from regnet_deploy.latency.measurement import SCHEMA, Execution, MeasuredMachine, Measurement, canonical
from regnet_deploy.output_file import check_regular, write_output_file
from regnet_deploy.progress import Progress
from regnet_deploy.space.network import Network
from regnet_deploy.user_data import data_folder

#: The application id in the header of the SQLite file, "rgnm".
_APPLICATION = 0x72676E6D
_LOCK_TIMEOUT_S = 30.0
_OTHER = f"name another file by {VARIABLE}"

_TABLES = (
    """
    CREATE TABLE measurements (
        digest TEXT PRIMARY KEY,
        machine TEXT NOT NULL,
        execution TEXT NOT NULL,
        network TEXT NOT NULL,
        resolution INTEGER NOT NULL,
        classes INTEGER NOT NULL,
        batch INTEGER NOT NULL,
        interval_ms REAL,
        date TEXT NOT NULL,
        record TEXT NOT NULL
    )
    """,
    "CREATE INDEX by_setting ON measurements (machine, execution, batch, resolution, network)",
    f"PRAGMA application_id = {_APPLICATION}",
    f"PRAGMA user_version = {SCHEMA}",
)


class MeasurementStore:
    """An open store; see :func:`open_measurements` and :func:`read_measurements`."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection

    def add(self, measurement: Measurement) -> bool:
        """Add a measurement; it is on the disk when this returns.

        Returns:
            False if the store has it already.

        Raises:
            DataError: the file cannot be written; what it has is intact.
        """
        return self.add_all((measurement,)) == 1

    def add_all(self, measurements: Iterable[Measurement]) -> int:
        """Add measurements in one transaction: all of them, or none if one fails or the process ends meanwhile.

        Returns:
            The number of those that the store did not have.

        Raises:
            DataError: as for :meth:`add`.
        """
        with self._writing() as connection:
            before = connection.total_changes
            for one in measurements:
                connection.execute(
                    "INSERT OR IGNORE INTO measurements VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        one.digest,
                        _key(one.machine),
                        _key(one.execution),
                        _network_key(one.network),
                        one.resolution,
                        one.classes,
                        one.batch,
                        one.protocol.interval_ms,
                        one.date,
                        canonical(one.to_json()),
                    ),
                )
            return connection.total_changes - before

    def find(
        self,
        *,
        execution: Execution,
        machine: MeasuredMachine,
        network: Network | None = None,
        resolution: int | None = None,
        classes: int | None = None,
        batch: int | None = None,
        interval_ms: float | None = None,
        disturbed: bool = False,
    ) -> list[Measurement]:
        """Return the measurements of a setting, the newest first.

        Execution, machine and pace are always those that are given, so that settings never mix. Of network,
        resolution, classes and batch, those that are not given can be any: the caller tells them apart.

        Args:
            execution: how the network was run, the version of the runtime included.
            machine: on which, with everything that its owner has set.
            network: the network.
            resolution: height and width of the images, pixels.
            classes: outputs of the linear layer.
            batch: images of an inference.
            interval_ms: pace; None: inferences back to back.
            disturbed: return also those that were measured while the machine was busy or throttled.

        Raises:
            DataError: the file is damaged.
        """
        wanted = {
            "machine": _key(machine),
            "execution": _key(execution),
            "network": None if network is None else _network_key(network),
            "resolution": resolution,
            "classes": classes,
            "batch": batch,
        }
        given = {name: value for name, value in wanted.items() if value is not None}
        where = "".join(f"{name} = ? AND " for name in given)
        found = self._select(f"WHERE {where} interval_ms IS ?", (*given.values(), interval_ms))
        return [each for each in found if disturbed or not each.state.flags]

    def all(self) -> list[Measurement]:
        """Return all measurements, of all machines and settings, the newest first.

        Raises:
            DataError: the file is damaged.
        """
        return self._select("", ())

    def merge(self, other: Path) -> int:
        """Add the measurements of another store, or of a file that :meth:`export_jsonl` wrote; all of them or none.

        Returns:
            The number of those that this store did not have.

        Raises:
            DataError: the file does not exist, is neither, or was written by a newer version; or this store cannot be
                written.
        """
        if not os.path.isfile(other):  # False also where Path would raise
            raise DataError(
                f"no file of measurements at {other}: `regnet-deploy measurements --export FILE` writes one"
            )
        try:
            with other.open("rb") as file:
                is_store = file.read(16) == b"SQLite format 3\0"
        except OSError as error:
            raise DataError(f"cannot read {other}: {error.strerror}") from None
        if not is_store:
            return self.import_jsonl(other)
        with read_measurements(other) as found:
            return self.add_all(found.all())

    def export_jsonl(self, path: Path) -> int:
        """Write all measurements as JSON lines, the oldest first, after a line with the schema.

        Returns:
            The number of measurements.

        Raises:
            UsageError: the file cannot be written.
            DataError: the store is damaged.
        """
        measurements = self.all()[::-1]
        write_output_file(path, json_lines(measurements))
        return len(measurements)

    def import_jsonl(self, path: Path) -> int:
        """Add the measurements of a file that :meth:`export_jsonl` wrote; all of them or none.

        Returns:
            The number of those that the store did not have.

        Raises:
            DataError: the file is not one, was written by a newer version, or the store cannot be written.
        """
        return self.add_all(read_json_lines(path))

    def _select(self, where: str, values: tuple[Any, ...]) -> list[Measurement]:
        query = f"SELECT record FROM measurements {where} ORDER BY date DESC, rowid DESC"
        try:
            rows = self._connection.execute(query, values).fetchall()
            return [from_json(json.loads(text), Measurement) for (text,) in rows]
        except (sqlite3.Error, TypeError, ValueError, RecursionError, BundleError) as error:
            raise _damaged(self.path, error) from None

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        try:
            with _transaction(self._connection):
                yield self._connection
        except sqlite3.Error as error:
            raise DataError(f"cannot write {self.path}: {error}; earlier measurements are intact, {_OTHER}") from None


def measurements_path(path: Path | None = None) -> Path:
    """Return the path of the store: the given one, else that of the environment, else below the data of the user."""
    named = path or os.environ.get(VARIABLE)
    return Path(named) if named else data_folder() / "measurements.sqlite"


@contextlib.contextmanager
def open_measurements(path: Path | None = None, progress: Progress | None = None) -> Iterator[MeasurementStore]:
    """Open the store for reading and writing, and create it if it does not exist.

    Where the data folder of the user cannot be written, the work goes on: a message says so, the store has what can be
    read of it, and what is added is lost at the end.

    Args:
        path: of the store; None: see :func:`measurements_path`.
        progress: receives that message.

    Raises:
        UsageError: the path, from the caller or the environment, is not a regular file in a folder.
        DataError: the file is not such a store, is damaged or was written by a newer version; or it was named and
            cannot be written.
    """
    place = measurements_path(path)
    is_default = path is None and not os.environ.get(VARIABLE)
    reason = _unwritable_reason(place if is_default else check_regular(place), make_folder=is_default)
    if reason is None:
        connection = _connect(check_regular(place), "rwc")
    elif is_default:
        if progress is not None:
            progress.message(f"measurements are not kept: cannot write {place}: {reason}; {_OTHER}")
        connection = _copy_in_memory(place)
    else:
        raise DataError(f"cannot write {place}: {reason}; {_OTHER}")
    with contextlib.closing(connection):
        yield MeasurementStore(place, connection)


@contextlib.contextmanager
def read_measurements(path: Path | None = None) -> Iterator[MeasurementStore]:
    """Open the store for reading; where there is none, it is empty, and none is created.

    Raises:
        DataError: the file is not such a store, is damaged or was written by a newer version.
    """
    place = measurements_path(path)
    connection = _connect(place, "ro") if os.path.isfile(place) else _copy_in_memory(place)
    with contextlib.closing(connection):
        yield MeasurementStore(place, connection)


def _unwritable_reason(path: Path, *, make_folder: bool) -> str | None:
    """Return why a file cannot be written or created here, or None."""
    try:
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            return "it is a folder"
        for each in (path, path.resolve().parent):
            if (each == path and not path.exists()) or os.access(each, os.W_OK):
                continue
            return f"{each} may not be written"
    except OSError as error:
        return error.strerror
    return None


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    """Open a store and check it; with the mode ``rwc`` a new or empty file becomes one."""
    try:
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}", timeout=_LOCK_TIMEOUT_S, isolation_level=None, uri=True
        )
    except sqlite3.Error as error:
        raise _damaged(path, error) from None
    try:
        connection.execute("PRAGMA synchronous = EXTRA")
        if mode == "rwc" and _is_empty(connection):
            _create(path, connection)
        application, schema = (
            connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
        )
        if application != _APPLICATION:
            raise DataError(f"{path} is not a store of measurements: {_OTHER}")
        check_schema(path, schema)
    except (sqlite3.Error, UnicodeDecodeError) as error:
        connection.close()
        raise _damaged(path, error) from None
    except BaseException:
        connection.close()
        raise
    return connection


def _is_empty(connection: sqlite3.Connection) -> bool:
    return bool(connection.execute("PRAGMA schema_version").fetchone()[0] == 0)


def _create(path: Path, connection: sqlite3.Connection) -> None:
    """Create the tables in one transaction, if no other process has done so meanwhile."""
    try:
        with _transaction(connection):
            if _is_empty(connection):
                for statement in _TABLES:
                    connection.execute(statement)
    except sqlite3.OperationalError as error:
        raise DataError(f"cannot write {path}: {error}; {_OTHER}") from None


def _copy_in_memory(path: Path) -> sqlite3.Connection:
    """Return a store in memory with what the file has; empty if there is none."""
    memory = sqlite3.connect(":memory:", isolation_level=None)
    try:
        if os.path.isfile(path) and os.path.getsize(path):
            with contextlib.closing(_connect(path, "ro")) as source:
                source.backup(memory)
        else:
            _create(path, memory)
    except sqlite3.Error as error:
        memory.close()
        raise _damaged(path, error) from None
    except BaseException:
        memory.close()
        raise
    return memory


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Write in one transaction; other processes that write wait for its end."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite itself ends it after some errors, such as a full disk
            connection.execute("ROLLBACK")
        raise


def _key(record: Record) -> str:
    """Return a record as text that is the same for equal records."""
    return canonical(from_json(record.to_json(), type(record)).to_json())


def _network_key(network: Network) -> str:
    return canonical(from_json(network.to_json(), Network).to_json())


def _damaged(path: Path, error: Exception) -> DataError:
    reason = " ".join(f"{error}".split())
    return DataError(
        f"{path} cannot be read as a store of measurements: {reason:.200}; restore it from a copy, or {_OTHER}"
    )
