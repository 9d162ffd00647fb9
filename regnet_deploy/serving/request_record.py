"""A request that has ended, and who is told of it: metrics, logs and traces."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple


class RequestRecord(NamedTuple):
    """One request to infer or classify that has ended; every observer gets it once, on the event loop.

    Attributes:
        model: that the request was for; empty where it named none that exists.
        version: of the model; empty likewise.
        protocol: ``http`` or ``grpc``.
        operation: ``infer`` or ``classify``.
        status: of HTTP, of gRPC the nearest; 499 where the client had gone.
        images: of the request.
        batch: images of the batch that it ran in; 0 where it did not run.
        started: when it came, in seconds since 1970.
        read_s: seconds until its body was there; this and the next three are 0.0 where a stage was not reached.
        decode_s: seconds in which it was decoded.
        queue_s: seconds in which it waited for its batch.
        inference_s: seconds in which its batch ran.
        total_s: seconds until its answer was made.
        request_id: see :func:`regnet_deploy.serving.request_log.request_id_of`.
        trace_parent: header ``traceparent`` of W3C Trace Context, as it was sent.
        error: the line that the client got.
    """

    model: str
    version: str
    protocol: str
    operation: str
    status: int
    images: int
    batch: int
    started: float
    read_s: float
    decode_s: float
    queue_s: float
    inference_s: float
    total_s: float
    request_id: str
    trace_parent: str | None
    error: str | None


#: Is told of requests that have ended.
Observer = Callable[[RequestRecord], None]


def notify_all(observers: Sequence[Observer]) -> Observer:
    """Return an observer that tells all of ``observers``; one that fails keeps neither the request nor the others.

    What an observer raises is logged the first time, with its traceback, and not again for every request.
    """
    logger = logging.getLogger(__package__)
    told: set[tuple[int, type[Exception]]] = set()

    def observe(record: RequestRecord) -> None:
        for index, observer in enumerate(observers):
            try:
                observer(record)
            except Exception as error:
                kind = (index, type(error))
                if kind not in told:
                    told.add(kind)
                    logger.exception("an observer of requests fails; this is not logged again")

    return observe
