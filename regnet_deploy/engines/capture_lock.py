"""Keeps the capture of a CUDA graph apart from the other CUDA work of this process.

ONNX Runtime captures in CUDA's global mode: while it does, an allocation, a synchronous copy or a synchronization of
the device in any thread of the process fails (error 900), and it ends the capture too. So whoever uses the GPU does it
in :meth:`CaptureLock.working`, and whoever captures does it in :meth:`CaptureLock.capturing`.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator


class CaptureLock:
    """Any number of threads work on the GPU, or one captures."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._working = 0
        self._waiting = 0
        self._is_capturing = False

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Use the GPU in the body; waits while a thread captures or is about to."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_capturing and not self._waiting)
            self._working += 1
        try:
            yield
        finally:
            with self._changed:
                self._working -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def capturing(self, timeout_s: float) -> Iterator[bool]:
        """Capture in the body if it gets True: no other thread works. It gets False if others worked until the timeout.

        New work waits meanwhile, so a long timeout delays other models.

        Args:
            timeout_s: how long to wait for work in progress, seconds.
        """
        with self._changed:
            self._waiting += 1
            try:
                alone = self._changed.wait_for(lambda: not self._working and not self._is_capturing, timeout_s)
            finally:
                self._waiting -= 1
            self._is_capturing = self._is_capturing or alone
            self._changed.notify_all()
        try:
            yield alone
        finally:
            if alone:
                with self._changed:
                    self._is_capturing = False
                    self._changed.notify_all()


@functools.cache
def capture_lock() -> CaptureLock:
    """Return the lock of this process."""
    return CaptureLock()
