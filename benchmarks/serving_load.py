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
from serving_answers import checker

from regnet_deploy.load_testing.event_loop import run_on_event_loop
from regnet_deploy.load_testing.generator import Load, arrival_schedule, closed_loop, open_loop
from regnet_deploy.load_testing.http_client import HttpReply
from regnet_deploy.load_testing.report import Latencies, LoadRecord, summarize
from regnet_deploy.load_testing.samples import Recorder, Samples
from regnet_deploy.load_testing.target import parse_target, post


def load_of(wish: dict[str, Any]) -> Load:
    """Return the requests and how their answers are judged."""
    target = parse_target(wish["url"])
    bodies = [Path(file).read_bytes()[wish["skip"] :] for file in wish["bodies"]]
    requests = [post(target, wish["path"], body, wish["headers"]) for body in bodies]
    right = checker(wish["logits"], wish["answers"], wish["least"])

    def check(number: int, reply: HttpReply) -> bool:
        return right(number, reply.body)

    return Load(target, requests, check)


def loaded(wish: dict[str, Any]) -> dict[str, Any]:
    """Keep ``concurrency`` requests in flight and return rate, latencies and the cores that the client kept busy.

    Args:
        wish: ``url``, ``path``, ``headers``, ``bodies`` (files), ``skip`` (bytes of each that are not sent), ``least``,
            ``logits`` and ``answers`` of :func:`serving_answers.checker`, ``concurrency``, ``warmup`` and ``seconds``.
    """
    concurrency, warmup, seconds = int(wish["concurrency"]), wish["warmup"], wish["seconds"]
    load, recorder = load_of(wish), Recorder()
    began, used = time.monotonic(), time.process_time()
    run_on_event_loop(lambda: closed_loop(load, concurrency, warmup + seconds, recorder))
    cores = (time.process_time() - used) / (time.monotonic() - began)
    samples = recorder.samples()
    report = summarize(LoadRecord(samples, warmup, seconds, cores, concurrency=concurrency))
    latency = report.latency
    right = (samples.intended >= warmup) & (samples.done <= warmup + seconds) & (samples.status == 200)
    return {
        "rate": report.achieved,
        "p50_ms": latency.p50_ms if latency else None,
        "p99_ms": latency.p99_ms if latency else None,
        "latencies_ms": took_ms(samples.where(right & ~samples.wrong)),
        "bad": report.bad,
        "client_cores": cores,
    }


def took_ms(samples: Samples) -> list[float]:
    """Return the latencies of samples."""
    latencies: list[float] = np.round(1000 * (samples.done - samples.intended), 3).tolist()
    return latencies


def flooded(wish: dict[str, Any]) -> dict[str, Any]:
    """Send ``rate`` requests a second, answered or not; wish as in :func:`loaded`, ``rate`` in place of a concurrency.

    Returns:
        What became of them. Latencies of refusals count from when a request left, those ``from_due`` from when it was
        due: with client and server on the same cores it leaves late, by ``lag_p99_ms``.
    """
    warmup, seconds, rate = wish["warmup"], wish["seconds"], wish["rate"]
    load, recorder = load_of(wish), Recorder()
    due = arrival_schedule(rate, warmup + seconds)
    began, used = time.monotonic(), time.process_time()
    run_on_event_loop(lambda: open_loop(load, due, recorder))
    cores = (time.process_time() - used) / (time.monotonic() - began)
    samples = recorder.samples()
    report = summarize(LoadRecord(samples, warmup, seconds, cores, offered=rate))
    refused = samples.where((samples.intended >= warmup) & (samples.status == 503))
    from_sent, from_due = Latencies.of(refused.done - refused.sent), report.refusals
    return {
        "offered": rate,
        "rate": report.achieved,
        "ok": report.ok,
        "refused": report.refused,
        "dropped": report.dropped,
        "failed": sum(report.failed.values()),
        "wrong": report.wrong,
        "refused_p50_ms": from_sent.p50_ms if from_sent else None,
        "refused_p99_ms": from_sent.p99_ms if from_sent else None,
        "refused_ms": np.round(1000 * (refused.done - refused.sent), 3).tolist(),
        "refused_from_due_p99_ms": from_due.p99_ms if from_due else None,
        "lag_p99_ms": report.lag_p99_ms,
        "client_cores": cores,
    }


if __name__ == "__main__":
    given = json.load(sys.stdin)
    answer = json.dumps(flooded(given) if "rate" in given else loaded(given))
    # print() writes but a part of so much where PYTHONUNBUFFERED is set and a signal comes.
    with open(sys.stdout.fileno(), "w", encoding="utf-8", closefd=False) as out:
        out.write(answer + "\n")
