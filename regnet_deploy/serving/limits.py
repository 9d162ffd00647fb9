"""Limits of requests."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from regnet_deploy.errors import UsageError
from regnet_deploy.field_types import check_field_types


@dataclass(frozen=True)
class Limits:
    """Limits of one request, and of all requests together.

    Attributes:
        max_batch: images in a request.
        max_body_bytes: bytes of a request's body, as sent and decompressed.
        max_bodies_bytes: bytes of the bodies of all requests in flight, as sent.
        max_pixels: width times height of an image to classify.
        max_in_flight: requests that are read or answered at a time; more get 503.
        max_queue: images that wait for an executor, for each version of a model; more get 503.
        max_connections: open connections; see
            :class:`~regnet_deploy.serving.connection_limits.ConnectionLimits`.
        read_timeout_s: seconds in which the head of a request must arrive, and then its body.
        deadline_s: seconds after its arrival in which a request's inference must be done, else it gets 504; a client
            can ask for less.
        hung_s: seconds after which an executor that has not returned from an inference counts as hung.

    Raises:
        UsageError: a limit is not a positive number, or ``max_bodies_bytes`` is less than ``max_body_bytes``.
    """

    max_batch: int = 32
    max_body_bytes: int = 32 * 2**20
    max_bodies_bytes: int = 256 * 2**20
    max_pixels: int = 25_000_000
    max_in_flight: int = 256
    max_queue: int = 128
    max_connections: int = 512
    read_timeout_s: float = 30.0
    deadline_s: float = 30.0
    hung_s: float = 60.0

    def __post_init__(self) -> None:
        """Check the limits."""
        check_field_types(self)
        for limit in fields(self):
            value = getattr(self, limit.name)
            if not (value > 0 and math.isfinite(value)):
                raise UsageError(f"{limit.name} must be a positive number, not {value}")
        if self.max_bodies_bytes < self.max_body_bytes:
            raise UsageError(
                f"the limit of {self.max_bodies_bytes / 1e6:g} MB for all requests together is less than one request "
                f"of {self.max_body_bytes / 1e6:g} MB"
            )
