"""Work on a loop of its own can be interrupted, and so can what comes after it."""

import asyncio
import signal
import threading
import time
from typing import Any

import pytest

from regnet_deploy.load_testing import event_loop
from regnet_deploy.load_testing.event_loop import PreciseTimer, run_on_event_loop


async def seven() -> int:
    await asyncio.sleep(0)
    return 7


def test_what_the_work_returns_or_raises_comes_back():
    async def fails() -> None:
        raise ZeroDivisionError

    assert run_on_event_loop(seven) == 7
    with pytest.raises(ZeroDivisionError):
        run_on_event_loop(fails)


def test_an_interrupt_cancels_the_work_which_cleans_up():
    cleaned = threading.Event()

    async def waits() -> None:
        asyncio.get_running_loop().call_later(0.05, signal.raise_signal, signal.SIGINT)
        try:
            await asyncio.sleep(30)
        finally:
            cleaned.set()

    with pytest.raises(KeyboardInterrupt):
        run_on_event_loop(waits)
    assert cleaned.is_set()


def test_after_it_an_interrupt_is_what_it_was_before():
    before = signal.getsignal(signal.SIGINT)
    run_on_event_loop(seven)
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_it_runs_in_a_thread_that_takes_no_signals():
    came: list[int] = []
    thread = threading.Thread(target=lambda: came.append(run_on_event_loop(seven)))
    thread.start()
    thread.join(30)
    assert came == [7]


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_a_timer_calls_once_for_each_time_it_is_set_and_never_early(platform: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(event_loop.sys, "platform", platform)
    early, called = [], []

    async def main() -> None:
        finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def callback() -> None:
            called.append(time.monotonic())
            early.append(due[-1] - called[-1])
            if len(called) == 20:
                finished.set_result(None)
            else:
                due.append(called[-1] + (0.004 if len(called) % 2 else -1.0))  # a time in the past is called at once
                timer.set(due[-1])

        timer = PreciseTimer(asyncio.get_running_loop(), callback)
        due = [time.monotonic() + 0.004]
        timer.set(due[-1])
        await finished
        timer.set(time.monotonic())
        timer.close()
        await asyncio.sleep(0.01)

    run_on_event_loop(main)
    assert len(called) == 20
    assert max(early) < 0.002  # of the loop's own timers


def test_tasks_that_the_work_started_are_cancelled():
    left: list[Any] = []

    async def forever() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            left.append("ended")

    async def work() -> int:
        left.append(asyncio.get_running_loop().create_task(forever()))
        await asyncio.sleep(0)
        return 7

    async def fail() -> None:
        raise OSError("no")

    assert run_on_event_loop(work) == 7
    assert left[1:] == ["ended"]
    with pytest.raises(OSError, match="no"):
        run_on_event_loop(fail)
