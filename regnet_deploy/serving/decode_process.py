"""One process that decodes, as the server sees it: started, asked, ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import cast

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.errors import DataError
from regnet_deploy.images.preprocessing import Preprocessing
from regnet_deploy.serving.decode_worker import ANSWER, HELLO, MAX_TEXT, PIXELS, REFUSED, DecodeRequest
from regnet_deploy.serving.request_body import Body

#: Seconds in which a process must be ready.
START_S = 60.0
#: Seconds in which the system takes back a process that was killed.
_REAP_S = 5.0
#: Bytes that the system is asked to hold each way between the server and a process, so that an image takes few turns.
_SOCKET_BYTES = 2**20
#: What a process runs. It looks for modules where the server found its own: not by the environment, and not in the
#: folder that the server was started in, where any file may be called like a module.
_PROGRAM = (
    "import sys; sys.path[:] = sys.argv[4:]; "
    "from regnet_deploy.serving.decode_worker import main; "
    "main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))"
)
#: What of the environment a process is given: not tokens, not keys. A decoder that computes has one thread.
_INHERITED = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL")
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class DecoderDied(Exception):
    """The process that had the image ended.

    Attributes:
        expired: it was ended because the image took too long.
    """

    def __init__(self, expired: bool = False) -> None:
        super().__init__()
        self.expired = expired


class Decoder(asyncio.BufferedProtocol):
    """One process and the stream to it; one image at a time.

    Attributes:
        process: what was started.
        ready: done when it has said that it is.
        ended: done when the stream has, and the process with it.
        expired: whether it was ended because an image took too long.
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
        self._side = 0
        self._expect_nothing()

    def ask(
        self, image: Body, preprocessing: Preprocessing, free: Callable[[Decoder], None]
    ) -> asyncio.Future[NDArray[np.uint8]]:
        """Return what will be the pixels; ``free`` is called when the next image may come, wanted or not.

        The future may be cancelled: the process finishes the image all the same, so that its next answer is not this.
        """
        assert self._transport is not None
        self._answer, self._free, self._side = self._loop.create_future(), free, preprocessing.crop
        # An answer is received into one buffer, and the pixels that are returned are the part of it that they are.
        self._buffer = np.empty(ANSWER.size + max(self._side**2 * 3, MAX_TEXT), np.uint8)
        self._timer = self._loop.call_later(self._timeout_s, self._expire)
        self._transport.write(DecodeRequest(preprocessing, len(image)).to_bytes())
        self._transport.write(image)
        return self._answer

    def stop(self) -> None:
        """End the process and the stream at once."""
        self.process.kill()
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the stream."""
        self._transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where to put what comes; there is always room, because a complete answer is taken at once."""
        return self._buffer.data[self._received :]

    def buffer_updated(self, nbytes: int) -> None:
        """Take what has come: the answer may be complete."""
        self._received += nbytes
        if self._received < ANSWER.size:
            return
        kind, size = ANSWER.unpack_from(self._buffer.data)
        end = ANSWER.size + size
        if self._received > end or not self._may_be(kind, size):
            self.stop()  # it does not keep to what was agreed: an image has got hold of it
        elif self._received == end:
            body = self._buffer[ANSWER.size : end]
            self._expect_nothing()
            self._take(kind, body)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits that the process has ended."""
        self.stop()
        self.ended.set_result(None)
        if not self.ready.done():
            self.ready.set_exception(DecoderDied())
        self._lost(self)
        self._settle(DecoderDied(self.expired))

    def _expect_nothing(self) -> None:
        self._buffer, self._received = np.empty(ANSWER.size, np.uint8), 0

    def _may_be(self, kind: int, size: int) -> bool:
        if self._answer is None:
            return kind == HELLO and size == 0 and not self.ready.done()
        return (kind == PIXELS and size == self._side**2 * 3) or (kind == REFUSED and size <= MAX_TEXT)

    def _take(self, kind: int, body: NDArray[np.uint8]) -> None:
        if kind == HELLO:
            if not self.ready.done():  # else nobody waits for it any more
                self.ready.set_result(None)
            return
        free = self._free
        if kind == PIXELS:
            self._settle(body.reshape(self._side, self._side, 3))
        else:
            text = bytes(body).decode("utf-8", "replace")
            self._settle(DataError("".join(letter if letter.isprintable() else " " for letter in text)))
        if free is not None:
            free(self)

    def _settle(self, outcome: NDArray[np.uint8] | Exception) -> None:
        answer, self._answer, self._free = self._answer, None, None
        if self._timer is not None:
            self._timer.cancel()
        if answer is None or answer.done():  # whoever asked has gone
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
        max_pixels: width times height of an image, beyond which it is refused.
        timeout_s: seconds that an image may take.
        lost: called once when the process has ended, ready or not.

    Raises:
        OSError: the system does not start it.
        Died: it ended before it was ready.
        asyncio.TimeoutError: it was not ready within :data:`START_S`.
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
    arguments = [str(stream.fileno()), str(max_pixels), str(2 * timeout_s)]
    return subprocess.Popen(
        [sys.executable, "-I", "-c", _PROGRAM, *arguments, *sys.path],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=[stream.fileno()],
        start_new_session=True,  # what is typed at the terminal is for the server
        env={**environment, **_ONE_THREAD},
    )


async def reap(process: subprocess.Popen[bytes]) -> int | None:
    """Return the status of a process that was killed or has ended; None where the system holds on to it."""
    give_up = time.monotonic() + _REAP_S
    try:
        while process.poll() is None and time.monotonic() < give_up:
            await asyncio.sleep(0.002)
    except asyncio.CancelledError:  # nobody else would take it back, and it takes no longer than to be told to leave
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_REAP_S)
        raise
    return process.returncode
