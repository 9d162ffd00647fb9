"""Who is let in: whether the server is ready, how many requests are inside, and how much memory they may take."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from enum import Enum

from regnet_deploy.serving.refusals import RequestError


class State(Enum):
    """Life of a server; the value is what a client is told."""

    STARTING = "the golden set is being replayed"
    READY = "ready"
    DRAINING = "the server is stopping"


class Place:
    """The place of one request, with the bytes of its body that count for as long as it is held."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.bytes = 0

    def take(self, count: int) -> bool:
        """Count ``count`` more bytes; False where the bodies of all requests together would be too many."""
        if self._admission.bytes_in_flight + count > self._admission.max_bytes:
            return False
        self._admission.bytes_in_flight += count
        self.bytes += count
        return True


class Admission:
    """State of the server and its requests in flight; used from the event loop only.

    Attributes:
        state: only :attr:`State.READY` lets requests in.
        in_flight: requests inside.
        bytes_in_flight: of their bodies, as they were sent.
        max_bytes: that these may have together.
    """

    def __init__(self, max_in_flight: int, state: State = State.READY, max_bytes: int = 256 * 2**20) -> None:
        self.state = state
        self.in_flight = 0
        self.bytes_in_flight = 0
        self.max_bytes = max_bytes
        self._max_in_flight = max_in_flight

    @contextlib.contextmanager
    def enter(self) -> Iterator[Place]:
        """Hold a place for one request, from before its body is read until its answer is made.

        Raises:
            RequestError: status 503, the server is not ready or full.
        """
        if self.state is not State.READY:
            raise RequestError(self.state.value, 503)
        if self.in_flight >= self._max_in_flight:
            raise RequestError(f"{self.in_flight} requests are in flight already, try again", 503)
        self.in_flight += 1
        place = Place(self)
        try:
            yield place
        finally:
            self.in_flight -= 1
            self.bytes_in_flight -= place.bytes


class Budget:
    """An amount that several threads share: who wants more than is left waits."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._left = total
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def hold(self, amount: int) -> Iterator[None]:
        """Take ``amount`` for as long as the context lasts; of more than there is in all, all is taken."""
        amount = min(amount, self._total)
        with self._changed:
            self._changed.wait_for(lambda: self._left >= amount)
            self._left -= amount
        try:
            yield
        finally:
            with self._changed:
                self._left += amount
                self._changed.notify_all()
