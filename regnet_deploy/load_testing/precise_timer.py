"""An alarm for an event loop that rings well within a millisecond; the loops' own timers count whole ones.

A request that leaves up to a millisecond late is measured that much too slow. Linux has timers that are files
(``timerfd``), which an event loop can wait for like for a socket; Python itself knows them from 3.13 on.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import struct
import sys
import time
from collections.abc import Callable

_NONBLOCK_CLOEXEC = os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0)
_ABSOLUTE = 1  # TFD_TIMER_ABSTIME


class PreciseTimer:
    """Calls a function on the event loop at a time of ``time.monotonic()``; by the loop's own timers elsewhere."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._loop = loop
        self._ring = ring
        self._handle: asyncio.TimerHandle | None = None
        self._libc = ctypes.CDLL(None) if sys.platform == "linux" else None
        self._file = self._libc.timerfd_create(time.CLOCK_MONOTONIC, _NONBLOCK_CLOEXEC) if self._libc else -1
        if self._file >= 0:
            loop.add_reader(self._file, self._read)

    def set(self, when: float) -> None:
        """Ring at ``when``, or at once where that is past; replaces what was set before."""
        if self._file < 0:
            if self._handle is not None:
                self._handle.cancel()
            self._handle = self._loop.call_later(max(0.0, when - time.monotonic()), self._ring)
            return
        nanoseconds = max(1, round(when * 1e9))  # 0 would take the alarm off
        due = struct.pack("@llll", 0, 0, *divmod(nanoseconds, 1_000_000_000))
        assert self._libc is not None
        self._libc.timerfd_settime(self._file, _ABSOLUTE, due, None)

    def close(self) -> None:
        """Take the alarm off for good."""
        if self._handle is not None:
            self._handle.cancel()
        if self._file >= 0:
            self._loop.remove_reader(self._file)
            os.close(self._file)
            self._file = -1

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._file, 8)
        self._ring()
