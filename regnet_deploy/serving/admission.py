"""Who is let in: whether the server is ready, how many requests are inside, and how much memory they may take."""

from __future__ import annotations

from enum import Enum

from regnet_deploy.serving.errors import RequestError


class ServerState(Enum):
    """Life of a server; the value is what a client is told."""

    STARTING = "the golden set is being replayed"
    READY = "ready"
    LEAVING = "the server is about to stop"
    DRAINING = "the server is stopping"


class AdmissionSlot:
    """The place of one request, with the bytes of its body that count for as long as it is held."""

    __slots__ = ("_admission", "bytes")

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.bytes = 0

    def __enter__(self) -> AdmissionSlot:
        """Take it."""
        self._admission.in_flight += 1
        return self

    def __exit__(self, *error: object) -> None:
        """Give it back, with all its bytes."""
        self._admission.in_flight -= 1
        self._admission.bytes_in_flight -= self.bytes

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
        state: :attr:`State.READY` lets requests in, and so does :attr:`State.LEAVING`, which tells those who send
            them to send them elsewhere.
        in_flight: requests inside.
        bytes_in_flight: of their bodies, as they were sent.
        max_bytes: that these may have together.
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
        """Return a place for one request, a context to be held from before its body is read until its answer is made.

        Raises:
            RequestError: status 503, the server is not ready or full.
        """
        if self.state not in (ServerState.READY, ServerState.LEAVING):
            raise RequestError(self.state.value, 503)
        if self.in_flight >= self._max_in_flight:
            raise RequestError(f"{self.in_flight} requests are in flight already, try again", 503)
        return AdmissionSlot(self)
