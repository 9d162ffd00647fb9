import numpy as np
import pytest

from regnet_deploy.profiling.latency import (
    MIN_REPETITIONS,
    ROUNDS,
    WARMUP_LIMIT_S,
    WARMUP_S,
    Runner,
    measure_latency,
    time_repeats,
    warm_up,
)


class Machine:
    """A runtime on a clock that only its own inferences advance: seconds by turn, the last one for ever."""

    def __init__(self, *seconds):
        self.seconds, self.calls = list(seconds), 0

    def __call__(self):
        taken = self.seconds[min(self.calls, len(self.seconds) - 1)]
        self.calls += 1
        return taken


def runner(name, prepare):
    return Runner(name, None, "cpu", "fp32", "channels_first", 2, prepare)


def test_repeat_stops_when_the_inferences_have_taken_the_seconds_asked_for():
    assert time_repeats(Machine(0.25), 1.0, 1) == [0.25] * 4


def test_repeat_makes_its_least_number_however_slow_the_inference():
    assert time_repeats(Machine(60.0), 1.0, 3) == [60.0] * 3


def test_warm_up_waits_until_windows_agree():
    slow_start = Machine(*(0.5 * 0.9 ** np.arange(30)), 0.02)
    count = warm_up(slow_start)
    assert count == slow_start.calls
    assert count > 30


def test_warm_up_of_a_steady_runtime_lasts_its_least_time():
    count = warm_up(Machine(0.01))
    assert WARMUP_S <= count * 0.01 < WARMUP_S + 0.25


def test_one_slow_first_call_does_not_end_the_warm_up():
    assert warm_up(Machine(5.0, 0.1)) > 2


def test_warm_up_gives_up_on_a_runtime_that_never_settles():
    machine = Machine(*([0.1, 0.1, 0.3, 0.3] * 100))
    count = warm_up(machine)
    assert WARMUP_LIMIT_S <= sum(machine.seconds[:count]) < WARMUP_LIMIT_S + 1


def test_percentiles_and_throughput_are_those_of_the_repetitions():
    seconds = [(i + 1) / 1000 for i in range(100)]  # 1 to 100 ms

    def prepare(batch):
        steady = 0.25
        warm = warm_up(Machine(steady))
        turns = [[steady, *seconds[i::ROUNDS]] for i in range(ROUNDS)]  # each turn begins with a call that is not kept
        return Machine(*[steady] * warm, *(second for turn in turns for second in turn))

    (row,) = measure_latency([runner("one", prepare)], [8], seconds=ROUNDS * 1.21)
    assert row.repetitions == 100
    assert row.p50_ms == pytest.approx(50.5)
    assert row.p95_ms == pytest.approx(95.05)
    assert row.p99_ms == pytest.approx(99.01)
    assert row.images_per_second == pytest.approx(8 * 100 / sum(seconds))


def test_every_runner_is_measured_at_every_batch_with_its_settings():
    runners = [
        Runner("torch 2", None, "cpu", "fp32", "channels_last", 4, lambda batch: Machine(0.01 * batch)),
        Runner("ort 1", "onnx-fp32", "cpu", "fp32", "channels_first", 4, lambda batch: Machine(0.005 * batch)),
    ]
    rows = measure_latency(runners, [1, 8, 32], seconds=1.0)
    assert [(row.runtime, row.batch) for row in rows] == [
        (name, batch) for batch in (1, 8, 32) for name in ("torch 2", "ort 1")
    ]
    for row in rows:
        expected = 10 if row.runtime == "torch 2" else 5
        assert row.p50_ms == row.p99_ms == pytest.approx(expected * row.batch)
        assert row.images_per_second == pytest.approx(1000 / expected)
        assert row.repetitions >= MIN_REPETITIONS
        assert row.warmup_repetitions > 0
    assert rows[1].to_json() | {"variant": "onnx-fp32", "layout": "channels_first", "threads": 4} == rows[1].to_json()


def test_runners_take_turns():
    order = []

    def prepare_as(name):
        def timed():
            order.append(name)
            return 0.3

        return lambda batch: timed

    measure_latency([runner("a", prepare_as("a")), runner("b", prepare_as("b"))], [1], seconds=1.0)
    turns = [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]
    assert turns == ["a", "b"] * (1 + ROUNDS)  # the warm-ups, then the rounds


def test_progress_receives_each_turn(recorded_progress):
    recorded_progress.step("measuring")
    measure_latency([runner("one", lambda batch: Machine(0.1))], [1, 2], 0.1, recorded_progress)
    turns = 2 * (1 + ROUNDS)
    assert [update[1:3] for update in recorded_progress.updates] == [(turn, turns) for turn in range(turns)]
    assert recorded_progress.updates[0][3] == "one, batch 1: warm-up"
