"""Time limits on an event loop: of what one task waits for, and of many things at once."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable
from types import TracebackType

#: Seconds that a loop tells apart.
_LEAST_S = 0.001


class Timer:
    """Raises TimeoutError in the task that entered it, after a time: what anyio's scopes do, for one task alone."""

    __slots__ = ("_handle", "_late", "_seconds", "_task")

    def __init__(self, seconds: float) -> None:
        self._seconds, self._late = seconds, False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a time limit is for a task")
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
    """Calls back when times have passed, unless they are taken back; nearly all are. For one event loop.

    There is one timer of the loop for all: one for each would be among the dearest things that a small request takes.
    It is left as it is when what it was for is taken back, and looks then for what is next.
    """

    __slots__ = ("_due", "_handle", "_keys", "_loop", "_waiting")

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handle: asyncio.TimerHandle | None = None
        self._due = math.inf  # when the timer looks
        self._keys = itertools.count()
        self._waiting: dict[int, tuple[float, Callable[[], object]]] = {}

    def add(self, seconds: float, callback: Callable[[], object]) -> int:
        """Call ``callback`` in so many seconds; returns the key by which that is taken back."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        due, key = self._loop.time() + seconds, next(self._keys)
        self._waiting[key] = (due, callback)
        if due < self._due:
            self._look_at(due)
        return key

    def discard(self, key: int) -> None:
        """Take one back; one that was called or taken back is none."""
        self._waiting.pop(key, None)

    def _look_at(self, due: float) -> None:
        assert self._loop is not None
        if self._handle is not None:
            self._handle.cancel()
        # Loops count milliseconds, of which uvloop rounds: one that is early would look again and again.
        delay = max(_LEAST_S, due - self._loop.time() + _LEAST_S / 2)
        self._due, self._handle = due, self._loop.call_later(delay, self._look)

    def _look(self) -> None:
        assert self._loop is not None
        now = self._loop.time()
        self._due, self._handle = math.inf, None
        try:
            for key, (due, callback) in list(self._waiting.items()):
                if due <= now and self._waiting.pop(key, None) is not None:  # one may take another back
                    callback()
        finally:  # one that fails does not keep the others
            left = min((due for due, _ in self._waiting.values()), default=math.inf)
            if left < self._due:
                self._look_at(left)
