"""The time of steps is divided into waiting and computing, on a CPU and on a GPU, which computes on its own."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from regnet_deploy.training import step_clock
from regnet_deploy.training.checkpoint import RunState
from regnet_deploy.training.data_loader import Batch
from regnet_deploy.training.step_clock import StepClock

EMPTY = torch.zeros(0)


class Time:
    """A clock of the process, and that of a GPU, which starts what it gets when it is free."""

    def __init__(self) -> None:
        self.process = self.gpu = 0.0

    def pass_by(self, seconds: float, result: object = None) -> Callable[[], object]:
        def act() -> object:
            self.process += seconds
            return result

        return act

    def launch(self, seconds: float) -> Callable[[], None]:
        def act() -> None:
            self.process += 0.001
            self.gpu = max(self.gpu, self.process) + seconds

        return act

    def event(self, enable_timing: bool) -> SimpleNamespace:
        made = SimpleNamespace(at=0.0)

        def record() -> None:
            made.at = max(self.gpu, self.process)

        made.record, made.elapsed_time = record, lambda end: 1e3 * (end.at - made.at)
        return made


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time()
    monkeypatch.setattr(step_clock.time, "perf_counter", lambda: clock.process)
    monkeypatch.setattr(step_clock.torch.cuda, "Event", clock.event)
    return clock


def batch(seconds: float) -> Batch:
    return Batch(EMPTY, EMPTY, EMPTY, [], seconds)


def test_waiting_and_computing_add_up_on_a_cpu_and_go_on_where_a_run_continues(time: Time) -> None:
    state = RunState(used_seconds=10.0, waited_seconds=20.0, loading_seconds=30.0)
    clock = StepClock(state, "cpu", workers=2)
    for _ in range(3):
        assert clock.waiting(time.pass_by(1.0, batch(4.0))).seconds == 4.0
        clock.using(time.pass_by(3.0))
        clock.record(time.process)
    assert (state.used_seconds, state.waited_seconds) == (19.0, 23.0)
    assert state.loading_seconds == 30.0 + 3 * 4.0 / 2  # of two processes at once


@pytest.mark.parametrize(("load", "step", "waited"), [(0.1, 1.0, 0.1), (1.0, 0.1, 9.1), (1.0, 0.9, 1.9)])
def test_a_gpu_waits_only_while_it_is_idle(time: Time, load: float, step: float, waited: float) -> None:
    """The process is back long before the step has ended, and waits for images meanwhile."""
    state = RunState()
    clock = StepClock(state, "cuda", workers=8)
    for _ in range(10):
        clock.waiting(time.pass_by(load, batch(load)))
        clock.using(time.launch(step))
    clock.record(max(time.process, time.gpu))
    assert state.used_seconds == pytest.approx(10 * step, rel=0.02)
    assert state.waited_seconds == pytest.approx(waited, abs=0.02)
