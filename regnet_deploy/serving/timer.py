"""A time limit for what one task of asyncio waits for."""

from __future__ import annotations

import asyncio
from types import TracebackType


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
