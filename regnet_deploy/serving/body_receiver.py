"""Receives request bodies of known length directly into the memory in which the application uses them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
from starlette.requests import ClientDisconnect

#: Key of the ASGI extension that gives a request's body in one piece; its value is a :data:`TakeBody`.
BODY_EXTENSION = "regnet-deploy.body"

#: Called with the number of bytes that arrived; may raise where they are too many.
CountBytes = Callable[[int], None]

#: ``(offset, count)`` to the body, or to its future where the rest of it has not arrived. The memory is aligned
#: ``offset`` bytes behind the body's start, where it is allocated for this body. A body whose future is cancelled is
#: read and discarded.
TakeBody = Callable[[int, CountBytes], "bytes | bytearray | asyncio.Future[memoryview]"]

#: Size of the buffer into which everything but such bodies is read. On a connection with longer bodies only
#: :data:`MIN_DIRECT_BYTES` of it are used, so that less of the next body has to be copied.
READ_BYTES = 256 * 2**10

#: Missing bytes of a body from which on it is received directly.
MIN_DIRECT_BYTES = 64 * 2**10

#: Size of a body up to which it is received directly: its memory is reserved at its start. The system provides the
#: pages as they are written.
MAX_DIRECT_BYTES = 8 * 2**20

#: Tensors are aligned to cache lines.
_ALIGNMENT = 64


def create_read_buffer() -> memoryview:
    """Return a buffer for reads; all connections of one event loop can share it."""
    return memoryview(bytearray(READ_BYTES))


class BodyReceiver(asyncio.BufferedProtocol):
    """Stands between a transport and the HTTP protocol of its connection, and receives bodies in the protocol's place.

    Without it the transport makes an object of each piece that it reads, the parser another one, and the application
    joins them: every byte of a tensor is copied three times.
    """

    def __init__(self, protocol: Any, buffer: memoryview, lost: Callable[[], None] = lambda: None) -> None:
        """Create the receiver of one connection.

        Args:
            protocol: an :class:`asyncio.Protocol` with an attribute ``receiver``. It gets views of ``buffer``, which
                are valid during the call.
            buffer: see :func:`create_read_buffer`.
            lost: called when the connection is gone.
        """
        self._protocol, self._buffer, self._lost = protocol, buffer, lost
        self._body: PartialBody | DiscardedBody | None = None
        self._on_complete: Callable[[], None] | None = None
        self._read_bytes = READ_BYTES
        protocol.receiver = self

    @property
    def is_receiving(self) -> bool:
        """Whether the next bytes belong to a body."""
        return self._body is not None

    def receive(self, body: PartialBody | DiscardedBody, on_complete: Callable[[], None]) -> None:
        """Give the next bytes to ``body`` until it is complete, and call ``on_complete`` then."""
        self._body, self._on_complete = body, on_complete

    def expect(self, length: int) -> None:
        """Note the length of a body of this connection: the next one probably has the same."""
        self._read_bytes = MIN_DIRECT_BYTES if length > READ_BYTES else READ_BYTES

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Forward to the protocol."""
        self._protocol.connection_made(transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return the memory for the next read."""
        return self._buffer[: self._read_bytes] if self._body is None else self._body.get_buffer(self._buffer)

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was read."""
        if self._body is None:
            self._protocol.data_received(self._buffer[:nbytes])
        elif self._body.received(nbytes):
            on_complete, self._body, self._on_complete = self._on_complete, None, None
            if on_complete is not None:
                on_complete()

    def eof_received(self) -> bool | None:
        """Forward to the protocol."""
        return self._protocol.eof_received()  # type: ignore[no-any-return]

    def connection_lost(self, exc: Exception | None) -> None:
        """End the body that is being received, and forward to the protocol."""
        body, self._body, self._on_complete = self._body, None, None
        if body is not None:
            body.connection_lost()
        self._lost()
        self._protocol.connection_lost(exc)
        self._protocol.receiver = None  # a reference cycle would keep the memory until the next garbage collection

    def pause_writing(self) -> None:
        """Forward to the protocol."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """Forward to the protocol."""
        self._protocol.resume_writing()


class DiscardedBody:
    """The rest of a body that nobody reads, because its request was answered before."""

    def __init__(self, missing: int) -> None:
        self._missing = missing

    def get_buffer(self, buffer: memoryview) -> memoryview:
        """Return where the next bytes go: into ``buffer``."""
        return buffer[: self._missing]

    def received(self, count: int) -> bool:
        """Note that ``count`` bytes arrived; return whether they were the last."""
        self._missing -= count
        return not self._missing

    def connection_lost(self) -> None:
        """Do nothing: nobody waits."""


class PartialBody:
    """A body of which the rest is received.

    Attributes:
        complete: future of the whole body. Where it is cancelled, or the count raises, the rest is discarded.
    """

    def __init__(self, start: bytes | bytearray, length: int, offset: int, count: CountBytes) -> None:
        """Reserve the memory.

        Args:
            start: the bytes that are there.
            length: of the whole body, in bytes; more than those.
            offset: bytes behind the body's start that are aligned.
            count: see :data:`CountBytes`; what it raises becomes the exception of ``complete``.
        """
        self.complete: asyncio.Future[memoryview] = asyncio.get_running_loop().create_future()
        self._memory: memoryview | None = _allocate(length, offset)
        self._memory[: len(start)] = start
        self._missing, self._count = length - len(start), count
        self._count_bytes(len(start))

    def get_buffer(self, buffer: memoryview) -> memoryview:
        """Return where the next bytes go: into ``buffer`` where nobody wants them."""
        if self.complete.done():
            self._memory = None
        return buffer[: self._missing] if self._memory is None else self._memory[-self._missing :]

    def received(self, count: int) -> bool:
        """Note that ``count`` bytes arrived; return whether they were the last."""
        self._missing -= count
        self._count_bytes(count)
        if not self._missing and self._memory is not None and not self.complete.done():
            self.complete.set_result(self._memory)
        return not self._missing

    def connection_lost(self) -> None:
        """Tell whoever waits that the client is gone."""
        self._memory = None
        if not self.complete.done():
            self.complete.set_exception(ClientDisconnect())

    def _count_bytes(self, count: int) -> None:
        if not self.complete.done():
            try:
                self._count(count)
            except Exception as error:
                self._memory = None
                self.complete.set_exception(error.with_traceback(None))  # its frames lead here: a reference cycle


def _allocate(length: int, offset: int) -> memoryview:
    memory = np.empty(length + _ALIGNMENT, np.uint8)  # zeros would be written first
    first = -(memory.ctypes.data + offset) % _ALIGNMENT
    return memory.data[first : first + length]
