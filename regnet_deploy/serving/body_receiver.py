"""Bodies of known length: the system writes them into the memory in which they are used."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
from starlette.requests import ClientDisconnect

#: Of the extensions in a request's scope: a function that gives the body in one piece. It takes how far behind the
#: body's start the memory is to be aligned, if there is any to be asked for, and who counts bytes as they arrive, may
#: raise for too many. It returns the body, where that is there, or its future; what arrives once nobody waits for that
#: is thrown away.
WHOLE = "regnet_deploy.whole_body"

Count = Callable[[int], None]
Whole = Callable[[int, Count], "bytearray | asyncio.Future[memoryview]"]

#: Bytes that are read at once where no body is waited for: on a connection whose bodies fit in they come with their
#: heads. On others less is read, and of a body less copied.
READ_BYTES = 256 * 2**10

#: What is still to come of a body from which on it is received so.
LEAST_BYTES = 64 * 2**10

#: Bytes of a body up to which it is received so: memory for all of it is asked for when it begins. It takes none of the
#: system's before it arrives.
MOST_BYTES = 8 * 2**20

#: To which tensors are aligned: a line of the cache.
_ALIGNED = 64


def read_buffer() -> memoryview:
    """Return memory for what is read at once; all connections of one event loop may share it."""
    return memoryview(bytearray(READ_BYTES))


class BodyReceiver(asyncio.BufferedProtocol):
    """Between a transport and the protocol of its connection: hands that what arrives, but for :class:`Rest`.

    By itself a transport makes an object of every piece that it reads, a parser another one, and the application joins
    them: a tensor is copied again and again before it is one.
    """

    def __init__(self, connection: Any, memory: memoryview) -> None:
        """``connection`` is an :class:`asyncio.Protocol`; what it is given is ``memory``, and valid for that call."""
        self._connection, self._memory = connection, memory
        self._rest: PartialBody | DiscardedBody | None = None
        self._finished: Callable[[], None] | None = None
        self._most = READ_BYTES
        connection.receiver = self

    @property
    def is_receiving(self) -> bool:
        """Whether what comes next is taken by a :class:`Rest`."""
        return self._rest is not None

    def receive(self, rest: PartialBody | DiscardedBody, finished: Callable[[], None]) -> None:
        """Have the next bytes taken by ``rest`` until it has all; ``finished`` is called then."""
        self._rest, self._finished = rest, finished

    def expect(self, length: int) -> None:
        """Note how long a body of this connection is: the next one is likely to be as long."""
        self._most = LEAST_BYTES if length > READ_BYTES else READ_BYTES

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Hand on."""
        self._connection.connection_made(transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return memory for the next bytes."""
        return self._memory[: self._most] if self._rest is None else self._rest.room(self._memory)

    def buffer_updated(self, nbytes: int) -> None:
        """Take them."""
        if self._rest is None:
            self._connection.data_received(self._memory[:nbytes])
        elif self._rest.took(nbytes):
            finished, self._rest, self._finished = self._finished, None, None
            if finished is not None:
                finished()

    def eof_received(self) -> bool | None:
        """Hand on."""
        return self._connection.eof_received()  # type: ignore[no-any-return]

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell who waits for a body, and hand on."""
        rest, self._rest, self._finished = self._rest, None, None
        if rest is not None:
            rest.lost()
        self._connection.connection_lost(exc)
        self._connection.receiver = None  # what refers to itself would keep its memory until it is looked for

    def pause_writing(self) -> None:
        """Hand on."""
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        """Hand on."""
        self._connection.resume_writing()


class DiscardedBody:
    """What is still to come of a body that nobody wants: a request that is answered before it is there."""

    def __init__(self, left: int) -> None:
        self._left = left

    def room(self, memory: memoryview) -> memoryview:
        """Return where the next bytes go, which is of ``memory``."""
        return memory[: self._left]

    def took(self, count: int) -> bool:
        """Note that bytes came, and tell whether those were the last."""
        self._left -= count
        return not self._left

    def lost(self) -> None:
        """Note that nothing more will come."""


class PartialBody:
    """What is still to come of a body.

    Attributes:
        whole: the future of the body. When that is cancelled, or a count raises, the rest is thrown away.
    """

    def __init__(self, begun: bytes | bytearray, length: int, lead: int, count: Count) -> None:
        """Ask for memory.

        Args:
            begun: what is there.
            length: bytes of all of it, more than those.
            lead: bytes behind the body's start that are aligned.
            count: told how many bytes came; what it raises is raised by ``whole``.
        """
        self.whole: asyncio.Future[memoryview] = asyncio.get_running_loop().create_future()
        self._body: memoryview | None = _aligned(length, lead)
        self._body[: len(begun)] = begun
        self._left, self._count = length - len(begun), count
        self._counted(len(begun))

    def room(self, memory: memoryview) -> memoryview:
        """Return where the next bytes go; into ``memory`` where nobody wants them."""
        if self.whole.done():
            self._body = None
        return memory[: self._left] if self._body is None else self._body[-self._left :]

    def took(self, count: int) -> bool:
        """Note that bytes came, and tell whether those were the last."""
        self._left -= count
        self._counted(count)
        if not self._left and self._body is not None and not self.whole.done():
            self.whole.set_result(self._body)
        return not self._left

    def lost(self) -> None:
        """Note that nothing more will come."""
        self._body = None
        if not self.whole.done():
            self.whole.set_exception(ClientDisconnect())

    def _counted(self, count: int) -> None:
        if not self.whole.done():
            try:
                self._count(count)
            except Exception as error:
                self._body = None
                self.whole.set_exception(error.with_traceback(None))  # which leads here, and from here to the error


def _aligned(length: int, lead: int) -> memoryview:
    memory = np.empty(length + _ALIGNED, np.uint8)  # not zeros: those would be written first
    first = -(memory.ctypes.data + lead) % _ALIGNED
    return memory.data[first : first + length]
