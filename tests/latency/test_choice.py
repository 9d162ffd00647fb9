"""Among networks that keep a limit of time when they are measured, the one of the best expectation is chosen."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from timed_networks import clock, execution, made_up, rule_ms

from regnet_deploy.errors import UsageError
from regnet_deploy.latency import calibration, candidates, choice
from regnet_deploy.latency.calibration import Calibration, calibrate
from regnet_deploy.latency.candidates import TimeLimits
from regnet_deploy.latency.choice import select_by_time
from regnet_deploy.latency.measurement import MachineState
from regnet_deploy.latency.measuring import Setup
from regnet_deploy.latency.store import MeasurementStore, open_measurements
from regnet_deploy.selection.budget import Budget
from regnet_deploy.selection.bundle_parts import selection_parts
from regnet_deploy.space.network import Network
from regnet_deploy.space.published import find_published

SETUP = Setup(threads=1)
BUDGET = Budget(macs=1e9)


class Machine:
    """A machine on which times are by a rule; ``slowdown`` is what a process of its own is slower."""

    def __init__(self) -> None:
        self.measured: list[Network] = []
        self.alone: list[Network] = []
        self.slowdown = 1.0
        self.factor = 1.0

    def rule(self, network: Network, setup: Setup) -> float:
        return self.factor * rule_ms(network, setup)

    def fresh(self, network: Network, setup: Setup, **options: Any) -> Any:
        self.alone.append(network)
        slow = self.slowdown if len(self.alone) == 1 else 1.0
        return made_up(network, setup, slow * self.rule(network, setup))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    for module in (calibration, choice):
        monkeypatch.setattr(module, "measure_networks", clock(machine.rule, machine.measured))
    monkeypatch.setattr(calibration, "installed_execution", execution)
    monkeypatch.setattr(choice, "measure_in_fresh_process", machine.fresh)
    return machine


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MeasurementStore]:
    with open_measurements(tmp_path / "measurements.sqlite") as opened:
        yield opened


@pytest.fixture
def calibrated(machine: Machine, store: MeasurementStore) -> Calibration:
    found = calibrate(SETUP, store, count=20)
    machine.measured.clear()
    return found


@pytest.mark.parametrize("ms", [4.0, 12.0])
def test_the_pick_keeps_the_limit_and_uses_it(
    machine: Machine, calibrated: Calibration, store: MeasurementStore, ms: float
) -> None:
    selection = select_by_time(BUDGET, TimeLimits(p50_ms=ms), calibrated, store)
    ranking = selection.timed_ranking
    assert ranking is not None
    assert 0.93 * ms < ranking.p50_ms <= ms
    assert machine.alone == [selection.best.network]
    kept = [each for each in ranking.candidates if each.keeps]
    assert ranking.candidates[0].expected_error == min(each.expected_error for each in kept)
    assert all(each.p50_ms <= ms for each in kept)
    assert len(ranking.candidates) == len(machine.measured)
    assert f"at most {ms:g} ms" in selection.reason()


def test_a_machine_that_is_slower_than_when_it_was_calibrated_still_keeps_the_limit(
    machine: Machine, calibrated: Calibration, store: MeasurementStore
) -> None:
    machine.factor = 1.4
    selection = select_by_time(BUDGET, TimeLimits(p50_ms=8), calibrated, store)
    assert selection.timed_ranking is not None
    assert 0.9 * 8 < selection.timed_ranking.p50_ms <= 8


def test_a_pick_that_is_too_slow_in_a_process_of_its_own_is_not_taken(
    machine: Machine, calibrated: Calibration, store: MeasurementStore
) -> None:
    machine.slowdown = 1.5
    selection = select_by_time(BUDGET, TimeLimits(p50_ms=8), calibrated, store)
    assert len(machine.alone) == 2
    assert selection.timed_ranking is not None
    refused = [each for each in selection.timed_ranking.candidates if each.widths == machine.alone[0].widths]
    assert [each.keeps for each in refused if each.depths == machine.alone[0].depths] == [False]
    assert selection.best.network == machine.alone[1] != machine.alone[0]


def test_the_fastest_network_like_a_published_one_is_faster_and_not_worse(
    machine: Machine, calibrated: Calibration, store: MeasurementStore
) -> None:
    published = find_published("RegNetX-400MF")
    selection = select_by_time(BUDGET, TimeLimits(like=published), calibrated, store)
    ranking = selection.timed_ranking
    assert ranking is not None
    assert ranking.p50_ms < machine.rule(published.network, SETUP)
    assert selection.expectation is not None
    from regnet_deploy.selection.trends import expected_error

    assert selection.expectation.top1_error <= expected_error("x", published.macs).top1_error


def test_macs_throughput_and_family_are_further_limits(
    machine: Machine, calibrated: Calibration, store: MeasurementStore
) -> None:
    limits = TimeLimits(p50_ms=20, macs=4e8, images_per_second=100)
    selection = select_by_time(Budget(macs=1e9, family="x", max_parameters=6e6), limits, calibrated, store)
    ranking = selection.timed_ranking
    assert ranking is not None
    assert selection.family == "x"
    assert selection.best.macs <= 4e8
    assert selection.best.parameters <= 6e6
    assert ranking.p50_ms <= 10
    assert {each.family for each in ranking.candidates} == {"x"}


def test_macs_are_a_maximum_however_far_below_the_limit_of_time(
    machine: Machine, calibrated: Calibration, store: MeasurementStore
) -> None:
    selection = select_by_time(BUDGET, TimeLimits(p50_ms=50, macs=4e8), calibrated, store)
    ranking = selection.timed_ranking
    assert ranking is not None
    assert 3.8e8 < selection.best.macs <= 4e8
    assert ranking.why_slower is not None
    assert "no other candidate" in ranking.why_slower


def test_a_99th_percentile_far_above_the_median_still_finds_what_keeps_it(
    machine: Machine, calibrated: Calibration, store: MeasurementStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow_tail(networks: Any, setup: Setup, **options: Any) -> list[Any]:
        machine.measured.extend(networks)
        return [with_tail(each, setup) for each in networks]

    def with_tail(network: Network, setup: Setup, **options: Any) -> Any:
        found = made_up(network, setup, machine.rule(network, setup))
        return found.replace(times=found.times.replace(p99_ms=2 * found.times.p50_ms))

    monkeypatch.setattr(choice, "measure_networks", slow_tail)
    monkeypatch.setattr(choice, "measure_in_fresh_process", with_tail)
    selection = select_by_time(BUDGET, TimeLimits(p99_ms=12), calibrated, store)
    assert selection.timed_ranking is not None
    assert 0.93 * 12 < selection.timed_ranking.p99_ms <= 12
    assert len(machine.measured) <= 30


def test_a_published_network_that_one_family_cannot_match_leaves_the_other(
    calibrated: Calibration, store: MeasurementStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def floor(curve: Any, **fields: Any) -> Any:
        return dataclasses.replace(curve, **fields)

    fitted = candidates.fit_error
    monkeypatch.setattr(
        candidates,
        "fit_error",
        lambda known: floor(fitted(known), floor=40.0) if known[0].family == "x" else fitted(known),
    )
    selection = select_by_time(BUDGET, TimeLimits(like=find_published("RegNetY-400MF")), calibrated, store)
    assert selection.family == "y"


def test_a_choice_on_a_busy_machine_says_so(
    machine: Machine, calibrated: Calibration, store: MeasurementStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(network: Network, setup: Setup, **options: Any) -> Any:
        return made_up(network, setup, machine.rule(network, setup), state=MachineState(cpus=1, busy_cores=0.9))

    monkeypatch.setattr(choice, "measure_in_fresh_process", busy)
    selection = select_by_time(BUDGET, TimeLimits(p50_ms=6), calibrated, store)
    assert "while the machine was busy" in selection.reason()


def test_time_that_ran_out_is_said(calibrated: Calibration, store: MeasurementStore, machine: Machine) -> None:
    machine.factor = 2.0
    with pytest.raises(UsageError, match=r"keeps at most 8 ms, with .* Give more --minutes"):
        select_by_time(BUDGET, TimeLimits(p50_ms=8), calibrated, store, minutes=1e-9)


def test_a_limit_that_nothing_keeps_names_the_nearest(calibrated: Calibration, store: MeasurementStore) -> None:
    with pytest.raises(UsageError, match=r"at most 0.05 ms, with .* raise the limit"):
        select_by_time(BUDGET, TimeLimits(p50_ms=0.05), calibrated, store)


def test_a_limit_that_only_predictions_keep_names_what_was_measured(
    machine: Machine, calibrated: Calibration, store: MeasurementStore
) -> None:
    machine.factor = 100
    with pytest.raises(UsageError, match=r"none of \d+ measured networks keeps .* takes [\d.]+ ms"):
        select_by_time(BUDGET, TimeLimits(p50_ms=3), calibrated, store)


def test_a_pick_beyond_the_calibrated_networks_is_said_to_be_extrapolated(
    machine: Machine, calibrated: Calibration, store: MeasurementStore
) -> None:
    inside = select_by_time(BUDGET, TimeLimits(p50_ms=6), calibrated, store).timed_ranking
    slowest = calibrated.model.longest_ms
    beyond = select_by_time(BUDGET, TimeLimits(p50_ms=1.6 * slowest), calibrated, store).timed_ranking
    assert inside is not None
    assert beyond is not None
    assert not inside.candidates[0].extrapolated
    assert "extrapolated" not in inside.reason()
    assert beyond.candidates[0].extrapolated
    assert "its prediction was extrapolated" in beyond.reason()


def test_the_bundle_says_what_was_measured(calibrated: Calibration, store: MeasurementStore) -> None:
    selection = select_by_time(BUDGET, TimeLimits(p50_ms=6), calibrated, store)
    parts = selection_parts(selection)
    assert parts.selection is not None
    assert parts.selection.timed is not None
    assert parts.selection.timed["p50_ms"] <= 6
    assert "nothing sampled or skipped" not in (parts.selection.searched or "")
    assert parts.selection.budget.macs == selection.best.macs


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "give a limit of time"),
        ({"macs": 1e9}, "give a limit of time"),
        ({"p50_ms": -1.0}, "p50_ms must be a number above 0, got -1"),
        ({"p99_ms": float("nan")}, "p99_ms must be a number above 0"),
    ],
)
def test_limits_that_say_nothing_are_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TimeLimits(**fields)
