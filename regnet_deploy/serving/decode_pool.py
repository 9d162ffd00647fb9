"""A pool of processes that decode images: an image that crashes its decoder ends a process, never the server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections import deque
from collections.abc import Coroutine

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.errors import RegnetDeployError, ServerError
from regnet_deploy.serving.decode_process import START_S, Decoder, DecoderDied, reap, start_decoder
from regnet_deploy.serving.errors import RequestError
from regnet_deploy.serving.request_body import Body

_log = logging.getLogger("regnet_deploy.serving")

#: Seconds between attempts to replace a process: the first wait, doubled up to the last.
_FIRST_WAIT_S, _LAST_WAIT_S = 0.1, 5.0


class DecodeFailed(RegnetDeployError):
    """An image was not decoded, and the image may not be the cause."""


class DecodePool:
    """Processes that decode images, and the calls that wait for one; used from one event loop."""

    def __init__(self, workers: int, max_pixels: int, timeout_s: float = 30.0) -> None:
        """Create a pool, not started yet.

        Args:
            workers: number of processes.
            max_pixels: limit of an image's width times height.
            timeout_s: seconds that an image may take once a process has it.
        """
        self._count, self._max_pixels, self._timeout_s = workers, max_pixels, timeout_s
        self._workers: set[Decoder] = set()
        self._ended: set[Decoder] = set()  # not reaped yet
        self._free: deque[Decoder] = deque()
        self._queue: deque[asyncio.Future[Decoder]] = deque()
        self._starting: set[asyncio.Task[None]] = set()
        self._restarts = 0
        self._closed = False

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes that are ready or decoding."""
        return tuple(sorted(worker.process.pid for worker in self._workers))

    @property
    def workers(self) -> int:
        """Number of processes, running or being started."""
        return self._count

    @property
    def waiting(self) -> int:
        """Images that wait for a process."""
        return len(self._queue)

    @property
    def busy(self) -> int:
        """Processes that are decoding."""
        return len(self._workers) - len(self._free)

    @property
    def restarts(self) -> int:
        """Processes that were replaced."""
        return self._restarts

    async def start(self) -> None:
        """Start the processes and wait until all are ready.

        Raises:
            ServerError: one of them did not start.
        """
        try:
            await asyncio.gather(*(self._in_background(self._start_one()) for _ in range(self._count)))
        except (TimeoutError, OSError, DecoderDied) as error:
            await self.close()
            raise ServerError(f"the decode processes do not start: {_reason(error)}") from None
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Stop the processes; images that are being decoded or wait are given up."""
        self._closed = True
        for task in self._starting:
            task.cancel()
        await asyncio.gather(*self._starting, return_exceptions=True)
        for worker in list(self._workers):
            worker.stop()
            await worker.ended
        for waiter in self._queue:
            if not waiter.done():
                waiter.set_exception(_closed())
        self._queue.clear()
        await asyncio.gather(*(reap(worker.process) for worker in self._ended))

    async def pixels(self, image: Body, preprocessing: Preprocessing) -> NDArray[np.uint8]:
        """Return the preprocessed pixels of an encoded image, ``(crop, crop, channels)``.

        Calls are served in order. A call that is cancelled leaves the queue, or its pixels are dropped.

        Raises:
            DataError: not a usable image.
            RequestError: two processes took too long to decode it (504), or the pool is closed (503).
            DecodeFailed: two processes ended while they decoded it.
        """
        expired = False
        for again in (False, True):
            worker = await self._take(ahead=again)
            try:
                return await worker.ask(image, preprocessing, self._give)
            except DecoderDied as died:
                expired = died.expired
        if self._closed:
            raise _closed()
        if expired:
            raise RequestError(f"image: not decoded within {self._timeout_s:g} s, twice", 504)
        raise DecodeFailed("image: its decode process ended, twice")

    async def _take(self, ahead: bool) -> Decoder:
        """Wait for a process; ``ahead``: before calls that have not had one yet."""
        while True:
            if self._closed:
                raise _closed()
            if self._free:
                return self._free.popleft()
            waiter: asyncio.Future[Decoder] = asyncio.get_running_loop().create_future()
            (self._queue.appendleft if ahead else self._queue.append)(waiter)
            try:
                worker = await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                    self._give(waiter.result())  # it was assigned at the same moment
                else:
                    with contextlib.suppress(ValueError):
                        self._queue.remove(waiter)
                raise
            if worker in self._workers:
                return worker
            ahead = True  # it ended after it was assigned

    def _give(self, worker: Decoder) -> None:
        """Give a process to the first call that waits."""
        if worker not in self._workers:
            return
        while self._queue:
            waiter = self._queue.popleft()
            if not waiter.done():
                waiter.set_result(worker)
                return
        self._free.append(worker)

    async def _start_one(self) -> None:
        worker = await start_decoder(self._max_pixels, self._timeout_s, self._lose)
        self._workers.add(worker)
        if worker.ended.done():  # since it became ready
            self._lose(worker)
        else:
            self._give(worker)

    def _in_background(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)
        return task

    def _lose(self, worker: Decoder) -> None:
        if worker not in self._workers:
            return  # it never became ready; start_decoder raises
        self._workers.remove(worker)
        self._ended.add(worker)
        with contextlib.suppress(ValueError):
            self._free.remove(worker)
        if not self._closed:
            self._in_background(self._replace(worker))

    async def _replace(self, ended: Decoder) -> None:
        status = await reap(ended.process)
        self._ended.discard(ended)
        how = f"an image took more than {self._timeout_s:g} s" if ended.expired else _how(status)
        _log.warning("a decode process ended (%s): it is replaced", how)
        wait = _FIRST_WAIT_S
        while True:
            try:
                await self._start_one()
            except Exception as error:
                _log.error("a decode process does not start (%s): next attempt in %g s", _reason(error), wait)
                await asyncio.sleep(wait)
                wait = min(2 * wait, _LAST_WAIT_S)
            else:
                self._restarts += 1
                return


def _closed() -> RequestError:
    return RequestError("the server is stopping and decodes no more images", 503)


def _how(status: int | None) -> str:
    if status is None:
        return "not reaped by the system"
    return signal.Signals(-status).name if status < 0 else f"status {status}"


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, asyncio.TimeoutError):
        return f"not ready after {START_S:g} s"
    return "it ended before it was ready" if isinstance(error, DecoderDied) else type(error).__name__
