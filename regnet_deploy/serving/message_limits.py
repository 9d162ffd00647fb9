"""Limits how many gRPC messages are read at a time, because the size of a message is known only when it has arrived.

A stream that has sent no message may be about to, or may never do. So each stream that is read has a grace period;
after that it is ended when another stream waits: slow or silent streams make room for others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from regnet_deploy.serving.errors import RequestError

T = TypeVar("T")


class _Stream:
    """One stream whose message is awaited."""

    __slots__ = ("ended", "peer", "scope", "since", "turn")

    def __init__(self, peer: str, scope: anyio.CancelScope, turn: asyncio.Future[None]) -> None:
        self.peer, self.scope, self.turn = peer, scope, turn
        self.since = 0.0
        self.ended = False


class MessageLimits:
    """Streams whose messages are read, and those that wait; used from one event loop."""

    def __init__(self, max_reading: int, grace_s: float, *, per_peer: int, waiting_per_peer: int) -> None:
        """Set the limits.

        Args:
            max_reading: messages that are read at a time.
            grace_s: seconds that each of them has, even if others wait.
            per_peer: messages of one connection that are read at a time.
            waiting_per_peer: messages of one connection that may wait; more get 503.
        """
        self._max_reading, self._grace_s = max_reading, grace_s
        self._per_peer, self._waiting_per_peer = per_peer, waiting_per_peer
        self._reading: list[_Stream] = []  # in the order in which they started
        self._waiting: list[_Stream] = []
        self._timer: asyncio.TimerHandle | None = None

    async def read(self, peer: str, read: Callable[[], Awaitable[T]], timeout_s: float) -> T:
        """Wait for this message's turn, and return what ``read`` returns.

        Args:
            peer: address of the connection.
            read: waits for the message.
            timeout_s: seconds for the turn and the message together.

        Raises:
            RequestError: it did not arrive in time (408), had to make room for another (503), or too many of its peer
                wait (503).
        """
        if sum(one.peer == peer for one in self._waiting) >= self._waiting_per_peer:
            raise RequestError("too many calls of this connection have sent no message yet, try again", 503)
        with anyio.move_on_after(timeout_s) as scope:
            stream = _Stream(peer, scope, asyncio.get_running_loop().create_future())
            self._waiting.append(stream)
            try:
                self._settle()
                if not stream.turn.done():
                    await stream.turn
                return await read()
            finally:
                self._leave(stream)
        if stream.ended:
            raise RequestError(f"the call's message took more than {self._grace_s:g} s while others waited", 503)
        raise RequestError(f"the call's message did not arrive within {timeout_s:g} s", 408)

    def _leave(self, stream: _Stream) -> None:
        for streams in (self._reading, self._waiting):
            if stream in streams:
                streams.remove(stream)
        self._settle()

    def _settle(self) -> None:
        """Start waiting streams, and end those that others wait for after their grace period."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        loop = asyncio.get_running_loop()
        while self._waiting:
            # The connection with the fewest streams goes first, so that one with many does not delay others.
            first = min(self._waiting, key=lambda one: self._count_of(one.peer))
            if self._count_of(first.peer) >= self._per_peer:
                blocking = [one for one in self._reading if one.peer == first.peer]
            elif len(self._reading) >= self._max_reading:
                blocking = self._reading
            else:
                blocking = []
            if blocking:
                until = blocking[0].since + self._grace_s
                if loop.time() < until:
                    self._timer = loop.call_at(until, self._settle)
                    return
                slow = [one for one in blocking if one.since + self._grace_s <= loop.time()]
                self._end(max(slow, key=lambda one: self._count_of(one.peer)))
            self._waiting.remove(first)
            first.since = loop.time()
            self._reading.append(first)
            if not first.turn.done():  # else it was cancelled and is about to leave
                first.turn.set_result(None)

    def _count_of(self, peer: str) -> int:
        return sum(one.peer == peer for one in self._reading)

    def _end(self, stream: _Stream) -> None:
        self._reading.remove(stream)
        stream.ended = True
        stream.scope.cancel()
