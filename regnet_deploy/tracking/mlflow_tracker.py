"""MLflow: a run in the store that MLFLOW_TRACKING_URI names, or else in MLflow's default, ``mlflow.db`` here.

Values are collected and sent together, at most every few seconds: a request to a server would delay every step. What
could not be sent is sent again later.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, TypeVar
from urllib.parse import urlsplit

from regnet_deploy import __version__
from regnet_deploy.errors import UsageError, require
from regnet_deploy.tracking.tracker import (
    PROJECT,
    Status,
    TrackedRun,
    TrackerError,
    one_line,
    store_run,
    stored_run,
)

_NAME = "mlflow"
#: Seconds between requests, and at most between two attempts when they fail.
_INTERVAL_S, _LONGEST_INTERVAL_S = 5.0, 300.0
#: Values of one request, and values that are kept if none succeeds; the oldest ones are dropped.
_IN_REQUEST, _KEPT = 1000, 100_000
#: Characters of a parameter that MLflow stores.
_LONGEST_TEXT = 6000
#: Defaults of MLflow's settings. Its own wait for minutes in each request, and report its usage to its makers.
_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
#: Codes of errors that come again however often a request is repeated.
_USER_ERRORS = ("INVALID_PARAMETER_VALUE", "PERMISSION_DENIED", "UNAUTHENTICATED", "ENDPOINT_NOT_FOUND")
_STATUS: dict[Status, str] = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
_Result = TypeVar("_Result")


class MlflowTracker:
    """A run of MLflow."""

    def __init__(self, client: Any, run_id: str, place: str) -> None:
        self.place = place
        self._client, self._run_id = client, run_id
        self._metric = require("mlflow.entities", _NAME).Metric
        self._waiting: list[Any] = []
        self._interval_s = _INTERVAL_S
        self._next_s = time.monotonic() + self._interval_s

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Collect values, and send all of them when the last request is long enough ago."""
        now_ms = int(time.time() * 1000)
        self._waiting += [self._metric(name, float(value), now_ms, step) for name, value in values.items()]
        del self._waiting[:-_KEPT]
        if time.monotonic() >= self._next_s:
            self._send()

    def result(self, values: Mapping[str, str | int | float]) -> None:
        """Send numbers as metrics and texts as tags."""
        step = self._waiting[-1].step if self._waiting else 0
        numbers = {name: value for name, value in values.items() if not isinstance(value, str)}
        self.scalars(numbers, step)
        self._send()
        for name, value in values.items():
            if isinstance(value, str):
                _call(self._client.set_tag, self._run_id, name, value)

    def close(self, status: Status) -> None:
        """Send what is left, and the status of the run."""
        self._send()
        _call(self._client.set_terminated, self._run_id, _STATUS[status])

    def _send(self) -> None:
        try:
            while self._waiting:
                _call(self._client.log_batch, self._run_id, metrics=self._waiting[:_IN_REQUEST])
                del self._waiting[:_IN_REQUEST]
            self._interval_s = _INTERVAL_S
        except TrackerError:
            self._interval_s = min(_LONGEST_INTERVAL_S, 2 * self._interval_s)
            raise
        finally:
            self._next_s = time.monotonic() + self._interval_s


def load_mlflow() -> ModuleType:
    """Import MLflow with settings for a training.

    Raises:
        MissingExtra: it is not installed, or cannot use its default store without SQLAlchemy.
    """
    for name, value in _SETTINGS.items():  # it reads them while it is imported
        os.environ.setdefault(name, value)
    mlflow = require("mlflow", _NAME)
    require("sqlalchemy", _NAME)
    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        logging.getLogger("mlflow").setLevel(logging.WARNING)
    return mlflow


def open_mlflow(run: TrackedRun) -> MlflowTracker:
    """Start a run of MLflow, or continue that of an interrupted run.

    MLflow's variables of the environment hold: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, MLFLOW_RUN_ID and others.

    Raises:
        UsageError: the store is not one that MLflow can use, or refuses the run.
        TrackerError: the store cannot be reached or written.
        MissingExtra: MLflow is not installed.
    """
    mlflow = load_mlflow()
    known = stored_run(run, _NAME)
    uri = os.environ.get("MLFLOW_TRACKING_URI") or known.get("uri") or mlflow.get_tracking_uri()
    try:
        shown = _without_password(uri)
    except ValueError as error:
        raise UsageError(f"MLFLOW_TRACKING_URI is no address of a store: {error}") from None
    try:
        client = _call(require("mlflow.tracking", _NAME).MlflowClient, tracking_uri=uri)
        experiment = _experiment(client)
        # After an interruption it is the run of the interrupted process.
        run_id = known.get("run_id") if known.get("uri") == shown else None
        run_id = run_id or os.environ.get("MLFLOW_RUN_ID")
        if run_id is None or not _reopen(client, run_id):
            tags = {"regnet-deploy": __version__, "mlflow.source.name": "regnet-deploy"}
            name = os.environ.get("MLFLOW_RUN_NAME") or run.name
            run_id = _call(client.create_run, experiment.experiment_id, run_name=name, tags=tags).info.run_id
        if known.get("run_id") != run_id:
            param = require("mlflow.entities", _NAME).Param
            given = [param(name, str(value)[:_LONGEST_TEXT]) for name, value in run.parameters.items()]
            _call(client.log_batch, run_id, params=given)
            store_run(run, _NAME, {"uri": shown, "run_id": run_id})
    except (_UserError, _MissingError) as error:
        raise UsageError(
            f"MLflow cannot use {shown}: {str(error).replace(uri, shown)}; set MLFLOW_TRACKING_URI to another store, "
            "or leave out --track mlflow"
        ) from None
    except TrackerError as error:
        raise TrackerError(str(error).replace(uri, shown)) from None
    return MlflowTracker(client, run_id, f"run {run_id} of experiment {experiment.name} in {shown}")


def _experiment(client: Any) -> Any:
    number = os.environ.get("MLFLOW_EXPERIMENT_ID")
    if number:
        return _call(client.get_experiment, number)
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
    found = _call(client.get_experiment_by_name, name)
    return found or _call(client.get_experiment, _call(client.create_experiment, name))


def _reopen(client: Any, run_id: str) -> bool:
    """Set a run to running again; return False if the store has it no more."""
    try:
        _call(client.update_run, run_id, "RUNNING")
    except _MissingError:
        return False
    return True


class _UserError(TrackerError):
    """A request that comes to nothing, however often it is repeated."""


class _MissingError(TrackerError):
    """The store does not have what is asked for."""


def _call(function: Callable[..., _Result], *arguments: Any, **named: Any) -> _Result:
    """Call a function of MLflow.

    Raises:
        _UserError: it comes to nothing, however often it is repeated.
        TrackerError: it did not succeed this time.
    """
    exceptions, database = require("mlflow.exceptions", _NAME), require("sqlalchemy.exc", _NAME)
    try:
        return function(*arguments, **named)
    except exceptions.MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise _MissingError(one_line(error)) from None
        kind = _UserError if error.error_code in _USER_ERRORS else TrackerError
        raise kind(one_line(error)) from None
    except (OSError, database.OperationalError) as error:  # those of requests too; a database that is not there
        raise TrackerError(_first_line(error)) from None
    # A file that is no database, an unknown scheme, a missing driver: MLflow passes these on as they are.
    except (database.SQLAlchemyError, ImportError, ValueError) as error:
        raise _UserError(_first_line(error)) from None


def _first_line(error: BaseException) -> str:
    """Return what is wrong, without the SQL and the links that SQLAlchemy adds in further lines."""
    return str(error).strip().partition("\n")[0][:500] or type(error).__name__


def _without_password(uri: str) -> str:
    parts = urlsplit(uri)
    return uri.replace(parts.netloc, parts.netloc.rpartition("@")[2], 1) if "@" in parts.netloc else uri
