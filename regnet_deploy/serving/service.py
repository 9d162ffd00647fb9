"""What HTTP and gRPC share: a request from its head to its answer, within limits and deadlines, told to observers."""

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

#: HTTP's status, by the custom of nginx, of a request whose client is gone; nobody reads it but the log.
CLIENT_GONE = 499


class Call:
    """One request to infer or classify; what it has come to, until it is told as :class:`Finished`."""

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
        "served",
        "started",
        "trace_parent",
    )

    def __init__(self, protocol: str, operation: str, request_id: str, trace_parent: str | None = None) -> None:
        self.protocol, self.operation = protocol, operation
        self.request_id, self.trace_parent = request_id, trace_parent
        self.started, self.clock = time.time(), time.perf_counter()
        self.served: ModelVersion | None = None
        self.images = self.batch = 0
        self.read_s = self.decode_s = self.queue_s = self.inference_s = 0.0

    def has_read(self) -> None:
        """Note that the request is there in full."""
        self.read_s = time.perf_counter() - self.clock

    def ran(self, ran: BatchResult, images: int) -> None:
        """Note an inference; of several at once the longest stages count."""
        self.images += images
        self.batch = max(self.batch, ran.batch)
        self.queue_s = max(self.queue_s, ran.queue_s)
        self.inference_s = max(self.inference_s, ran.inference_s)

    def timing_ms(self) -> dict[str, float]:
        """Return milliseconds by stage, JSON data."""
        return {
            "read": _ms(self.read_s),
            "decode": _ms(self.decode_s),
            "queue": _ms(self.queue_s),
            "inference": _ms(self.inference_s),
            "total": _ms(time.perf_counter() - self.clock),
        }


class Service:
    """The models of a server with what stands around them; used from one event loop.

    Attributes:
        models: what is served.
        admission: state of the server, and who is inside.
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
        observe: Observer = lambda finished: None,
    ) -> None:
        self.models = models
        self.admission = admission
        self.limits = limits
        self.decoders = decoders
        self.timeouts = Timeouts()
        self._observe = observe
        # One JSON at a time becomes Python's objects: it holds the interpreter anyhow, and several would take memory.
        self._parser = ThreadPoolExecutor(1, thread_name_prefix="parse", initializer=restore_default_scheduling)

    async def infer(self, call: Call, served: ModelVersion, request: InferRequest) -> NDArray[np.float32]:
        """Return the logits of a request, ``(n, classes)``.

        Raises:
            RequestError: the queue is full (503) or the deadline passed (504).
            Exception: the runtime failed.
        """
        ran = await self.queued(call, served, request)
        call.ran(ran, len(request.images))
        return ran.logits

    def queued(self, call: Call, served: ModelVersion, request: InferRequest) -> asyncio.Future[BatchResult]:
        """Return the future of a request's inference; cancelling it takes it out of the queue.

        Raises:
            RequestError: the queue is full (503) or the deadline passed (504), as the future may as well.
            Exception: by the future, the runtime failed.
        """
        return served.batcher.run(request.images, request.priority, self._deadline(call, request.timeout_s))

    async def classify(
        self, call: Call, served: ModelVersion, image: Body, k: int, priority: int = 0
    ) -> list[Prediction]:
        """Return the ``k`` likeliest classes of an encoded image.

        Raises:
            DataError: not a usable image.
            RequestError: the queue is full (503) or the deadline passed (504).
            Exception: the runtime failed.
        """
        start = time.perf_counter()
        deadline = self._deadline(call, None)
        try:
            with Timer(max(0.0, deadline - start)):
                pixels = await self.decoders.pixels(image, served.preprocessing)
        except TimeoutError:
            raise RequestError("the request's deadline passed while its image was waiting to be decoded", 504) from None
        call.decode_s = max(call.decode_s, time.perf_counter() - start)
        ran = await served.batcher.run(pixels[None], priority, deadline)
        call.ran(ran, 1)
        if not np.isfinite(ran.logits).all():
            raise RuntimeError("the network's answer to this image is not finite")
        return top_k(ran.logits, served.interface.labels, k)[0]

    def refuse_if_full(self, served: ModelVersion) -> None:
        """Refuse a request before its body is read and its image decoded, where it would be refused after that.

        Raises:
            RequestError: as many images wait for decoders and executors as may (503).
        """
        waiting = served.batcher.depth + self.decoders.waiting
        if waiting >= served.batching.max_queue:
            raise RequestError(f"{waiting} images are waiting already, try again", 503)

    async def apart(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run what takes time off the event loop, one at a time; what is cancelled before its turn is not run."""
        return await asyncio.get_running_loop().run_in_executor(self._parser, partial(function, *arguments))

    async def in_time(self, call: Call, work: Awaitable[T]) -> T:
        """Wait for work on a request until its deadline.

        Raises:
            RequestError: it passed (504).
        """
        try:
            with Timer(max(0.0, self._deadline(call, None) - time.perf_counter())):
                return await work
        except TimeoutError:
            raise RequestError("the request's deadline passed before it was read and unpacked", 504) from None

    def ended(self, call: Call, status: int, error: str | None = None) -> None:
        """Tell the observers what became of a request; once for each."""
        total = time.perf_counter() - call.clock
        served = call.served
        if served is not None:
            if status < 400:
                served.statistics.succeeded(
                    call.images,
                    decode_s=call.decode_s,
                    queue_s=call.queue_s,
                    inference_s=call.inference_s,
                    total_s=total,
                )
            else:
                served.statistics.failed(total)
        self._observe(
            RequestRecord(
                model=served.name if served else "",
                version=served.version if served else "",
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
        """End the executors and the parser."""
        self.models.close()
        self._parser.shutdown(wait=False, cancel_futures=True)

    def _deadline(self, call: Call, timeout_s: float | None) -> float:
        return call.clock + min(self.limits.deadline_s, timeout_s or self.limits.deadline_s)


def request_error_of(error: Exception) -> RequestError:
    """Return what a client is told of an error; what is not its own mistake is logged, and named no further."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, DataError):
        return RequestError(str(error))
    _LOG.error("a request failed: %s: %s", type(error).__name__, error, exc_info=error)
    return RequestError("internal error; the server's log has the details", 500)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
