"""What a client may ask for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What a client may ask for, and all of them together.

    Attributes:
        max_batch: images in a request.
        max_body_bytes: of a request's body, as sent and unpacked.
        max_bodies_bytes: of the bodies of all requests in flight, as sent.
        max_pixels: width times height of an image to classify.
        max_in_flight: requests being read or answered; more are told to come back.
        max_queue: images that wait for an executor, for each version of a model; more are told to come back.
        max_connections: open connections. For one more the one that has been idle longest is closed; where none is,
            it is told to come back, and a few more are let in to ask about health.
        read_timeout_s: seconds in which the head of a request must have arrived, and then its body.
        deadline_s: seconds after its arrival in which a request's inference is done or the client is told that it is
            not; a client can ask for less, not for more.
        hung_s: seconds after which an executor that has not come back from an inference counts as hung.
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
