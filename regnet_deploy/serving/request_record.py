"""The record of a request that has ended, for its observers: metrics, log and traces."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple


class RequestRecord(NamedTuple):
    """A request to infer or classify that has ended; every observer gets it once, on the event loop.

    Attributes:
        model: its name; empty where the request named no model that exists.
        version: of the model; empty likewise.
        protocol: ``http`` or ``grpc``.
        operation: ``infer`` or ``classify``.
        status: of HTTP, or the nearest to that of gRPC; 499 where the client was gone.
        images: of the request.
        batch: images of its batch; 0 where it did not run.
        started: arrival, in seconds since 1970.
        read_s: seconds until its body had arrived; this and the next three are 0.0 for a stage that was not reached.
        decode_s: seconds of decoding.
        queue_s: seconds in the queue.
        inference_s: seconds of its batch's inference.
        total_s: seconds until its response was made.
        request_id: see :func:`regnet_deploy.serving.request_log.request_id_of`.
        trace_parent: header ``traceparent`` of W3C Trace Context, as it was sent.
        error: the error message that the client got; None: no error.
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


#: Called with each request that has ended.
Observer = Callable[[RequestRecord], None]


def notify_all(observers: Sequence[Observer]) -> Observer:
    """Return an observer that calls all of ``observers``, whatever one of them raises.

    An exception of an observer is logged once for each type, with its traceback.
    """
    logger = logging.getLogger(__package__)
    logged: set[tuple[int, type[Exception]]] = set()

    def observe(record: RequestRecord) -> None:
        for index, observer in enumerate(observers):
            try:
                observer(record)
            except Exception as error:
                kind = (index, type(error))
                if kind not in logged:
                    logged.add(kind)
                    logger.exception("an observer of requests failed; this is not logged again")

    return observe
