"""One decode process from the server's side: start, requests, end."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import cast

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.errors import DataError
from regnet_deploy.images.preprocessing import image_shape
from regnet_deploy.serving.decode_worker import ANSWER, HELLO, MAX_TEXT, PIXELS, REFUSED, DecodeRequest
from regnet_deploy.serving.request_body import Body
from regnet_deploy.serving.scheduling import is_batch_scheduled

#: Seconds in which a process must become ready.
START_S = 60.0
#: Seconds to wait for the end of a process that was killed.
_REAP_S = 5.0
#: Socket buffers between the server and a process: large, so that an image takes few reads.
_SOCKET_BYTES = 2**20
#: What a process runs. It imports from the server's module path: not from the environment's, and not from the current
#: folder, where any file could have the name of a module.
_PROGRAM = (
    "import sys; sys.path[:] = sys.argv[5:]; "
    "from regnet_deploy.serving.decode_worker import main; "
    "main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4] == 'True')"
)
#: Environment variables that a process gets: no tokens, no keys. Numerical libraries use one thread.
_INHERITED = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL")
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class DecoderDied(Exception):
    """The process ended while it decoded an image.

    Attributes:
        expired: it was killed because the image took too long.
    """

    def __init__(self, expired: bool = False) -> None:
        super().__init__()
        self.expired = expired


class Decoder(asyncio.BufferedProtocol):
    """One process and the stream to it; decodes one image at a time.

    Attributes:
        process: the process.
        ready: done when the process is ready.
        ended: done when the stream is closed.
        expired: whether the process was killed because an image took too long.
    """

    def __init__(self, process: subprocess.Popen[bytes], timeout_s: float, lost: Callable[[Decoder], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self.process = process
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self.expired = False
        self._timeout_s, self._lost = timeout_s, lost
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._answer: asyncio.Future[NDArray[np.uint8]] | None = None
        self._free: Callable[[Decoder], None] | None = None
        self._image = (0, 0, 0)
        self._reset_buffer()

    def ask(
        self, image: Body, preprocessing: Preprocessing, free: Callable[[Decoder], None]
    ) -> asyncio.Future[NDArray[np.uint8]]:
        """Return the future of an image's pixels; ``free`` is called when the process can take the next image.

        The future may be cancelled: the process finishes the image all the same, and its pixels are dropped.
        """
        assert self._transport is not None
        self._answer, self._free = self._loop.create_future(), free
        self._image = image_shape(preprocessing, pixels=True)
        # A response is received into one buffer, of which the returned pixels are a view.
        self._buffer = np.empty(ANSWER.size + max(math.prod(self._image), MAX_TEXT), np.uint8)
        self._timer = self._loop.call_later(self._timeout_s, self._expire)
        self._transport.write(DecodeRequest(preprocessing, len(image)).to_bytes())
        self._transport.write(image)
        return self._answer

    def stop(self) -> None:
        """Kill the process and close the stream."""
        self.process.kill()
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return the free part of the buffer; it is never full, because a complete response is taken at once."""
        return self._buffer.data[self._received :]

    def buffer_updated(self, nbytes: int) -> None:
        """Handle received bytes; the response may be complete."""
        self._received += nbytes
        if self._received < ANSWER.size:
            return
        kind, size = ANSWER.unpack_from(self._buffer.data)
        end = ANSWER.size + size
        if self._received > end or not self._is_valid(kind, size):
            self.stop()  # it breaks the protocol: an image may have taken it over
        elif self._received == end:
            body = self._buffer[ANSWER.size : end]
            self._reset_buffer()
            self._take(kind, body)

    def connection_lost(self, exc: Exception | None) -> None:
        """Report the end of the process."""
        self.stop()
        self.ended.set_result(None)
        if not self.ready.done():
            self.ready.set_exception(DecoderDied())
        self._lost(self)
        self._settle(DecoderDied(self.expired))

    def _reset_buffer(self) -> None:
        self._buffer, self._received = np.empty(ANSWER.size, np.uint8), 0

    def _is_valid(self, kind: int, size: int) -> bool:
        if self._answer is None:
            return kind == HELLO and size == 0 and not self.ready.done()
        return (kind == PIXELS and size == math.prod(self._image)) or (kind == REFUSED and size <= MAX_TEXT)

    def _take(self, kind: int, body: NDArray[np.uint8]) -> None:
        if kind == HELLO:
            if not self.ready.done():  # else nobody waits any more
                self.ready.set_result(None)
            return
        free = self._free
        if kind == PIXELS:
            self._settle(body.reshape(self._image))
        else:
            text = bytes(body).decode("utf-8", "replace")
            self._settle(DataError("".join(letter if letter.isprintable() else " " for letter in text)))
        if free is not None:
            free(self)

    def _settle(self, outcome: NDArray[np.uint8] | Exception) -> None:
        answer, self._answer, self._free = self._answer, None, None
        if self._timer is not None:
            self._timer.cancel()
        if answer is None or answer.done():  # the caller is gone
            return
        if isinstance(outcome, Exception):
            answer.set_exception(outcome)
        else:
            answer.set_result(outcome)

    def _expire(self) -> None:
        self.expired = True
        self.stop()


async def start_decoder(max_pixels: int, timeout_s: float, lost: Callable[[Decoder], None]) -> Decoder:
    """Start a process and wait until it is ready.

    Args:
        max_pixels: limit of an image's width times height.
        timeout_s: seconds that an image may take.
        lost: called once when the process has ended, ready or not.

    Raises:
        OSError: the process cannot be started.
        DecoderDied: it ended before it was ready.
        asyncio.TimeoutError: it was not ready within :data:`START_S` seconds.
    """
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
                end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BYTES)
            decoder = Decoder(_start_process(theirs, max_pixels, timeout_s), timeout_s, lost)
    except BaseException:
        ours.close()
        raise
    try:
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: decoder, sock=ours)
        except BaseException:
            ours.close()
            raise
        await asyncio.wait_for(decoder.ready, START_S)
    except BaseException:
        decoder.stop()
        await reap(decoder.process)
        raise
    return decoder


def _start_process(stream: socket.socket, max_pixels: int, timeout_s: float) -> subprocess.Popen[bytes]:
    environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    arguments = [str(stream.fileno()), str(max_pixels), str(2 * timeout_s), str(is_batch_scheduled())]
    return subprocess.Popen(
        [sys.executable, "-I", "-c", _PROGRAM, *arguments, *sys.path],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=[stream.fileno()],
        start_new_session=True,  # signals of the terminal are for the server
        env={**environment, **_ONE_THREAD},
    )


async def reap(process: subprocess.Popen[bytes]) -> int | None:
    """Wait for a process that was killed or has ended, and return its status; None where it does not end in time."""
    give_up = time.monotonic() + _REAP_S
    try:
        while process.poll() is None and time.monotonic() < give_up:
            await asyncio.sleep(0.002)
    except asyncio.CancelledError:  # nobody else would reap it, and it ends at once
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_REAP_S)
        raise
    return process.returncode
