"""Measures a few networks that differ as much as possible, and fits the latency model of this machine to them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.errors import UsageError
from regnet_deploy.latency.machine_state import measured_machine
from regnet_deploy.latency.measurement import Measurement
from regnet_deploy.latency.measuring import TOGETHER, Setup, installed_execution, measure_networks
from regnet_deploy.latency.model import MIN_NETWORKS, LatencyModel, fit_latency_model
from regnet_deploy.latency.operators import network_work
from regnet_deploy.latency.store import MeasurementStore
from regnet_deploy.progress import NoProgress, Progress
from regnet_deploy.selection.ridge_regression import rank_correlation
from regnet_deploy.space.enumeration import Bounds, ConstrainedSpace, regnets_between
from regnet_deploy.space.network import SE_RATIO, Network, default_stem_stride
from regnet_deploy.space.population import Population

Float = NDArray[np.float64]

#: Number of networks of a calibration.
NETWORKS = 30
#: Smallest group width of networks whose time is predicted: narrower ones have kernels of their own in every runtime,
#: which few networks cannot calibrate, and no published RegNet has them.
MIN_GROUP_WIDTH = 8
#: MACs at 224 pixels of the networks of a calibration, and the number of levels between, evenly in the logarithm.
LEAST_MACS, MOST_MACS, _LEVELS = 5e7, 4e9, 16
#: Networks of a level and family from which the calibration chooses.
_DRAWN = 60
_SEED = 0


@dataclass(frozen=True)
class Calibration:
    """The latency model of a setup, and what it is fitted to."""

    setup: Setup
    model: LatencyModel
    measurements: tuple[Measurement, ...]

    @property
    def rank_correlation(self) -> float:
        """Spearman's coefficient of the measured times and those that models of the other networks predict."""
        measured = np.array([each.times.p50_ms for each in self.measurements])
        return rank_correlation((1 + self.model.errors) * measured, measured)


def calibrate(
    setup: Setup,
    store: MeasurementStore,
    *,
    count: int = NETWORKS,
    most_macs: float = MOST_MACS,
    minutes: float | None = None,
    disturbed: bool = False,
    progress: Progress | None = None,
) -> Calibration:
    """Measure the networks of a calibration that the store does not have, and fit the model.

    Every measurement is in the store at once, so that an interrupted calibration continues where it ended.

    Args:
        setup: how networks are run.
        store: of measurements.
        count: number of networks.
        most_macs: of the largest of them, at 224 pixels.
        minutes: time after which no further networks are measured; None: no limit.
        disturbed: also use what was measured while the machine was busy or throttled.
        progress: receives the networks done.

    Raises:
        MissingExtra: a library is not installed.
        UsageError: too few networks were measured in that time, or the setup does not run here.
    """
    progress = progress or NoProgress()
    start = time.monotonic()
    known = {each.network for each in stored_measurements(setup, store, disturbed=disturbed)}
    wanted = [each for each in calibration_networks(setup, count, most_macs) if each not in known]
    progress.step(f"calibration: {setup}", count)
    for first in range(0, len(wanted), TOGETHER):
        if minutes is not None and time.monotonic() - start > 60 * minutes:
            break
        some = wanted[first : first + TOGETHER]
        store.add_all(measure_networks(some, setup))
        progress.update(count - len(wanted) + first + len(some), count)
    found = stored_measurements(setup, store, disturbed=disturbed)
    lost = count - len({each.network for each in found})
    if lost > 0 and wanted:
        progress.message(
            f"{lost} of {count} networks do not count: the machine was busy or throttled, or time was short"
        )
    return fitted(setup, found)


def fitted(setup: Setup, measurements: Sequence[Measurement]) -> Calibration:
    """Fit the latency model to measurements of the setup, one of each network.

    Raises:
        UsageError: they are too few.
    """
    newest = {each.network: each for each in reversed(measurements)}
    if len(newest) < MIN_NETWORKS:
        raise UsageError(
            f"{len(newest)} networks are measured with {setup}, and a latency model needs {MIN_NETWORKS}: "
            "run `regnet-deploy calibrate` on an idle machine, with more --minutes, or with --anyway"
        )
    work = network_work(list(newest), setup.resolution, setup.classes, setup.batch)
    model = fit_latency_model(work, [each.times.p50_ms for each in newest.values()])
    return Calibration(setup, model, tuple(newest.values()))


def stored_measurements(setup: Setup, store: MeasurementStore, *, disturbed: bool = False) -> list[Measurement]:
    """Return what the store has of this setup and machine, the newest first.

    Args:
        setup: how the networks were run.
        store: of measurements.
        disturbed: also what was measured while the machine was busy or throttled.
    """
    return store.find(
        execution=installed_execution(setup),
        machine=measured_machine(),
        resolution=setup.resolution,
        classes=setup.classes,
        batch=setup.batch,
        disturbed=disturbed,
    )


@lru_cache(maxsize=8)
def calibration_networks(setup: Setup, count: int, most_macs: float = MOST_MACS) -> tuple[Network, ...]:
    """Return networks of both families that differ as much as possible, always the same ones.

    Of networks drawn at 16 levels of MACs, the next one is always the one farthest from those that are taken, by the
    logarithms of MACs, depth, widths and group width, each divided by its standard deviation. Measuring such networks
    predicts others better than measuring random ones (arXiv 2403.02446 on predictors of latency).
    """
    random = np.random.default_rng(_SEED)
    networks: list[Network] = []
    features: list[Float] = []
    for macs, family in itertools.product(np.geomspace(LEAST_MACS, most_macs, _LEVELS), "xy"):
        some = _level(float(macs), family, setup, random)
        networks += [row_network(some, i, family, setup) for i in range(len(some))]
        columns = (some.macs, some.depths.sum(axis=1), some.widths[:, 1], some.widths[:, 3], some.g)
        features.append(np.log(np.stack(columns, axis=1).astype(np.float64)))
    points = np.concatenate(features)
    families = np.array([0.5 if network.family == "y" else 0.0 for network in networks])
    points = np.column_stack([(points - points.mean(axis=0)) / points.std(axis=0), families])
    return tuple(networks[row] for row in spread_rows(points, count))


def row_network(population: Population, row: int, family: str, setup: Setup) -> Network:
    """Return a row of a population as a network for the resolution of the setup."""
    depths, widths, groups = (
        tuple(int(value) for value in column[row])
        for column in (population.depths, population.widths, population.group_widths)
    )
    return Network(
        depths,
        widths,
        groups,
        (1.0,) * len(depths),
        SE_RATIO if family == "y" else 0.0,
        default_stem_stride(setup.resolution),
    )


def _level(macs: float, family: str, setup: Setup, random: np.random.Generator) -> Population:
    """Return networks of about these MACs (at 224 pixels), each group width as likely as the others."""
    space = ConstrainedSpace(family, Bounds(d=(8, 32), g=(MIN_GROUP_WIDTH, 128)))
    found = regnets_between(0.97 * macs, 1.03 * macs, space, w_m_step=0.2)
    shares = np.unique(found.g, return_inverse=True, return_counts=True)
    weights = 1 / shares[2][shares[1]]
    count = min(_DRAWN, len(found))
    return found.take(random.choice(len(found), count, replace=False, p=weights / weights.sum()))


def spread_rows(points: Float, count: int) -> list[int]:
    """Return rows far from each other: first that nearest to the middle, then always the farthest from the others."""
    rows = [int(np.argmin((points**2).sum(axis=1)))]
    distance = np.full(len(points), np.inf)
    while len(rows) < min(count, len(points)):
        distance = np.minimum(distance, ((points - points[rows[-1]]) ** 2).sum(axis=1))
        rows.append(int(np.argmax(distance)))
    return rows
