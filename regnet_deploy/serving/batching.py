"""Dynamic batching: requests of one model run together; a batch starts when an executor is free."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.serving.errors import RequestError
from regnet_deploy.serving.scheduling import restore_default_scheduling
from regnet_deploy.serving.timeouts import Timeouts

#: Runs the images ``(n, ...)`` of several requests; returns their logits ``(n, classes)``, concatenated.
RunBatch = Callable[[Sequence[NDArray[Any]]], NDArray[np.float32]]

#: Levels of priority, 1 before 2 before 3; a request's 0 means the default.
PRIORITIES, DEFAULT_PRIORITY = 3, 2

_TOO_LATE = "the request's deadline passed before its inference was done"
_NOTHING = np.empty(0)


@dataclass(frozen=True)
class Batching:
    """Settings of batching.

    Attributes:
        executors: inferences at a time.
        batch: limit of images in an inference; a request with more of them runs alone.
        max_delay_s: seconds for which an incomplete batch waits for more requests; 0: a batch starts as soon as an
            executor is free.
        max_queue: limit of images that wait.
    """

    executors: int = 1
    batch: int = 8
    max_delay_s: float = 0.0
    max_queue: int = 128


class BatchResult(NamedTuple):
    """Logits of a request, ``(n, classes)``, seconds in the queue and of the inference, and images in the inference."""

    logits: NDArray[np.float32]
    queue_s: float
    inference_s: float
    batch: int


class QueuedRequest:
    """A request in the queue."""

    __slots__ = ("abandoned", "deadline", "done", "images", "queued_at", "timeout")

    def __init__(self, images: NDArray[Any], done: asyncio.Future[BatchResult]) -> None:
        self.images = images
        self.done = done
        self.queued_at = time.perf_counter()
        self.abandoned = False
        self.deadline: float | None = None
        self.timeout: int | None = None


#: Result of an inference: the batch, its logits or the exception, start and seconds.
_Outcome = tuple[list[QueuedRequest], "NDArray[np.float32] | Exception", float, float]


class Batcher:
    """A bounded queue of requests and the executor threads that run them. Its methods are for one event loop.

    Attributes:
        settings: of batching.
        running: images that are being run.
        executions: images in an inference -> number of inferences and their seconds; failed ones count as well.

    Where a batch fails, its requests are run one by one, so that a bad request fails alone.
    """

    def __init__(self, runs: Sequence[RunBatch], settings: Batching, name: str = "model") -> None:
        """Start one thread for each of ``runs``; called on the event loop."""
        self.settings = settings
        self.running = 0
        self.executions: dict[int, tuple[int, float]] = {}
        self._loop = asyncio.get_running_loop()
        self._lock = threading.RLock()
        # One token for each executor that is to look at the queue. Executors are woken once for all requests of an
        # iteration of the loop, so that these form one batch; it also costs less than a condition variable.
        self._wakes: SimpleQueue[None] = SimpleQueue()
        self._idle = 0
        self._waking = False
        self._queue: list[tuple[int, int, QueuedRequest]] = []
        self._order = itertools.count()
        self._depth = 0
        self._closed = False
        self._timeouts = Timeouts()
        self._busy_since: list[float | None] = [None] * len(runs)
        self._threads = [
            threading.Thread(target=self._work, args=(i, run), name=f"{name}-{i}", daemon=True)
            for i, run in enumerate(runs)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def depth(self) -> int:
        """Images that wait."""
        return self._depth

    def hung(self, limit_s: float) -> bool:
        """Return whether an inference has been running for more than ``limit_s`` seconds."""
        now = time.perf_counter()
        return any(since is not None and now - since > limit_s for since in list(self._busy_since))

    def run(
        self, images: NDArray[Any], priority: int = 0, deadline: float | None = None
    ) -> asyncio.Future[BatchResult]:
        """Queue images ``(n, ...)`` and return the future of their result; cancelling it takes them out of the queue.

        Args:
            images: as the model takes them.
            priority: 1, 2 or 3; 0 means 2.
            deadline: by :func:`time.perf_counter`; after it the future raises.

        Raises:
            RequestError: the queue is full (503), or the deadline passed (504). The future raises the latter as well,
                or what the inference raised.
        """
        count = len(images)
        done: asyncio.Future[BatchResult] = self._loop.create_future()
        request = QueuedRequest(images, done)
        request.deadline = deadline
        if deadline is not None and deadline <= request.queued_at:
            raise RequestError(_TOO_LATE, 504)
        with self._lock:
            if self._closed:
                raise RequestError("this version of the model is being replaced, try again", 503)
            if self._depth + count > max(self.settings.max_queue, count):
                raise RequestError(f"{self._depth} images are waiting already, try again", 503)
            if len(self._queue) > 2 * self.settings.max_queue:  # most of it is abandoned
                self._queue = [entry for entry in self._queue if not entry[2].abandoned]
                heapq.heapify(self._queue)
            heapq.heappush(self._queue, (priority or DEFAULT_PRIORITY, next(self._order), request))
            self._depth += count
        if not self._waking:
            self._waking = True
            self._loop.call_soon(self._wake)
        if deadline is not None:
            request.timeout = self._timeouts.add(deadline - request.queued_at, partial(_expire, done))
        done.add_done_callback(partial(self._leave, request))
        return done

    def close(self) -> None:
        """Stop the executors once the queue is empty; returns at once."""
        with self._lock:
            self._closed = True
        for _ in self._threads:
            self._wakes.put(None)

    def _wake(self) -> None:
        self._waking = False
        with self._lock:
            wanted = min(self._idle, -(-self._depth // self.settings.batch))
        for _ in range(wanted):
            self._wakes.put(None)

    def _leave(self, request: QueuedRequest, done: asyncio.Future[BatchResult]) -> None:
        """Drop a request that is answered, expired or cancelled; an executor skips its entry in the queue."""
        if request.timeout is not None:
            self._timeouts.discard(request.timeout)
        with self._lock:
            if not request.abandoned:
                request.abandoned = True
                self._depth -= len(request.images)
                request.images = _NOTHING  # the entry stays in the queue until an executor reaches it

    def _work(self, number: int, run: RunBatch) -> None:
        restore_default_scheduling()
        while batch := self._take():
            start = time.perf_counter()
            self._busy_since[number] = start
            outcomes = list(_outcomes(batch, run, start))
            self._busy_since[number] = None
            try:
                self._loop.call_soon_threadsafe(self._finish, outcomes, sum(len(one.images) for one in batch))
            except RuntimeError:  # the event loop is closed: nobody waits any more
                return

    def _take(self) -> list[QueuedRequest]:
        """Wait for requests and take a batch; empty when the batcher is closed and nothing is left."""
        while True:
            with self._lock:
                left = self._delay_left()
                if left <= 0:
                    batch = self._pop()
                    if (
                        self._queue and self._idle
                    ):  # requests that do not fill their batches make more batches than executors were woken
                        self._wakes.put(None)
                    if batch or self._closed:
                        return batch
                self._idle += 1
            try:
                self._wakes.get(timeout=left if left > 0 else None)
            except Empty:  # no request arrived
                pass
            finally:
                with self._lock:
                    self._idle -= 1

    def _delay_left(self) -> float:
        delay = self.settings.max_delay_s
        if delay <= 0 or self._closed or self._depth >= self.settings.batch or not self._depth:
            return 0.0
        # A request with a short deadline does not wait for the whole delay.
        leaves = min((_leaves_at(one, delay) for _, _, one in self._queue if not one.abandoned), default=0.0)
        return leaves - time.perf_counter()

    def _pop(self) -> list[QueuedRequest]:
        batch: list[QueuedRequest] = []
        count = 0
        while self._queue:
            request = self._queue[0][2]
            if request.done.done():  # cancelled or expired just now; the event loop has not removed it yet
                heapq.heappop(self._queue)
                continue
            if batch and count + len(request.images) > self.settings.batch:
                break
            heapq.heappop(self._queue)
            request.abandoned = True  # it left the queue and is not counted twice
            self._depth -= len(request.images)
            batch.append(request)
            count += len(request.images)
        self.running += count
        return batch

    def _finish(self, outcomes: list[_Outcome], count: int) -> None:
        """Set the results of the futures; on the event loop."""
        with self._lock:
            self.running -= count
        for batch, outcome, start, took in outcomes:
            first, size = 0, sum(len(request.images) for request in batch)
            ran, seconds = self.executions.get(size, (0, 0.0))
            self.executions[size] = (ran + 1, seconds + took)
            for request in batch:
                end = first + len(request.images)
                if not request.done.done():
                    if isinstance(outcome, Exception):
                        request.done.set_exception(outcome)
                    else:
                        request.done.set_result(BatchResult(outcome[first:end], start - request.queued_at, took, size))
                first = end


def _expire(done: asyncio.Future[BatchResult]) -> None:
    if not done.done():
        done.set_exception(RequestError(_TOO_LATE, 504))


def _leaves_at(request: QueuedRequest, delay_s: float) -> float:
    left = delay_s if request.deadline is None else (request.deadline - request.queued_at) / 4
    return request.queued_at + min(delay_s, left)


def _outcomes(batch: list[QueuedRequest], run: RunBatch, start: float) -> list[_Outcome]:
    """Run a batch; where that fails, run each of its requests alone."""
    try:
        parts = [request.images for request in batch]
        logits, count = run(parts), sum(map(len, parts))
        if len(logits) != count:
            raise RuntimeError(f"{len(logits)} rows of logits for {count} images")
    except Exception as raised:  # it becomes the exception of the futures
        # A future does not accept StopIteration.
        error = RuntimeError("StopIteration") if isinstance(raised, StopIteration) else raised
        if len(batch) == 1:
            return [(batch, error, start, time.perf_counter() - start)]
        still_wanted = [request for request in batch if not request.done.done()]
        return [outcome for request in still_wanted for outcome in _outcomes([request], run, time.perf_counter())]
    return [(batch, logits, start, time.perf_counter() - start)]
