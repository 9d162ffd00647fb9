"""Timeouts on an event loop: of one task, and many callbacks with one timer."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable
from types import TracebackType

#: Resolution of an event loop's timers, in seconds.
_RESOLUTION_S = 0.001


class Timer:
    """Raises TimeoutError in the task that entered it, after a time; cheaper than :func:`asyncio.timeout`."""

    __slots__ = ("_handle", "_late", "_seconds", "_task")

    def __init__(self, seconds: float) -> None:
        self._seconds, self._late = seconds, False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a Timer is for a task")
        self._task = task
        self._handle = task.get_loop().call_later(self._seconds, self._expire)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._handle.cancel()
        if self._late and kind is asyncio.CancelledError:
            # From Python 3.11 on a task counts who cancelled it: where somebody else did as well, that is what counts.
            uncancel = getattr(self._task, "uncancel", None)
            if uncancel is None or uncancel() == 0:
                raise TimeoutError from None

    def _expire(self) -> None:
        self._late = True
        self._task.cancel()


class Timeouts:
    """Calls functions after a time, unless they are discarded before, as nearly all are. For one event loop.

    All share one timer of the loop, because a timer for each is a large part of what a small request costs. The timer
    stays when its function is discarded, and finds the next one when it fires.
    """

    __slots__ = ("_due", "_handle", "_keys", "_loop", "_waiting")

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handle: asyncio.TimerHandle | None = None
        self._due = math.inf  # when the timer fires
        self._keys = itertools.count()
        self._waiting: dict[int, tuple[float, Callable[[], object]]] = {}

    def add(self, seconds: float, callback: Callable[[], object]) -> int:
        """Call ``callback`` in so many seconds; return the key by which it is discarded."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        due, key = self._loop.time() + seconds, next(self._keys)
        self._waiting[key] = (due, callback)
        if due < self._due:
            self._look_at(due)
        return key

    def discard(self, key: int) -> None:
        """Discard a callback; nothing happens where it was called or discarded before."""
        self._waiting.pop(key, None)

    def _look_at(self, due: float) -> None:
        assert self._loop is not None
        if self._handle is not None:
            self._handle.cancel()
        # uvloop rounds to milliseconds: a timer that fires early would be set again and again.
        delay = max(_RESOLUTION_S, due - self._loop.time() + _RESOLUTION_S / 2)
        self._due, self._handle = due, self._loop.call_later(delay, self._look)

    def _look(self) -> None:
        assert self._loop is not None
        now = self._loop.time()
        self._due, self._handle = math.inf, None
        try:
            for key, (due, callback) in list(self._waiting.items()):
                if due <= now and self._waiting.pop(key, None) is not None:  # a callback may discard another one
                    callback()
        finally:  # whatever a callback raises
            left = min((due for due, _ in self._waiting.values()), default=math.inf)
            if left < self._due:
                self._look_at(left)
