"""A load on an HTTP server from a process of its own, for `serving.py` and `serving_peers.py`.

Reads one JSON object from standard input and writes one to standard output: what was asked for and what came of it.
The client is that of `regnet-deploy bench`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from regnet_deploy.loading.client import Reply
from regnet_deploy.loading.generator import Load, closed_loop
from regnet_deploy.loading.loops import run
from regnet_deploy.loading.report import summarise
from regnet_deploy.loading.samples import Recorder
from regnet_deploy.loading.target import parse_target, post


def ends_with(answer: bytes, logits: list[float]) -> bool:
    """Tell whether the last bytes of an answer are these logits in FP32, or nearly."""
    given = np.frombuffer(answer[-4 * len(logits) :], np.float32)
    return len(given) == len(logits) and bool(np.allclose(given, logits, atol=1e-4, rtol=1e-3))


def loaded(wish: dict[str, Any]) -> dict[str, Any]:
    """Keep ``concurrency`` requests in flight and return rate, latencies and the cores that the client kept busy.

    Args:
        wish: ``url``, ``path``, ``headers``, ``bodies`` (files), ``skip`` (bytes of each that are not sent), ``least``
            (bytes of an answer), ``logits`` (of the bodies, which the first answer to each must end with, or none),
            ``concurrency``, ``warmup`` and ``seconds``.
    """
    target, concurrency = parse_target(wish["url"]), int(wish["concurrency"])
    bodies = [Path(file).read_bytes()[wish["skip"] :] for file in wish["bodies"]]
    requests = [post(target, wish["path"], body, wish["headers"]) for body in bodies]
    least, warmup, seconds = wish["least"], wish["warmup"], wish["seconds"]
    unchecked = dict(enumerate(wish["logits"]))

    def right(number: int, reply: Reply) -> bool:
        wanted = unchecked.pop(number, None)
        return len(reply.body) >= least and (wanted is None or ends_with(reply.body, wanted))

    recorder = Recorder()
    began, used = time.monotonic(), time.process_time()
    run(lambda: closed_loop(target, Load(requests, right), concurrency, warmup + seconds, recorder))
    cores = (time.process_time() - used) / (time.monotonic() - began)
    report = summarise(recorder.samples(), warmup=warmup, seconds=seconds, cores=cores, concurrency=concurrency)
    latency = report.latency
    return {
        "rate": report.achieved,
        "p50_ms": latency.p50_ms if latency else None,
        "p99_ms": latency.p99_ms if latency else None,
        "bad": report.bad,
        "client_cores": cores,
    }


if __name__ == "__main__":
    print(json.dumps(loaded(json.load(sys.stdin))))
