"""Networks by their measured time on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING

from regnet_deploy.api.arguments import PATH, expect
from regnet_deploy.errors import UsageError

if TYPE_CHECKING:
    from regnet_deploy.latency.calibration import Calibration
    from regnet_deploy.latency.candidates import TimeLimits
    from regnet_deploy.latency.measuring import Setup
    from regnet_deploy.progress import Progress
    from regnet_deploy.selection.budget import Budget
    from regnet_deploy.selection.selection import Selection


#: Time for which the machine is watched before anything is measured, s.
_WATCHED_S = 0.5


def select_by_time(
    limits: TimeLimits,
    budget: Budget,
    setup: Setup,
    *,
    minutes: float = 3.0,
    anyway: bool = False,
    store: str | Path | None = None,
    progress: Progress | None = None,
) -> Selection:
    """Return the network of the lowest expected error that keeps limits of time when it is measured here.

    A latency model of this machine makes the shortlist. Where the store of measurements has too few networks for one,
    they are measured first (a few minutes, once for each setup). The shortlist is exported with random weights and
    measured in turns, until no candidate would be better, and the chosen network is measured again in a process of its
    own.

    Args:
        limits: what the network must keep.
        budget: family, resolution, classes, bounds and limits on parameters and activations; its MACs are not used.
        setup: runtime, precision, batch, threads and device.
        minutes: time after which no more candidates are measured, without the calibration.
        anyway: measure even though the machine is busy or throttled.
        store: file of measurements; None: the user's.
        progress: receives the steps.

    Raises:
        UsageError: no network keeps the limits, the machine is busy, or the setup does not run here.
        MissingExtra: a library is not installed.
        DataError: the store cannot be used.
    """
    from regnet_deploy.latency.calibration import calibrate
    from regnet_deploy.latency.candidates import TimeLimits
    from regnet_deploy.latency.choice import select_by_time as choose
    from regnet_deploy.latency.store import open_measurements

    expect("limits", limits, TimeLimits, "a TimeLimits such as rd.TimeLimits(p50_ms=5)")
    _check_quiet(setup, anyway=anyway)
    with open_measurements(_path(store), progress) as opened:
        calibration = calibrate(setup, opened, disturbed=anyway, progress=progress)
        return choose(budget, limits, calibration, opened, minutes=minutes, progress=progress)


def calibrate(
    setups: Sequence[Setup],
    *,
    networks: int = 30,
    minutes: float | None = 10.0,
    anyway: bool = False,
    store: str | Path | None = None,
    progress: Progress | None = None,
) -> list[Calibration]:
    """Measure networks that differ as much as possible, and return a latency model of each setup.

    What the store has is not measured again, so that an interrupted calibration goes on.

    Args:
        setups: runtimes and precisions with batch, resolution, threads and device.
        networks: number of networks of each setup, 8 or more.
        minutes: time after which no more networks are measured, for all setups together; None: no limit.
        anyway: measure even though the machine is busy or throttled.
        store: file of measurements; None: the user's.
        progress: receives the networks done.

    Raises:
        UsageError: too few networks were measured, the machine is busy, or a setup does not run here.
        MissingExtra: a library is not installed.
        DataError: the store cannot be used.
    """
    from regnet_deploy.latency.calibration import calibrate as measure
    from regnet_deploy.latency.measuring import installed_execution
    from regnet_deploy.latency.store import open_measurements

    if not setups:
        raise UsageError("calibrate needs a setup or more, such as rd.Setup(precision='fp32')")
    for setup in setups:
        installed_execution(setup)  # raises before the minutes that the setups before it take
    for setup in setups:
        _check_quiet(setup, anyway=anyway)
    with open_measurements(_path(store), progress) as opened:
        each = None if minutes is None else minutes / len(setups)
        return [
            measure(setup, opened, count=networks, minutes=each, disturbed=anyway, progress=progress)
            for setup in setups
        ]


def _check_quiet(setup: Setup, *, anyway: bool) -> None:
    from regnet_deploy.latency.machine_state import measuring_refused_reason, watch_machine

    if anyway:
        return
    watch = watch_machine(setup.device)
    time.sleep(_WATCHED_S)
    reason = measuring_refused_reason(watch.state())
    if reason:
        raise UsageError(f"{reason}: stop the other programs, or measure nevertheless with --anyway")


def _path(store: str | Path | None) -> Path | None:
    expect("store", store, (*PATH, NoneType), "the file of measurements or None")
    return None if store is None else Path(store)
