"""Runs a load on an event loop of its own, uvloop where it is installed, with a timer of better than a millisecond."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_NONBLOCK_CLOEXEC = os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0)
_ABSOLUTE = 1  # TFD_TIMER_ABSTIME


def run_on_event_loop(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine function to its end and return its result.

    Raises:
        KeyboardInterrupt: on SIGINT; the coroutine was cancelled and has cleaned up.
    """
    loop = _new_loop()
    in_main_thread = threading.current_thread() is threading.main_thread()
    previous = signal.getsignal(signal.SIGINT)
    try:
        task = loop.create_task(work())
        if in_main_thread:
            loop.add_signal_handler(signal.SIGINT, task.cancel)
        try:
            return loop.run_until_complete(task)
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
    finally:
        if in_main_thread:
            loop.remove_signal_handler(signal.SIGINT)
        loop.run_until_complete(_cancel_remaining_tasks())
        loop.close()
        if in_main_thread:
            # uvloop restores a handler of its own that does nothing any more: SIGINT would be ignored from here on.
            signal.signal(signal.SIGINT, previous)


async def _cancel_remaining_tasks() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(0)  # closed transports release their sockets


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ModuleNotFoundError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


class PreciseTimer:
    """Calls a function on the event loop at a time of ``time.monotonic()``.

    The timers of event loops count whole milliseconds, and a request that is sent up to a millisecond late is measured
    that much too slow. On Linux this is a timer that is a file (``timerfd``; Python has it from 3.13 on), for which the
    event loop can wait; elsewhere it is the timer of the loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        self._loop = loop
        self._callback = callback
        self._handle: asyncio.TimerHandle | None = None
        self._libc = ctypes.CDLL(None) if sys.platform == "linux" else None
        self._file = self._libc.timerfd_create(time.CLOCK_MONOTONIC, _NONBLOCK_CLOEXEC) if self._libc else -1
        if self._file >= 0:
            loop.add_reader(self._file, self._read)

    def set(self, when: float) -> None:
        """Call the function at ``when``, or at once where that is past; replaces the time that was set before."""
        if self._file < 0:
            if self._handle is not None:
                self._handle.cancel()
            self._handle = self._loop.call_later(max(0.0, when - time.monotonic()), self._callback)
            return
        nanoseconds = max(1, round(when * 1e9))  # 0 would disarm the timer
        value = struct.pack("@llll", 0, 0, *divmod(nanoseconds, 1_000_000_000))
        assert self._libc is not None
        self._libc.timerfd_settime(self._file, _ABSOLUTE, value, None)

    def close(self) -> None:
        """Disarm the timer and close its file."""
        if self._handle is not None:
            self._handle.cancel()
        if self._file >= 0:
            self._loop.remove_reader(self._file)
            os.close(self._file)
            self._file = -1

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._file, 8)
        self._callback()
