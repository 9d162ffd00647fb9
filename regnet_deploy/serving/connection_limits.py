"""Limits of the connections of a listening socket."""

from __future__ import annotations

from dataclasses import dataclass

#: Connections at a time beside those that are limited, while they are refused, and as many in TLS handshakes.
_MAX_SPARE = 64


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits of one listening socket, which uvicorn lacks.

    Attributes:
        max_connections: open connections. For one more, the connection that has been idle for the longest is closed, if
            that is ``min_idle_s`` or more.
        timeout_s: seconds in which the head of a request must arrive, from the start of the connection or, on one that
            is kept alive, from the first byte after a response; also the seconds for which a response waits for its
            client to read.
        health_connections: connections beyond ``max_connections`` that are accepted where none has been idle for so
            long: they answer health requests, because a busy server is not a broken one, and others when there is a
            place within ``min_idle_s``. Further connections get 503.
        min_idle_s: seconds for which a connection must have been idle before it is closed for another one: a client
            that is about to send its next request would lose it.
        max_head_bytes: bytes of a request that are not body (head, chunk sizes, trailers) above which it gets 431. As
            many again as the body has are allowed for its chunks. httptools keeps them all in memory.
        max_pipelined: requests that wait behind the one that is being answered; more of them close the connection.
            uvicorn reads on after every response, however many requests wait.
    """

    max_connections: int
    timeout_s: float
    health_connections: int = 8
    min_idle_s: float = 0.5
    max_head_bytes: int = 64 * 2**10
    max_pipelined: int = 100

    def max_open(self, tls: bool) -> int:
        """Return the connections that are open at a time at most: with those that are refused, or in a handshake."""
        spare = min(_MAX_SPARE, max(4, self.max_connections // 8)) * (2 if tls else 1)
        return self.max_connections + self.health_connections + spare

    @property
    def full_error(self) -> str:
        """What a client is told that is one too many."""
        return f"{self.max_connections} connections are open already, try again"
