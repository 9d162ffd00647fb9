"""A measurement reads back as it was written; intervals contain the true percentile as often as they say."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from regnet_deploy.errors import BundleError, UsageError
from regnet_deploy.latency.measurement import (
    Execution,
    GpuMachineState,
    MachineState,
    MeasuredMachine,
    Measurement,
    Protocol,
    summarize,
)
from regnet_deploy.space.network import Network

Make = Callable[..., Measurement]


def test_a_measurement_reads_back_from_its_json(make_measurement: Make) -> None:
    for measurement in (
        make_measurement(),
        make_measurement(network=Network((1,), (32,), (8,), (2,), se_ratio=0.25, input_channels=1), batch=8),
        make_measurement(
            state=MachineState(
                clock_mhz_before=2400.0,
                clock_mhz_after=2100.0,
                throttled=True,
                busy_cores=1.0,
                cpus=1.5,
                gpu=GpuMachineState(clock_mhz_before=1980.0, throttle_reasons=("sw_power_cap",)),
            ),
            protocol=Protocol(warmup_repetitions=0, rounds=1, repetitions=20, interval_ms=50.0, interleaved_with=3),
            artifact_sha256=None,
        ),
    ):
        again = Measurement.from_json(json.loads(json.dumps(measurement.to_json())))
        assert again == measurement
        assert again.digest == measurement.digest


def test_the_digest_depends_on_every_value_and_not_on_how_a_number_is_written(make_measurement: Make) -> None:
    whole = make_measurement(network=Network((1, 1), (32, 64), (8, 8), (1, 1), se_ratio=0))
    assert whole.digest == make_measurement().digest
    changed = [
        make_measurement(6.0),
        make_measurement(batch=2),
        make_measurement(date="2026-12-01T09:00:01+00:00"),
        make_measurement(state=MachineState(busy_cores=0.03, cpus=2)),
    ]
    assert len({each.digest for each in (whole, *changed)}) == 5


def test_json_that_is_no_measurement_is_refused_with_the_place(make_measurement: Make) -> None:
    data = make_measurement().to_json()
    with pytest.raises(BundleError, match=r"times\.p50_ms: expected float"):
        Measurement.from_json({**data, "times": {**data["times"], "p50_ms": "fast"}})
    with pytest.raises(BundleError, match="depths must be 1 or more"):
        Measurement.from_json({**data, "network": {**data["network"], "depths": [0, 1]}})


def test_percentiles_are_those_of_all_repetitions() -> None:
    times = summarize([[0.001 * value for value in range(start, 101, 4)] for start in (1, 2, 3, 4)])
    assert times.mean_ms == pytest.approx(50.5)
    assert (times.p50_ms, times.p90_ms, times.p99_ms) == pytest.approx((50.5, 90.1, 99.01))


def test_the_interval_is_that_of_the_formula() -> None:
    low, high = summarize([[0.010] * 3, [0.010] * 3, [0.010] * 3, [0.014] * 3]).p50_interval_ms
    half = 3.182 * (4**2 / 3) ** 0.5 / 2  # the percentile of all is 10 ms, that of one round is 14 ms
    assert (low, high) == pytest.approx((10 - half, 10 + half))


def test_equal_durations_have_an_interval_without_width() -> None:
    assert summarize([[0.005] * 8] * 4).p50_interval_ms == pytest.approx((5.0, 5.0))


def test_rounds_that_differ_make_the_interval_wide_however_many_repetitions_they_have() -> None:
    rounds = [[0.005 + 0.001 * number] * 1000 for number in range(5)]
    low, high = summarize(rounds).p50_interval_ms
    assert low < 5.5
    assert high > 8.5


@pytest.mark.parametrize("rounds", [1, 2, 4, 10])
def test_an_interval_contains_the_true_median_in_about_95_of_100_cases(rounds: int) -> None:
    random, cases, hit = np.random.default_rng(0), 200, 0
    for _ in range(cases):
        low, high = summarize(random.exponential(0.01, (rounds, 400 // rounds))).p50_interval_ms
        hit += low <= 10 * np.log(2) <= high
    assert 0.9 <= hit / cases <= 0.99


def test_one_round_is_split_and_two_repetitions_are_enough() -> None:
    low, high = summarize([[0.010, 0.011]]).p50_interval_ms
    assert 0 <= low < 10.5 < high


@pytest.mark.parametrize(
    ("durations", "message"),
    [
        ([], "2 durations or more, got 0"),
        ([[0.001], []], "2 durations or more, got 1"),
        ([[0.001, 0.0]], "positive and finite, got 0 s"),
        ([[0.001, float("nan")]], "positive and finite, got nan s"),
        ([[0.001], [float("inf")]], "positive and finite, got inf s"),
    ],
)
def test_durations_that_have_no_percentiles_are_refused(durations: list[list[float]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        summarize(durations)


@pytest.mark.parametrize(
    ("state", "flags"),
    [
        (MachineState(cpus=2), ()),
        (MachineState(cpus=2, busy_cores=0.2), ()),
        (MachineState(cpus=2, busy_cores=0.21), ("busy",)),
        (MachineState(cpus=64, busy_cores=0.21), ()),
        (MachineState(cpus=2, throttled=False), ()),
        (MachineState(cpus=2, throttled=True), ("throttled",)),
        (MachineState(cpus=2, gpu=GpuMachineState(busy_share=0.5)), ("busy",)),
        (MachineState(cpus=2, gpu=GpuMachineState(throttle_reasons=())), ()),
        (
            MachineState(cpus=2, busy_cores=1, gpu=GpuMachineState(throttle_reasons=("hw_slowdown",))),
            ("busy", "throttled"),
        ),
    ],
)
def test_a_state_says_what_disturbed_the_machine(state: MachineState, flags: tuple[str, ...]) -> None:
    assert state.flags == flags


def test_images_per_second_are_those_of_inferences_back_to_back(make_measurement: Make) -> None:
    assert make_measurement(5.0, batch=8).images_per_second == pytest.approx(1600)


def test_an_execution_in_words() -> None:
    cpu = Execution(
        runtime="openvino", version="2026.4", device="cpu", precision="bf16", threads=1, layout="channels_last"
    )
    assert str(cpu) == "openvino 2026.4 bf16, 1 thread, channels_last"
    assert str(cpu.replace(device="NVIDIA H100", options={"cuda_graphs": "off"})) == (
        "openvino 2026.4 bf16, NVIDIA H100, channels_last, cuda_graphs off"
    )


def test_a_record_of_an_earlier_version_equals_one_whose_new_fields_are_unknown() -> None:
    data = {"cpu": "A", "cores": 2, "instructions": [], "gpu": None, "system": "Linux"}
    machine = MeasuredMachine.from_json(data)
    assert machine.governor is None
    assert machine.to_json() == data
