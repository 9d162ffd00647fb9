"""A calibration measures networks that differ, once, and goes on where it was interrupted."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from timed_networks import clock, execution, made_up, rule_ms

from regnet_deploy.api import timing
from regnet_deploy.errors import UsageError
from regnet_deploy.latency import calibration, measuring
from regnet_deploy.latency.calibration import calibrate, calibration_networks, spread_rows
from regnet_deploy.latency.measurement import Execution, MachineState, Measurement
from regnet_deploy.latency.measuring import Setup
from regnet_deploy.latency.store import MeasurementStore, open_measurements
from regnet_deploy.space.complexity import network_complexity
from regnet_deploy.space.network import Network

SETUP = Setup(threads=1)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Network]:
    """The networks that were measured, by a rule instead of a clock."""
    networks: list[Network] = []
    monkeypatch.setattr(calibration, "measure_networks", clock(rule_ms, networks))
    monkeypatch.setattr(calibration, "installed_execution", execution)
    return networks


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MeasurementStore]:
    with open_measurements(tmp_path / "measurements.sqlite") as opened:
        yield opened


def test_networks_are_always_the_same_and_differ_in_everything_that_decides_the_time() -> None:
    networks = calibration_networks(SETUP, 30)
    assert networks == calibration_networks.__wrapped__(SETUP, 30)
    assert len(set(networks)) == 30
    macs = [int(network_complexity(each, 224, 1000).total.macs) for each in networks]
    assert min(macs) < 1e8
    assert max(macs) > 2e9
    assert {each.family for each in networks} == {"x", "y"}
    depths, groups = ([f(each) for each in networks] for f in (lambda n: sum(n.depths), lambda n: n.group_widths[2]))
    assert max(depths) > 2.5 * min(depths)
    assert min(groups) == 8
    assert max(groups) >= 96


def test_fewer_networks_are_the_first_ones_so_that_more_can_be_measured_later() -> None:
    assert calibration_networks(SETUP, 30)[:12] == calibration_networks(SETUP, 12)


def test_spread_rows_take_the_middle_and_then_the_farthest() -> None:
    points = np.array([[0.0], [0.1], [5.0], [-4.0], [2.0]])
    assert spread_rows(points, 4) == [0, 2, 3, 4]
    assert spread_rows(points, 9) == [0, 2, 3, 4, 1]


def test_a_rule_is_learned_and_measurements_are_not_repeated(measured: list[Network], store: MeasurementStore) -> None:
    first = calibrate(SETUP, store, count=16)
    assert len(measured) == 16
    assert first.model.mean_error < 0.1
    assert first.rank_correlation > 0.98
    again = calibrate(SETUP, store, count=20)
    assert len(measured) == 20
    assert again.model.networks == 20


def test_an_interrupted_calibration_goes_on(
    measured: list[Network], store: MeasurementStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(networks: list[Network], setup: Setup, **options: object) -> None:
        if measured:
            raise KeyboardInterrupt
        return clock(rule_ms, measured)(networks, setup)

    with monkeypatch.context() as patch:
        patch.setattr(calibration, "measure_networks", interrupted)
        with pytest.raises(KeyboardInterrupt):
            calibrate(SETUP, store, count=16)
    kept = len(measured)
    assert kept == len(store.all()) > 0
    calibrate(SETUP, store, count=16)
    assert len(measured) == len(set(measured)) == 16


def test_another_setup_is_measured_for_itself(measured: list[Network], store: MeasurementStore) -> None:
    calibrate(SETUP, store, count=8)
    for other in (Setup(threads=1, batch=8), Setup(threads=1, precision="int8-cpu"), Setup(threads=1, classes=10)):
        before = len(measured)
        calibrate(other, store, count=8)
        assert len(measured) == before + 8, other


def test_too_little_time_is_said_with_what_to_do(measured: list[Network], store: MeasurementStore) -> None:
    with pytest.raises(UsageError, match=r"0 networks are measured .* needs 8: .* more --minutes"):
        calibrate(SETUP, store, count=30, minutes=1e-9)


def test_what_was_measured_on_a_busy_machine_counts_only_if_asked_for(
    store: MeasurementStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = MachineState(cpus=2, busy_cores=1.0)

    def measure(networks: list[Network], setup: Setup, **options: object) -> list[Measurement]:
        return [made_up(each, setup, rule_ms(each, setup), state=busy) for each in networks]

    monkeypatch.setattr(calibration, "measure_networks", measure)
    monkeypatch.setattr(calibration, "installed_execution", execution)
    with pytest.raises(UsageError, match=r"0 networks are measured .* on an idle machine, .* or with --anyway"):
        calibrate(SETUP, store, count=8)
    assert calibrate(SETUP, store, count=8, disturbed=True).model.networks == 8


def test_a_setup_that_is_not_installed_is_refused_before_others_are_measured(
    measured: list[Network], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def installed(setup: Setup) -> Execution:
        if setup.runtime == "openvino":
            raise UsageError("OpenVINO is not installed")
        return execution(setup)

    monkeypatch.setattr(measuring, "installed_execution", installed)
    setups = [Setup(threads=1), Setup(runtime="openvino", threads=1)]
    with pytest.raises(UsageError, match="not installed"):
        timing.calibrate(setups, networks=8, anyway=True, store=tmp_path / "measurements.sqlite")
    assert not measured
