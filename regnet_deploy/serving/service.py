"""What HTTP and gRPC share: a request from its head to its response, within limits and deadlines, and its record."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.errors import DataError
from regnet_deploy.runtimes.predictions import Prediction, top_k
from regnet_deploy.serving.admission import Admission
from regnet_deploy.serving.batching import BatchResult
from regnet_deploy.serving.decode_pool import DecodePool
from regnet_deploy.serving.errors import RequestError
from regnet_deploy.serving.limits import Limits
from regnet_deploy.serving.model_registry import ModelRegistry
from regnet_deploy.serving.model_version import ModelVersion
from regnet_deploy.serving.protocol import InferRequest
from regnet_deploy.serving.request_body import Body
from regnet_deploy.serving.request_record import Observer, RequestRecord
from regnet_deploy.serving.scheduling import restore_default_scheduling
from regnet_deploy.serving.timeouts import Timeouts, Timer

T = TypeVar("T")

_LOG = logging.getLogger("regnet_deploy.serving")

#: Status of a request whose client is gone, as nginx logs it; it is never sent.
CLIENT_GONE = 499

#: Answer to a request that does not finish in the time that a stopping server gives it.
CUT_OFF = RequestError("the server is stopping, and this request was cut off", 503)


class Call:
    """One request to infer or classify while it runs; :meth:`Service.finish` makes a :class:`RequestRecord` of it."""

    __slots__ = (
        "batch",
        "clock",
        "decode_s",
        "images",
        "inference_s",
        "model",
        "operation",
        "protocol",
        "queue_s",
        "read_s",
        "request_id",
        "started",
        "trace_parent",
    )

    def __init__(self, protocol: str, operation: str, request_id: str, trace_parent: str | None = None) -> None:
        self.protocol, self.operation = protocol, operation
        self.request_id, self.trace_parent = request_id, trace_parent
        self.started, self.clock = time.time(), time.perf_counter()
        self.model: ModelVersion | None = None
        self.images = self.batch = 0
        self.read_s = self.decode_s = self.queue_s = self.inference_s = 0.0

    def body_read(self) -> None:
        """Note that the whole request has arrived."""
        self.read_s = time.perf_counter() - self.clock

    def add_result(self, result: BatchResult, images: int) -> None:
        """Note an inference; of several at a time the longest stages count."""
        self.images += images
        self.batch = max(self.batch, result.batch)
        self.queue_s = max(self.queue_s, result.queue_s)
        self.inference_s = max(self.inference_s, result.inference_s)

    def timing_ms(self) -> dict[str, float]:
        """Return the milliseconds of each stage, JSON data."""
        return {
            "read": _ms(self.read_s),
            "decode": _ms(self.decode_s),
            "queue": _ms(self.queue_s),
            "inference": _ms(self.inference_s),
            "total": _ms(time.perf_counter() - self.clock),
        }


class Service:
    """Answers requests with the models of a server; used from one event loop.

    Attributes:
        models: that are served.
        admission: state of the server and its requests in flight.
        limits: what clients may ask for.
        decoders: processes that decode images.
        timeouts: of requests.
    """

    def __init__(
        self,
        models: ModelRegistry,
        admission: Admission,
        limits: Limits,
        decoders: DecodePool,
        observe: Observer = lambda record: None,
    ) -> None:
        self.models = models
        self.admission = admission
        self.limits = limits
        self.decoders = decoders
        self.timeouts = Timeouts()
        self._observe = observe
        # One thread: parsing JSON holds the GIL, and several parsed documents at a time would only take memory.
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="parse", initializer=restore_default_scheduling)

    async def infer(self, call: Call, model: ModelVersion, request: InferRequest) -> NDArray[np.float32]:
        """Return the logits of a request, ``(n, classes)``.

        Raises:
            RequestError: the queue is full (503) or the deadline passed (504).
            Exception: the runtime failed.
        """
        result = await self.submit(call, model, request)
        call.add_result(result, len(request.images))
        return result.logits

    def submit(self, call: Call, model: ModelVersion, request: InferRequest) -> asyncio.Future[BatchResult]:
        """Queue a request and return the future of its result; cancelling it takes the request out of the queue.

        Raises:
            RequestError: the queue is full (503) or the deadline passed (504); the future can raise it as well.
            Exception: of the future, the runtime failed.
        """
        return model.batcher.run(request.images, request.priority, self._deadline(call, request.timeout_s))

    async def classify(
        self, call: Call, model: ModelVersion, image: Body, k: int, priority: int = 0
    ) -> list[Prediction]:
        """Return the ``k`` most probable classes of an encoded image.

        Raises:
            DataError: not a usable image.
            RequestError: the queue is full (503) or the deadline passed (504).
            Exception: the runtime failed.
        """
        start = time.perf_counter()
        deadline = self._deadline(call, None)
        try:
            with Timer(max(0.0, deadline - start)):
                pixels = await self.decoders.pixels(image, model.preprocessing)
        except TimeoutError:
            raise RequestError("the request's deadline passed while its image was waiting to be decoded", 504) from None
        call.decode_s = max(call.decode_s, time.perf_counter() - start)
        result = await model.batcher.run(pixels[None], priority, deadline)
        call.add_result(result, 1)
        if not np.isfinite(result.logits).all():
            raise RuntimeError("the logits of this image are not finite")
        return top_k(result.logits, model.interface.labels, k)[0]

    def refuse_if_full(self, model: ModelVersion) -> None:
        """Refuse a request before its body is read and its image decoded, where the queue is full.

        Raises:
            RequestError: the queue is full (503).
        """
        waiting = model.batcher.depth + self.decoders.waiting
        if waiting >= model.batching.max_queue:
            raise RequestError(f"{waiting} images are waiting already, try again", 503)

    async def run_in_executor(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run a function in a thread, one at a time; a call that is cancelled before it starts is not run."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, partial(function, *arguments))

    async def before_deadline(self, call: Call, work: Awaitable[T]) -> T:
        """Wait for work on a request, until its deadline at most.

        Raises:
            RequestError: it passed (504).
        """
        try:
            with Timer(max(0.0, self._deadline(call, None) - time.perf_counter())):
                return await work
        except TimeoutError:
            raise RequestError("the request's deadline passed before it was read and unpacked", 504) from None

    def finish(self, call: Call, status: int, error: str | None = None) -> None:
        """Count a request that has ended and give its record to the observers; called once for each."""
        total = time.perf_counter() - call.clock
        model = call.model
        if model is not None:
            if status < 400:
                model.statistics.succeeded(
                    call.images,
                    decode_s=call.decode_s,
                    queue_s=call.queue_s,
                    inference_s=call.inference_s,
                    total_s=total,
                )
            else:
                model.statistics.failed(total)
        self._observe(
            RequestRecord(
                model=model.name if model else "",
                version=model.version if model else "",
                protocol=call.protocol,
                operation=call.operation,
                status=status,
                images=call.images,
                batch=call.batch,
                started=call.started,
                read_s=call.read_s,
                decode_s=call.decode_s,
                queue_s=call.queue_s,
                inference_s=call.inference_s,
                total_s=total,
                request_id=call.request_id,
                trace_parent=call.trace_parent,
                error=error,
            )
        )

    def close(self) -> None:
        """Stop the executors."""
        self.models.close()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _deadline(self, call: Call, timeout_s: float | None) -> float:
        return call.clock + min(self.limits.deadline_s, timeout_s or self.limits.deadline_s)


def request_error_of(error: Exception) -> RequestError:
    """Return what a client is told of an error; an error that is not the client's is logged and not described."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, DataError):
        return RequestError(str(error))
    _LOG.error("a request failed: %s: %s", type(error).__name__, error, exc_info=error)
    return RequestError("internal error; the server's log has the details", 500)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
