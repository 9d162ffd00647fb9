"""Requests of one network, run together by its executors: a batch leaves when an executor is free."""

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

#: Images ``(n, ...)`` of each request to the logits ``(n, classes)`` of all of them, one behind the other.
Run = Callable[[Sequence[NDArray[Any]]], NDArray[np.float32]]

#: Levels of priority, 1 before 2 before 3; 0 in a request is the one in the middle.
PRIORITIES, DEFAULT_PRIORITY = 3, 2

_TOO_LATE = "the request's deadline passed before its inference was done"
_NOTHING = np.empty(0)


@dataclass(frozen=True)
class Batching:
    """How requests are put together.

    Attributes:
        executors: inferences at a time.
        batch: images in an inference; a request with more of them runs alone.
        max_delay_s: seconds for which a batch that is not full waits for company. 0: a batch leaves when an executor is
            free, with what has come by then.
        max_queue: images that may wait.
    """

    executors: int = 1
    batch: int = 8
    max_delay_s: float = 0.0
    max_queue: int = 128


class BatchResult(NamedTuple):
    """Logits of a request, ``(n, classes)``, seconds of waiting and inference, and images in the inference."""

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


#: What came of an executor's turn: the batch, its logits or what went wrong, when it began, how long it took.
_Outcome = tuple[list[QueuedRequest], "NDArray[np.float32] | Exception", float, float]


class Batcher:
    """A bounded queue and the threads that empty it. Its methods are for one event loop.

    Attributes:
        settings: how requests are put together.
        running: images that are being run.
        executions: images in an inference -> how many there were, and seconds in all; those that failed count as well.

    A batch is taken whole by the executor that runs it, so that neighbours share nothing but the inference. Where one
    fails, its requests are run alone: those that fail then fail alone.
    """

    def __init__(self, runs: Sequence[Run], settings: Batching, name: str = "model") -> None:
        """Start one thread for each of ``runs``; call on the event loop."""
        self.settings = settings
        self.running = 0
        self.executions: dict[int, tuple[int, float]] = {}
        self._loop = asyncio.get_running_loop()
        self._lock = threading.RLock()
        # A token for each executor that is to look at the queue. One wake for all that came in a turn of the loop: they
        # leave in one batch instead of the first alone, and it costs less than a condition variable.
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
        """Tell whether an executor has not come back from an inference for ``limit_s`` seconds."""
        now = time.perf_counter()
        return any(since is not None and now - since > limit_s for since in list(self._busy_since))

    def run(
        self, images: NDArray[Any], priority: int = 0, deadline: float | None = None
    ) -> asyncio.Future[BatchResult]:
        """Return the future of the logits of images ``(n, ...)``; cancelling it takes them out of the queue.

        Args:
            images: as the runs take them.
            priority: 1, 2 or 3; 0 is 2.
            deadline: by :func:`time.perf_counter`; until then it must be done, or nobody waits for it any more.

        Raises:
            RequestError: the queue is full (503). By the future: the deadline passed (504), or whatever
                the inference raised.
        """
        count = len(images)
        done: asyncio.Future[BatchResult] = self._loop.create_future()
        waiting = QueuedRequest(images, done)
        waiting.deadline = deadline
        if deadline is not None and deadline <= waiting.queued_at:
            raise RequestError(_TOO_LATE, 504)
        with self._lock:
            if self._closed:
                raise RequestError("this version of the model is being replaced, try again", 503)
            if self._depth + count > max(self.settings.max_queue, count):
                raise RequestError(f"{self._depth} images are waiting already, try again", 503)
            if len(self._queue) > 2 * self.settings.max_queue:  # most of it left while every executor was busy
                self._queue = [entry for entry in self._queue if not entry[2].abandoned]
                heapq.heapify(self._queue)
            heapq.heappush(self._queue, (priority or DEFAULT_PRIORITY, next(self._order), waiting))
            self._depth += count
        if not self._waking:
            self._waking = True
            self._loop.call_soon(self._wake)
        if deadline is not None:
            waiting.timeout = self._timeouts.add(deadline - waiting.queued_at, partial(_expire, done))
        done.add_done_callback(partial(self._leave, waiting))
        return done

    def close(self) -> None:
        """End the executors when the queue is empty. Returns at once."""
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

    def _leave(self, waiting: QueuedRequest, done: asyncio.Future[BatchResult]) -> None:
        """Drop a request that is answered, expired or cancelled: an executor passes over what is left of it."""
        if waiting.timeout is not None:
            self._timeouts.discard(waiting.timeout)
        with self._lock:
            if not waiting.abandoned:
                waiting.abandoned = True
                self._depth -= len(waiting.images)
                waiting.images = _NOTHING  # its place in the queue is kept until an executor comes by

    def _work(self, number: int, run: Run) -> None:
        restore_default_scheduling()
        while batch := self._take():
            start = time.perf_counter()
            self._busy_since[number] = start
            outcomes = list(_outcomes(batch, run, start))
            self._busy_since[number] = None
            try:
                self._loop.call_soon_threadsafe(self._finish, outcomes, sum(len(one.images) for one in batch))
            except RuntimeError:  # the loop has ended, and with it everybody who waited
                return

    def _take(self) -> list[QueuedRequest]:
        """Wait for requests and take a batch of them; empty when the batcher is closed and nothing is left."""
        while True:
            with self._lock:
                left = self._delay_left()
                if left <= 0:
                    batch = self._pop()
                    if self._queue and self._idle:  # sizes that do not fill their batches make more than were woken for
                        self._wakes.put(None)
                    if batch or self._closed:
                        return batch
                self._idle += 1
            try:
                self._wakes.get(timeout=left if left > 0 else None)
            except Empty:  # nobody came
                pass
            finally:
                with self._lock:
                    self._idle -= 1

    def _delay_left(self) -> float:
        delay = self.settings.max_delay_s
        if delay <= 0 or self._closed or self._depth >= self.settings.batch or not self._depth:
            return 0.0
        # One that has less time than the delay is not kept waiting for company until it is too late.
        leaves = min((_leaves_at(one, delay) for _, _, one in self._queue if not one.abandoned), default=0.0)
        return leaves - time.perf_counter()

    def _pop(self) -> list[QueuedRequest]:
        batch: list[QueuedRequest] = []
        count = 0
        while self._queue:
            waiting = self._queue[0][2]
            if waiting.done.done():  # cancelled or expired a moment ago: the event loop is about to let it leave
                heapq.heappop(self._queue)
                continue
            if batch and count + len(waiting.images) > self.settings.batch:
                break
            heapq.heappop(self._queue)
            waiting.abandoned = True  # out of the queue: nobody counts it twice
            self._depth -= len(waiting.images)
            batch.append(waiting)
            count += len(waiting.images)
        self.running += count
        return batch

    def _finish(self, outcomes: list[_Outcome], count: int) -> None:
        """Hand results to those who wait; on the event loop."""
        with self._lock:
            self.running -= count
        for batch, outcome, start, took in outcomes:
            first, size = 0, sum(len(waiting.images) for waiting in batch)
            ran, seconds = self.executions.get(size, (0, 0.0))
            self.executions[size] = (ran + 1, seconds + took)
            for waiting in batch:
                end = first + len(waiting.images)
                if not waiting.done.done():
                    if isinstance(outcome, Exception):
                        waiting.done.set_exception(outcome)
                    else:
                        waiting.done.set_result(BatchResult(outcome[first:end], start - waiting.queued_at, took, size))
                first = end


def _expire(done: asyncio.Future[BatchResult]) -> None:
    if not done.done():
        done.set_exception(RequestError(_TOO_LATE, 504))


def _leaves_at(waiting: QueuedRequest, delay_s: float) -> float:
    left = delay_s if waiting.deadline is None else (waiting.deadline - waiting.queued_at) / 4
    return waiting.queued_at + min(delay_s, left)


def _outcomes(batch: list[QueuedRequest], run: Run, start: float) -> list[_Outcome]:
    """Run a batch; where that fails, each of its requests alone."""
    try:
        parts = [waiting.images for waiting in batch]
        logits, count = run(parts), sum(map(len, parts))
        if len(logits) != count:
            raise RuntimeError(f"{len(logits)} answers to {count} images")
    except Exception as raised:  # whatever it is: it is what those who wait are told
        # A future does not take this one.
        error = RuntimeError("StopIteration") if isinstance(raised, StopIteration) else raised
        if len(batch) == 1:
            return [(batch, error, start, time.perf_counter() - start)]
        still_wanted = [waiting for waiting in batch if not waiting.done.done()]
        return [outcome for waiting in still_wanted for outcome in _outcomes([waiting], run, time.perf_counter())]
    return [(batch, logits, start, time.perf_counter() - start)]
