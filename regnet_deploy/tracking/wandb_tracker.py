"""Weights & Biases: a run that its own process uploads, or keeps on the disk with ``WANDB_MODE=offline``."""

from __future__ import annotations

import os
import shlex
import uuid
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from regnet_deploy.errors import UsageError, require
from regnet_deploy.tracking.tracker import PROJECT, Status, TrackedRun, TrackerError, one_line, store_run, stored_run

_NAME = "wandb"
#: Variable of the environment -> setting and its value where the variable is not set. W&B's own would wait for minutes
#: where there is no network, and take over the terminal.
_SETTINGS: dict[str, tuple[str, Any]] = {
    "WANDB_SILENT": ("silent", True),
    "WANDB_CONSOLE": ("console", "off"),
    "WANDB_INIT_TIMEOUT": ("init_timeout", 30.0),
    "WANDB_FINISH_TIMEOUT": ("finish_timeout", 60.0),
}
_EXIT_CODES: dict[Status, int] = {"finished": 0, "interrupted": 130, "failed": 1}


class WandbTracker:
    """A run of Weights & Biases."""

    def __init__(self, run: Any, place: str) -> None:
        self._run, self.place = run, place
        self._errors = (require("wandb.errors", _NAME).Error, OSError)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Hand values to W&B's process."""
        # W&B's own step may not go back, as it does where a run continues from its checkpoint.
        self._call("log", {"step": step, **values})

    def result(self, values: Mapping[str, str | int | float]) -> None:
        """Write the final values into the summary of the run."""
        self._call("summary", dict(values))

    def close(self, status: Status) -> None:
        """Wait until W&B's process has sent what is left, a minute at most."""
        self._call("finish", _EXIT_CODES[status])

    def _call(self, what: str, value: Any) -> None:
        try:
            if what == "summary":
                self._run.summary.update(value)
            else:
                getattr(self._run, what)(value)
        except self._errors as error:
            raise TrackerError(one_line(error)) from None


def load_wandb() -> ModuleType:
    """Import W&B, which then does not report its errors to its makers.

    Raises:
        MissingExtra: it is not installed.
    """
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    return require("wandb", _NAME)


def open_wandb(run: TrackedRun) -> WandbTracker:
    """Start a run of Weights & Biases, or continue that of an interrupted run.

    Variables of the environment hold: WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY, WANDB_DIR, WANDB_RUN_ID and others.

    Raises:
        UsageError: there is no API key, or a variable has a wrong value.
        TrackerError: W&B cannot be reached.
        MissingExtra: W&B is not installed.
    """
    wandb = load_wandb()
    environment = os.environ.get
    known = stored_run(run, _NAME)
    run_id = known.get("run_id") or environment("WANDB_RUN_ID") or uuid.uuid4().hex[:16]
    store_run(run, _NAME, {"run_id": run_id})
    settings = {name: value for variable, (name, value) in _SETTINGS.items() if not environment(variable)}
    try:
        opened = wandb.init(
            id=run_id,
            resume="allow",
            project=environment("WANDB_PROJECT") or PROJECT,
            name=environment("WANDB_NAME") or run.name,
            dir=environment("WANDB_DIR") or str(run.directory),
            config=dict(run.parameters),
            settings=wandb.Settings(**settings),
        )
        opened.define_metric("step", hidden=True)
        opened.define_metric("*", step_metric="step")
    except (wandb.errors.UsageError, ValueError) as error:
        raise UsageError(
            f"W&B cannot be used: {one_line(error)} (WANDB_MODE=offline keeps the run on the disk; or leave out "
            "--track wandb)"
        ) from None
    except (wandb.errors.Error, OSError) as error:
        raise TrackerError(one_line(error)) from None
    return WandbTracker(opened, _place(opened))


def _place(run: Any) -> str:
    if run.settings.mode == "offline":
        return f"offline, to be sent with: wandb sync {shlex.quote(run.settings.sync_dir)}"
    return str(run.url or f"run {run.id}")
