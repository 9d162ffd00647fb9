"""Generates load: requests at scheduled times (open loop), or one after the answer to another (closed loop).

In an open loop the clients do not wait for a server that pauses: requests are sent at their scheduled times, and
latency counts from these. A closed loop sends nothing while the server does not answer, so it hides pauses; it measures
the capacity of the server.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.load_testing.event_loop import PreciseTimer
from regnet_deploy.load_testing.http_client import HttpClient, HttpReply
from regnet_deploy.load_testing.samples import DROPPED, Recorder
from regnet_deploy.load_testing.target import Target
from regnet_deploy.progress import NoProgress, Progress

#: ``poisson``: independent clients, as an SLO means them; ``constant``: one request every 1 / rate seconds.
Arrivals = Literal["poisson", "constant"]

#: Requests sent in a row, when the generator is behind its schedule, before answers are read again.
_BURST = 8
#: Seconds between checks for timeouts, and between updates of the progress.
_TICK_S = 0.25


@dataclass(frozen=True, eq=False)
class Load:
    """The requests of a load.

    Attributes:
        target: the server.
        requests: whole HTTP requests, sent in turns.
        check: tells whether the answer to the request with this index is right.
    """

    target: Target
    requests: Sequence[bytes]
    check: Callable[[int, HttpReply], bool]

    def is_wrong(self, ticket: int, status: int, reply: HttpReply | None) -> bool:
        """Tell whether an answer with status 200 is not the right one."""
        return status == 200 and reply is not None and not self.check(ticket % len(self.requests), reply)

    def request(self, ticket: int) -> bytes:
        """Return the request with this number in the load."""
        return self.requests[ticket % len(self.requests)]


@dataclass(frozen=True)
class LoadLimits:
    """Limits of a load.

    Attributes:
        connections: maximum number of requests in flight.
        timeout_s: seconds after its scheduled time within which a request must be answered.
    """

    connections: int = 256
    timeout_s: float = 10.0


def arrival_schedule(rate: float, seconds: float, arrivals: Arrivals = "poisson", seed: int = 0) -> NDArray[np.float64]:
    """Return the send times of requests in seconds from the start, ascending, each in ``[0, seconds)``.

    Their number is ``rate * seconds``, rounded, and at least one: a Poisson process conditioned on its count, so that
    the achieved rate can be compared with the offered one.

    Args:
        rate: requests/s.
        seconds: length of the schedule, above 0.
        arrivals: distribution of the times.
        seed: of ``poisson``; equal seeds give equal schedules.
    """
    count = max(1, round(rate * seconds))
    if arrivals == "constant":
        return np.linspace(0.0, seconds, count, endpoint=False)
    return np.sort(np.random.default_rng(seed).uniform(0.0, seconds, count))


async def open_loop(
    load: Load,
    schedule: NDArray[np.float64],
    recorder: Recorder,
    limits: LoadLimits | None = None,
    progress: Progress | None = None,
) -> None:
    """Send requests at scheduled times, in seconds from now; return when each is answered or has failed.

    A request beyond the limit of requests in flight is dropped, not delayed. ``recorder`` holds what happened however
    this ends, also when it is cancelled. ``progress`` is updated with the seconds since the start.
    """
    limits, progress = limits or LoadLimits(), progress or NoProgress()
    loop = asyncio.get_running_loop()
    finished: asyncio.Future[None] = loop.create_future()
    times: list[float] = schedule.tolist()
    sent = 0

    def on_answer(ticket: int, status: int, reply: HttpReply | None, now: float) -> None:
        recorder.end(ticket, status, now, load.is_wrong(ticket, status, reply))
        finish_if_complete()

    def finish_if_complete() -> None:
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
            if not client.send(ticket, load.request(ticket), recorder.start + times[ticket]):
                recorder.end(ticket, DROPPED, now)
        if sent < len(times):
            timer.set(recorder.start + times[sent])
        else:
            finish_if_complete()

    client = HttpClient(load.target, limits.connections, on_answer, limits.timeout_s)
    timer = PreciseTimer(loop, send_due)
    recorder.start = time.monotonic()
    try:
        send_due()
        while not finished.done():
            await asyncio.wait([finished], timeout=_TICK_S)
            client.expire()
            progress.update(time.monotonic() - recorder.start)
    finally:
        timer.close()
        client.close()
        recorder.problem = client.problem


async def closed_loop(
    load: Load,
    concurrency: int,
    seconds: float,
    recorder: Recorder,
    limits: LoadLimits | None = None,
    progress: Progress | None = None,
) -> None:
    """Keep ``concurrency`` requests in flight for some seconds; those in flight at the end stay unanswered."""
    limits, progress = limits or LoadLimits(), progress or NoProgress()
    loop = asyncio.get_running_loop()

    def send() -> None:
        now = time.monotonic()
        ticket = recorder.begin(now, now)
        client.send(ticket, load.request(ticket), now)

    def on_answer(ticket: int, status: int, reply: HttpReply | None, now: float) -> None:
        recorder.end(ticket, status, now, load.is_wrong(ticket, status, reply))
        if status == 200:
            loop.call_soon(send)
        else:  # without a pause, a server that refuses at once would get requests as fast as it can refuse them
            loop.call_later(0.02, send)

    client = HttpClient(load.target, concurrency, on_answer, limits.timeout_s)
    recorder.start = time.monotonic()
    try:
        for _ in range(concurrency):
            send()
        while (elapsed := time.monotonic() - recorder.start) < seconds:
            await asyncio.sleep(min(_TICK_S, seconds - elapsed))
            client.expire()
            progress.update(time.monotonic() - recorder.start)
    finally:
        client.close()
        recorder.problem = client.problem


async def request_each(target: Target, requests: Sequence[bytes], timeout_s: float = 30.0) -> list[HttpReply | str]:
    """Send requests one after another and return the answers; in place of an answer that failed, the reason."""
    loop = asyncio.get_running_loop()
    answers: list[HttpReply | str] = []
    waiting: list[asyncio.Future[HttpReply | str]] = []

    def on_answer(ticket: int, status: int, reply: HttpReply | None, now: float) -> None:
        waiting[ticket].set_result(reply or client.problem or f"no answer within {timeout_s:g} s")

    client = HttpClient(target, 1, on_answer, timeout_s)
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
