"""Work on a loop of its own can be interrupted, and so can what comes after it."""

import asyncio
import signal
import threading

import pytest

from regnet_deploy.load_testing.event_loop import run_on_event_loop


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
