"""Who is let in: whether the server is ready, and how many requests are inside."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from enum import Enum

from regnet_deploy.serving.protocol import RequestError


class State(Enum):
    """Life of a server; the value is what a client is told."""

    STARTING = "the golden set is being replayed"
    READY = "ready"
    DRAINING = "the server is stopping"


class Admission:
    """State of the server and its requests in flight; used from the event loop only.

    Attributes:
        state: only :attr:`State.READY` lets requests in.
        in_flight: requests inside.
    """

    def __init__(self, max_in_flight: int, state: State = State.READY) -> None:
        self.state = state
        self.in_flight = 0
        self._max_in_flight = max_in_flight

    @contextlib.contextmanager
    def enter(self) -> Iterator[None]:
        """Hold a place for one request, from before its body is read until its answer is made.

        Raises:
            RequestError: status 503, the server is not ready or full.
        """
        if self.state is not State.READY:
            raise RequestError(self.state.value, 503)
        if self.in_flight >= self._max_in_flight:
            raise RequestError(f"{self.in_flight} requests are in flight already, try again", 503)
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1
