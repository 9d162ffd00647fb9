"""A load on a gRPC server from a process of its own, for `serving_peers.py`; as `serving_load.py` for HTTP.

Messages are made before the load and answers are left as bytes, so that the client takes little.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
from serving_answers import checker

from regnet_deploy.load_testing.event_loop import run_on_event_loop
from regnet_deploy.load_testing.report import Latencies
from regnet_deploy.protobuf.messages import message_class

METHOD = "/inference.GRPCInferenceService/ModelInfer"
_OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


def message(data: bytes, kind: str, shape: list[int], name: str) -> bytes:
    """Return a request: a tensor of FP32 as raw bytes (``raw``), or bytes as they are (``bytes``, ``raw-bytes``)."""
    request = message_class("inference.ModelInferRequest")()
    request.model_name = "regnet"
    tensor = request.inputs.add()
    tensor.name = name
    tensor.datatype = "FP32" if kind == "raw" else "BYTES"
    tensor.shape.extend(shape if kind == "raw" else [1])
    if kind == "raw":
        request.raw_input_contents.append(data)
    elif kind == "raw-bytes":
        request.raw_input_contents.append(len(data).to_bytes(4, "little") + data)
    else:
        tensor.contents.bytes_contents.append(data)
    made: bytes = request.SerializeToString()
    return made


async def closed(wish: dict[str, Any], requests: list[bytes]) -> list[tuple[float, float, bool]]:
    """Keep requests in flight; returns of each when it began and ended and whether its answer was right."""
    rows: list[tuple[float, float, bool]] = []
    right = checker(wish["logits"], wish["answers"], wish["least"])

    async with grpc.aio.insecure_channel(wish["url"].rpartition("/")[2], options=_OPTIONS) as channel:
        call = channel.unary_unary(METHOD)
        await call(requests[0], timeout=60, wait_for_ready=True)
        end = time.monotonic() + wish["warmup"] + wish["seconds"]

        async def client(number: int) -> None:
            turn = number
            while (began := time.monotonic()) < end:
                answer = await call(requests[turn % len(requests)], timeout=60)
                ended = time.monotonic()
                rows.append((began, ended, right(turn % len(requests), answer)))
                turn += 1

        await asyncio.gather(*(client(number) for number in range(wish["concurrency"])))
    return [row for row in rows if row[0] >= end - wish["seconds"] and row[1] <= end]


def loaded(wish: dict[str, Any]) -> dict[str, Any]:
    """Load a server; as :func:`serving_load.loaded`, ``kind``, ``shape`` and ``input`` in place of path and headers."""
    bodies = [Path(file).read_bytes()[wish["skip"] :] for file in wish["bodies"]]
    requests = [message(body, wish["kind"], wish["shape"], wish["input"]) for body in bodies]
    began, used = time.monotonic(), time.process_time()
    rows = run_on_event_loop(lambda: closed(wish, requests))
    cores = (time.process_time() - used) / (time.monotonic() - began)
    took = Latencies.of(np.array([end - begin for begin, end, _ in rows]))
    return {
        "rate": len(rows) / wish["seconds"],
        "p50_ms": took.p50_ms if took else None,
        "p99_ms": took.p99_ms if took else None,
        "latencies_ms": [round(1000 * (end - begin), 3) for begin, end, _ in rows],
        "bad": sum(not right for _, _, right in rows),
        "client_cores": cores,
    }


if __name__ == "__main__":
    print(json.dumps(loaded(json.load(sys.stdin))))
