"""Chooses a network by its time on this machine: a model makes the shortlist, and measurements decide.

The expectation of a candidate is the top-1 error of its family at its MACs (``selection/trends.py``): shapes that are
as likely as the least likely published network are not told apart by it, so that among these the faster one is better.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.errors import UsageError
from regnet_deploy.latency.calibration import Calibration
from regnet_deploy.latency.candidates import MARGIN, Candidate, TimeLimits, timed_candidates
from regnet_deploy.latency.fresh_process import measure_in_fresh_process
from regnet_deploy.latency.measurement import Measurement
from regnet_deploy.latency.measuring import Setup, measure_networks
from regnet_deploy.latency.store import MeasurementStore
from regnet_deploy.progress import NoProgress, Progress
from regnet_deploy.selection.budget import Budget
from regnet_deploy.selection.candidate_table import CandidateTable
from regnet_deploy.selection.selection import Selection, budget_expectation
from regnet_deploy.selection.timed_ranking import TimedCandidate, TimedRanking
from regnet_deploy.selection.trends import fit_trends
from regnet_deploy.space.published import baselines

Float = NDArray[np.float64]

#: Share of the limit from which on a network uses it.
USED = 0.93
#: Networks that are measured at once.
_SHORTLIST = 6
#: Expected errors closer than this, in percentage points, are not worth another measurement.
_WORTH = 0.05


def select_by_time(
    budget: Budget,
    limits: TimeLimits,
    calibration: Calibration,
    store: MeasurementStore,
    *,
    minutes: float = 3.0,
    progress: Progress | None = None,
) -> Selection:
    """Return a selection whose first candidate is the best that keeps the limits when it is measured here.

    Args:
        budget: family, resolution, classes, bounds and limits on parameters and activations; its MACs are not used.
        limits: what the network must keep.
        calibration: the latency model of the setup.
        store: receives all measurements.
        minutes: time after which no further candidates are measured.
        progress: receives the rounds.

    Raises:
        UsageError: no network keeps the limits; the message has the nearest and its time.
        MissingExtra: a library is not installed.
    """
    progress, setup = progress or NoProgress(), calibration.setup
    progress.step("candidates by predicted time")
    options, considered = timed_candidates(budget, limits, calibration)
    deadline = time.monotonic() + 60 * minutes
    measured: dict[int, Measurement] = {}  # index of the option -> its measurement

    def measure(indices: Sequence[int]) -> None:
        found = measure_networks([options[i].network for i in indices], setup, progress=progress)
        store.add_all(found)
        measured.update(zip(indices, found, strict=True))

    while True:
        ranked = _ranked(options, measured, limits)
        wanted = _shortlist(options, measured, limits, setup.batch, ranked[0] if ranked else None)
        if wanted and (not measured or time.monotonic() < deadline):
            progress.step(f"measuring {len(wanted)} more candidate{'s' * (len(wanted) > 1)}")
            measure(wanted)
            continue
        if not ranked:
            raise UsageError(_nothing_keeps(options, measured, limits, setup, stopped=bool(wanted)))
        progress.step("measuring the chosen network in a process of its own")
        final = measure_in_fresh_process(options[ranked[0]].network, setup)
        store.add(final)
        if limits.keeps(final):
            break
        measured[ranked[0]] = final  # it is no longer among those that keep the limits
    order = [*ranked, *(i for i in measured if i not in ranked)]
    return _selection(budget, limits, calibration, options, measured, order, final, considered, stopped=bool(wanted))


def _ranked(options: Sequence[Candidate], measured: dict[int, Measurement], limits: TimeLimits) -> list[int]:
    """Return the measured options that keep the limits, the best first."""
    kept = [i for i, each in measured.items() if limits.keeps(each, MARGIN)]

    def objective(i: int) -> tuple[float, float]:
        error, p50 = options[i].error, measured[i].times.p50_ms
        return (p50, error) if limits.like is not None else (error, p50)

    return sorted(kept, key=objective)


def _shortlist(
    options: Sequence[Candidate],
    measured: dict[int, Measurement],
    limits: TimeLimits,
    batch: int,
    best: int | None,
) -> list[int]:
    """Return what to measure next: the options that would be better than the best one if they are as fast as believed.

    Predictions are corrected by the median ratio of the measured times so far, for each family. Where the 99th
    percentile or the throughput is the tighter limit, the ratio is that of the median that would use as much of it. Of
    a level of MACs, one is taken at a time, so that the shortlist has different sizes and not neighbors.
    """
    longest = limits.longest_ms(batch)
    deciding = {
        i: each.times.p50_ms if limits.like is not None else limits.used(each) * longest for i, each in measured.items()
    }
    correction = {family: _correction(options, deciding, family) for family in "xy"}
    believed = {i: each.predicted_ms * correction[each.level[0]] for i, each in enumerate(options) if i not in measured}
    if limits.like is not None:
        target = min((each.times.p50_ms for each in measured.values()), default=math.inf)
        better = sorted((i for i in believed if believed[i] < 0.98 * target), key=believed.__getitem__)
    else:
        longest *= 1 - MARGIN
        error = math.inf if best is None else options[best].error - _WORTH
        better = sorted(
            (i for i in believed if believed[i] <= longest and options[i].error < error),
            key=lambda i: (options[i].error, believed[i]),
        )
        if not better and best is None and believed:  # none is fast enough by prediction: try the fastest
            better = sorted(believed, key=believed.__getitem__)
            if measured:
                better = [i for i in better if believed[i] < min(deciding.values())]
    chosen: list[int] = []
    levels: set[tuple[str, int]] = set()
    for i in better:
        if options[i].level not in levels:
            levels.add(options[i].level)
            chosen.append(i)
    return chosen[:_SHORTLIST]


def _correction(options: Sequence[Candidate], deciding_ms: dict[int, float], family: str) -> float:
    ratios = [ms / options[i].predicted_ms for i, ms in deciding_ms.items() if options[i].level[0] == family]
    return float(np.median(ratios)) if ratios else 1.0


def _nothing_keeps(
    options: Sequence[Candidate],
    measured: dict[int, Measurement],
    limits: TimeLimits,
    setup: Setup,
    *,
    stopped: bool,
) -> str:
    nearest = min(measured, key=lambda i: limits.used(measured[i]))
    times, option = measured[nearest].times, options[nearest]
    return (
        f"none of {len(measured)} measured networks keeps {limits.conditions}, with {setup}: the nearest, of "
        f"{option.table.macs[option.row] / 1e6:.0f} MMACs, takes {times.p50_ms:.2f} ms (99th percentile "
        f"{times.p99_ms:.2f} ms). {'Give more --minutes, as others were left, raise' if stopped else 'Raise'} the "
        "limit, lower --resolution, or choose another --runtime or --precision"
    )


def _selection(
    budget: Budget,
    limits: TimeLimits,
    calibration: Calibration,
    options: Sequence[Candidate],
    measured: dict[int, Measurement],
    order: Sequence[int],
    final: Measurement,
    considered: int,
    *,
    stopped: bool,
) -> Selection:
    best = options[order[0]]
    family = best.level[0]
    rows = [options[i].table.take(np.array([options[i].row])) for i in order if options[i].level[0] == family]
    candidates = CandidateTable.join(rows)
    times = final.times
    why_slower, used = None, limits.used(final)
    if limits.like is None and used < USED:
        why = (
            "--minutes ended before the other candidates were measured"
            if stopped
            else "no other candidate whose expected error is lower kept the limits or is predicted to keep them"
        )
        why_slower = f"it uses {used:.0%} of the limit: {why}"
    ranking = TimedRanking(
        limits=f"{limits}",
        setup=f"{calibration.setup}",
        p50_ms=times.p50_ms,
        p99_ms=times.p99_ms,
        disturbances=final.state.flags,
        considered=considered,
        model_networks=calibration.model.networks,
        model_error=calibration.model.mean_error,
        candidates=tuple(_timed_candidate(options[i], measured[i], limits) for i in order),
        why_slower=why_slower,
    )
    reference_macs = float(candidates.reference_macs[0])
    met = replace(budget, macs=float(candidates.macs[0]))
    return Selection(
        budget=met,
        family=family,
        candidates=candidates,
        trends=fit_trends(baselines(family)),
        expectation=budget_expectation(met, family, reference_macs),
        timed_ranking=ranking,
    )


def _timed_candidate(option: Candidate, measured: Measurement, limits: TimeLimits) -> TimedCandidate:
    network = option.network
    return TimedCandidate(
        family=option.level[0],
        macs=int(option.table.macs[option.row]),
        depths=network.depths,
        widths=network.widths,
        group_widths=network.group_widths,
        expected_error=round(option.error, 3),
        predicted_ms=option.predicted_ms,
        extrapolated=option.extrapolated,
        p50_ms=measured.times.p50_ms,
        p99_ms=measured.times.p99_ms,
        keeps=limits.keeps(measured, MARGIN),
    )
