"""Admission of requests: by the server's state, the number in flight and the memory of their bodies."""

from __future__ import annotations

from enum import Enum

from regnet_deploy.serving.errors import RequestError


class ServerState(Enum):
    """State of a server; the value is what a client is told."""

    STARTING = "the golden set is being replayed"
    READY = "ready"
    LEAVING = "the server is about to stop"
    DRAINING = "the server is stopping"


class AdmissionSlot:
    """The admission of one request; holds the count of its body's bytes."""

    __slots__ = ("_admission", "bytes")

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.bytes = 0

    def __enter__(self) -> AdmissionSlot:
        """Count the request."""
        self._admission.in_flight += 1
        return self

    def __exit__(self, *error: object) -> None:
        """Stop counting the request and its bytes."""
        self._admission.in_flight -= 1
        self._admission.bytes_in_flight -= self.bytes

    def take(self, count: int) -> bool:
        """Count ``count`` more bytes; return False where all bodies together would have too many."""
        if self._admission.bytes_in_flight + count > self._admission.max_bytes:
            return False
        self._admission.bytes_in_flight += count
        self.bytes += count
        return True


class Admission:
    """State of the server and its requests in flight; used from the event loop only.

    Attributes:
        state: requests are admitted in :attr:`ServerState.READY` and :attr:`ServerState.LEAVING`; in the latter,
            readiness probes get 503 already.
        in_flight: admitted requests.
        bytes_in_flight: bytes of their bodies, as sent.
        max_bytes: limit of these.
    """

    def __init__(
        self, max_in_flight: int, state: ServerState = ServerState.READY, max_bytes: int = 256 * 2**20
    ) -> None:
        self.state = state
        self.in_flight = 0
        self.bytes_in_flight = 0
        self.max_bytes = max_bytes
        self._max_in_flight = max_in_flight

    def enter(self) -> AdmissionSlot:
        """Admit one request; the context lasts from before its body is read until its response is made.

        Raises:
            RequestError: status 503, the server is not ready or full.
        """
        if self.state not in (ServerState.READY, ServerState.LEAVING):
            raise RequestError(self.state.value, 503)
        if self.in_flight >= self._max_in_flight:
            raise RequestError(f"{self.in_flight} requests are in flight already, try again", 503)
        return AdmissionSlot(self)
