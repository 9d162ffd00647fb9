"""The server asked for many times what it can do: how soon it refuses, and what its health says meanwhile."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from serving_figures import rounds_of
from serving_processes import Request, Running, flood

from regnet_deploy.load_testing.report import percentile

#: Times the rate that the server reaches in a closed loop.
TIMES = 10
_EVERY_S = 0.05
_HEALTH = ("/v2/health/live", "/v2/health/ready")


@contextlib.contextmanager
def health(running: Running) -> Iterator[dict[str, Any]]:
    """Ask for the server's health again and again meanwhile; says ``statuses`` and ``slowest_ms`` at the end."""
    host, port = running.url.rpartition("//")[2].rsplit(":", 1)
    statuses: Counter[str] = Counter()
    told: dict[str, Any] = {"statuses": {}, "slowest_ms": 0.0}
    over = threading.Event()

    def look() -> None:
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        while not over.wait(_EVERY_S):
            for path in _HEALTH:
                began = time.monotonic()
                try:
                    connection.request("GET", path)
                    answer = connection.getresponse()
                    answer.read()
                    statuses[str(answer.status)] += 1
                except (OSError, http.client.HTTPException):
                    statuses["none"] += 1
                    connection.close()
                told["slowest_ms"] = max(told["slowest_ms"], 1000 * (time.monotonic() - began))
        connection.close()

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield told
    finally:
        over.set()
        thread.join()
        told["statuses"] = dict(statuses)


def overload(running: Running, request: Request, capacity: float, seconds: float) -> dict[str, Any]:
    """Send :data:`TIMES` the rate ``capacity`` and return what came of it.

    Raises:
        RuntimeError: an answer was wrong, or a request got neither an answer nor a refusal.
    """
    with health(running) as told:
        row = flood(running, request, TIMES * capacity, seconds)
    if row["wrong"] or row["failed"]:
        raise RuntimeError(f"under overload {row['wrong']} answers were wrong and {row['failed']} requests failed")
    return {**row, "health": told}


def in_overload(running: Running, request: Request, capacity: float, rounds: int, seconds: float) -> dict[str, Any]:
    """Return the medians of rounds of :func:`overload`, the 99th percentile of all refusals, and all of health.

    Raises:
        RuntimeError: as there; or nothing was refused in a round.
    """
    rows = [overload(running, request, capacity, seconds) for _ in range(rounds)]
    if not all(row["refused_ms"] for row in rows):
        raise RuntimeError(f"{TIMES * capacity:.0f} requests a second, and the server refused none in a round")
    statuses = sum((Counter(row["health"]["statuses"]) for row in rows), Counter())
    refused = np.sort(np.concatenate([row["refused_ms"] for row in rows]))
    return {
        **rounds_of(rows),
        "refused_p99_ms": percentile(refused, "99"),
        "refused": len(refused),
        "health": {"statuses": dict(statuses), "slowest_ms": max(row["health"]["slowest_ms"] for row in rows)},
    }
