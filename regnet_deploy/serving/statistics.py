"""Statistics of a version of a model, as the protocol's extension ``statistics`` defines them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

#: Seconds to the protocol's nanoseconds.
_NS = 1_000_000_000


class _Duration:
    """A count and total seconds."""

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

    ``compute_input`` is decoding; ``compute_output`` is not measured.
    """

    def __init__(self) -> None:
        self._success, self._fail = _Duration(), _Duration()
        self._queue, self._decode, self._inference = _Duration(), _Duration(), _Duration()
        self._images = 0
        self._last = 0

    def succeeded(self, images: int, *, decode_s: float, queue_s: float, inference_s: float, total_s: float) -> None:
        """Count a request that was answered.

        A form without a usable image is answered with 0 images and without an inference.
        """
        self._success.add(total_s)
        self._decode.add(decode_s)
        if images:
            self._queue.add(queue_s)
            self._inference.add(inference_s)
            self._images += images
            self._last = int(time.time() * 1000)

    def failed(self, total_s: float) -> None:
        """Count a request that was not answered."""
        self._fail.add(total_s)

    def to_json(self, name: str, version: str, executions: Mapping[int, tuple[int, float]]) -> dict[str, Any]:
        """Return one element of ``model_stats``; all numbers are integers.

        Args:
            name: of the model.
            version: of it.
            executions: as a batcher counts them.
        """
        nothing = {"count": 0, "ns": 0}
        return {
            "name": name,
            "version": version,
            "last_inference": self._last,
            "inference_count": self._images,
            "execution_count": sum(count for count, _ in executions.values()),
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
                    "compute_input": {"count": count, "ns": 0},
                    "compute_infer": {"count": count, "ns": int(seconds * _NS)},
                    "compute_output": {"count": count, "ns": 0},
                }
                for size, (count, seconds) in sorted(executions.items())
            ],
            "memory_usage": [],
        }
