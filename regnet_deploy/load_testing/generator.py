"""The load itself: requests sent when they are due (open loop), or when the one before is answered (closed loop).

In an open loop a server that pauses does not stop the clients: what was due meanwhile is sent, and its latency counts
from when it was due. A closed loop stops asking when the server stops answering, and so hides pauses; what it tells is
how much the server can do.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.load_testing.http_client import HttpClient, HttpReply
from regnet_deploy.load_testing.precise_timer import PreciseTimer
from regnet_deploy.load_testing.samples import DROPPED, Recorder
from regnet_deploy.load_testing.target import Target

#: Requests sent in a row before answers are looked at again, when the generator is behind.
_BURST = 8
#: Seconds between looks at what has waited too long, and between words on the progress.
_TICK_S = 0.25

#: Tells whether an answer to the request of this number is right.
Check = Callable[[int, HttpReply], bool]
#: Is told how many seconds of the load are over.
Tick = Callable[[float], None]


@dataclass(frozen=True, eq=False)
class Load:
    """What is sent: whole requests, taken in turns, and how their answers are judged."""

    requests: Sequence[bytes]
    check: Check


@dataclass(frozen=True)
class LoadRules:
    """How it is sent.

    Attributes:
        connections: most requests in flight.
        timeout_s: seconds after it was due in which a request must be answered.
    """

    connections: int = 256
    timeout_s: float = 10.0


async def open_loop(
    target: Target,
    load: Load,
    due: NDArray[np.float64],
    recorder: Recorder,
    rules: LoadRules | None = None,
    tick: Tick = lambda seconds: None,
) -> None:
    """Send requests at the times ``due``, seconds from now, and return when each is answered or has failed.

    What cannot be sent for want of room in flight is dropped, not delayed. ``recorder`` holds what has happened
    whenever this ends, cancelled too.
    """
    rules = rules or LoadRules()
    loop = asyncio.get_running_loop()
    finished: asyncio.Future[None] = loop.create_future()
    times: list[float] = due.tolist()
    requests, many = load.requests, len(load.requests)
    sent = 0

    def done(ticket: int, status: int, reply: HttpReply | None, now: float) -> None:
        wrong = status == 200 and reply is not None and not load.check(ticket % many, reply)
        recorder.end(ticket, status, now, wrong)
        end_where_all_is_done()

    def end_where_all_is_done() -> None:
        if sent == len(times) and not client.in_flight and not finished.done():
            finished.set_result(None)

    def send_due() -> None:
        nonlocal sent
        for _ in range(_BURST):
            now = time.monotonic()
            if sent == len(times) or recorder.start + times[sent] > now:
                break
            ticket = recorder.begin(recorder.start + times[sent], now)
            sent += 1
            if not client.send(ticket, requests[ticket % many], recorder.start + times[ticket]):
                recorder.end(ticket, DROPPED, now)
        if sent < len(times):
            alarm.set(recorder.start + times[sent])
        else:
            end_where_all_is_done()

    client = HttpClient(target, rules.connections, done, rules.timeout_s)
    alarm = PreciseTimer(loop, send_due)
    recorder.start = time.monotonic()
    try:
        send_due()
        while not finished.done():
            await asyncio.wait([finished], timeout=_TICK_S)
            client.expire()
            tick(time.monotonic() - recorder.start)
    finally:
        alarm.close()
        client.close()
        recorder.problem = client.problem


async def closed_loop(
    target: Target,
    load: Load,
    concurrency: int,
    seconds: float,
    recorder: Recorder,
    rules: LoadRules | None = None,
    tick: Tick = lambda seconds: None,
) -> None:
    """Keep ``concurrency`` requests in flight for some seconds; what is in flight at the end stays unanswered."""
    rules = rules or LoadRules()
    loop = asyncio.get_running_loop()
    many = len(load.requests)

    def send() -> None:
        now = time.monotonic()
        ticket = recorder.begin(now, now)
        client.send(ticket, load.requests[ticket % many], now)

    def done(ticket: int, status: int, reply: HttpReply | None, now: float) -> None:
        wrong = status == 200 and reply is not None and not load.check(ticket % many, reply)
        recorder.end(ticket, status, now, wrong)
        if status == 200:
            loop.call_soon(send)
        else:  # a server that refuses at once would be asked as fast as it can refuse
            loop.call_later(0.02, send)

    client = HttpClient(target, concurrency, done, rules.timeout_s)
    recorder.start = time.monotonic()
    try:
        for _ in range(concurrency):
            send()
        while (over := time.monotonic() - recorder.start) < seconds:
            await asyncio.sleep(min(_TICK_S, seconds - over))
            client.expire()
            tick(time.monotonic() - recorder.start)
    finally:
        client.close()
        recorder.problem = client.problem


async def request_each(target: Target, requests: Sequence[bytes], timeout_s: float = 30.0) -> list[HttpReply | str]:
    """Send each request alone, one after another, and return the answers; in place of one that failed, why."""
    loop = asyncio.get_running_loop()
    answers: list[HttpReply | str] = []
    waiting: list[asyncio.Future[HttpReply | str]] = []

    def done(ticket: int, status: int, reply: HttpReply | None, now: float) -> None:
        waiting[ticket].set_result(reply or client.problem or f"no answer within {timeout_s:g} s")

    client = HttpClient(target, 1, done, timeout_s)
    try:
        for ticket, request in enumerate(requests):
            waiting.append(loop.create_future())
            client.send(ticket, request)
            while not waiting[ticket].done():
                await asyncio.wait([waiting[ticket]], timeout=_TICK_S)
                client.expire()
            answers.append(waiting[ticket].result())
    finally:
        client.close()
    return answers
