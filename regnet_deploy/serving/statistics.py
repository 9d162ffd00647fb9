"""What a version of a model has done, in the words of the protocol's extension ``statistics``."""

from __future__ import annotations

import time
from typing import Any

#: Seconds to the protocol's nanoseconds.
_NS = 1_000_000_000


class _Duration:
    """How often, and for how long in all."""

    __slots__ = ("count", "seconds")

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0

    def add(self, seconds: float, count: int = 1) -> None:
        self.count += count
        self.seconds += seconds

    def to_json(self) -> dict[str, int]:
        return {"count": self.count, "ns": int(self.seconds * _NS)}


class Statistics:
    """Counters of one version; used from the event loop only.

    ``compute_input`` is decoding, ``compute_output`` is not measured apart: it is what the total has beside the rest.
    """

    def __init__(self) -> None:
        self._success, self._fail = _Duration(), _Duration()
        self._queue, self._decode, self._inference = _Duration(), _Duration(), _Duration()
        self._images = 0
        self._executions = 0.0
        self._last = 0
        self._batches: dict[int, _Duration] = {}

    def succeeded(
        self, images: int, batch: int, *, decode_s: float, queue_s: float, inference_s: float, total_s: float
    ) -> None:
        """Count a request that was answered; ``batch`` is the number of images in the inference that it was part of.

        0 images, of a form without one that can be decoded, are an answer and no inference.
        """
        self._success.add(total_s)
        self._decode.add(decode_s)
        if not images:
            return
        self._queue.add(queue_s)
        self._inference.add(inference_s)
        self._images += images
        self._executions += images / batch  # its share of an execution
        self._last = int(time.time() * 1000)
        self._batches.setdefault(batch, _Duration()).add(inference_s * images / batch, 0)
        self._batches[batch].count += images

    def failed(self, total_s: float) -> None:
        """Count a request that was not answered."""
        self._fail.add(total_s)

    def to_json(self, name: str, version: str) -> dict[str, Any]:
        """Return one element of ``model_stats``; all numbers are whole."""
        nothing = {"count": 0, "ns": 0}
        return {
            "name": name,
            "version": version,
            "last_inference": self._last,
            "inference_count": self._images,
            "execution_count": round(self._executions),
            "inference_stats": {
                "success": self._success.to_json(),
                "fail": self._fail.to_json(),
                "queue": self._queue.to_json(),
                "compute_input": self._decode.to_json(),
                "compute_infer": self._inference.to_json(),
                "compute_output": {"count": self._success.count, "ns": 0},
                "cache_hit": nothing,
                "cache_miss": nothing,
            },
            "batch_stats": [
                {
                    "batch_size": size,
                    "compute_input": {"count": round(spent.count / size), "ns": 0},
                    "compute_infer": {"count": round(spent.count / size), "ns": int(spent.seconds * _NS)},
                    "compute_output": {"count": round(spent.count / size), "ns": 0},
                }
                for size, spent in sorted(self._batches.items())
            ],
            "memory_usage": [],
        }
