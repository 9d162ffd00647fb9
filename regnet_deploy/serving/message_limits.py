"""Messages that are being read: of which there is room for a few, because their sizes are known when they are there.

Nobody sees whether a stream that has sent no message is about to. So one that is let in has a moment for itself, and
after it only as long as nobody else waits: who is silent, or slow, makes room for who speaks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from regnet_deploy.serving.errors import RequestError

T = TypeVar("T")


class _Stream:
    """One message on its way."""

    __slots__ = ("ended", "peer", "scope", "since", "turn")

    def __init__(self, peer: str, scope: anyio.CancelScope, turn: asyncio.Future[None]) -> None:
        self.peer, self.scope, self.turn = peer, scope, turn
        self.since = 0.0
        self.ended = False


class MessageLimits:
    """So many messages that are read at a time, and those that wait for that; used from one event loop."""

    def __init__(self, places: int, grace_s: float, *, of_a_peer: int, waiting_of_a_peer: int) -> None:
        """Make room.

        Args:
            places: messages that are read at a time.
            grace_s: seconds that each of them has, whoever waits.
            of_a_peer: of the places, those that one connection can have.
            waiting_of_a_peer: messages of one connection that may wait; more are told to come back.
        """
        self._places, self._grace_s = places, grace_s
        self._of_a_peer, self._waiting_of_a_peer = of_a_peer, waiting_of_a_peer
        self._reading: list[_Stream] = []  # in the order in which they were let in
        self._waiting: list[_Stream] = []
        self._timer: asyncio.TimerHandle | None = None

    async def read(self, peer: str, read: Callable[[], Awaitable[T]], timeout_s: float) -> T:
        """Return what ``read`` does, when it is its turn.

        Args:
            peer: the connection.
            read: waits for the message.
            timeout_s: seconds for all of it.

        Raises:
            RequestError: it did not come in time (408), made room for others, or too many of its peer wait (503).
        """
        if sum(one.peer == peer for one in self._waiting) >= self._waiting_of_a_peer:
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
        """Let in who has room, and end those that have kept others waiting for long enough."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        loop = asyncio.get_running_loop()
        while self._waiting:
            # Whose connection has the fewest goes first: many streams of one do not stand before the one of another.
            first = min(self._waiting, key=lambda one: self._places_of(one.peer))
            if self._places_of(first.peer) >= self._of_a_peer:
                in_the_way = [one for one in self._reading if one.peer == first.peer]
            elif len(self._reading) >= self._places:
                in_the_way = self._reading
            else:
                in_the_way = []
            if in_the_way:
                until = in_the_way[0].since + self._grace_s
                if loop.time() < until:
                    self._timer = loop.call_at(until, self._settle)
                    return
                slow = [one for one in in_the_way if one.since + self._grace_s <= loop.time()]
                self._end(max(slow, key=lambda one: self._places_of(one.peer)))
            self._waiting.remove(first)
            first.since = loop.time()
            self._reading.append(first)
            if not first.turn.done():  # else it was cancelled a moment ago, and is about to leave
                first.turn.set_result(None)

    def _places_of(self, peer: str) -> int:
        return sum(one.peer == peer for one in self._reading)

    def _end(self, stream: _Stream) -> None:
        self._reading.remove(stream)
        stream.ended = True
        stream.scope.cancel()
