"""How long an inference takes: warm-up until it is steady, then repetitions, several runtimes in turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

#: A warm-up lasts at least this long, ends when two windows in a row agree, and is not waited for any longer than that.
WARMUP_S, WARMUP_WINDOW_S, WARMUP_LIMIT_S = 1.0, 0.2, 10.0
#: Two windows agree when their medians differ by no more than this share.
STEADY = 0.05
#: Turns that the runtimes take at each batch size, so that a disturbance of the machine meets them all.
ROUNDS = 4
#: Repetitions that are made however long they take.
MIN_REPETITIONS = 2 * ROUNDS

#: Runs one inference and returns how many seconds it took.
Timed = Callable[[], float]


@dataclass(frozen=True)
class Runner:
    """Something that runs the network.

    Attributes:
        runtime: name and version, such as ``torch 2.13.0``.
        variant: name of the exported variant, or None for the model itself.
        device: ``cpu`` or the name of the GPU.
        precision: ``fp32``.
        layout: of its input in memory, ``channels_last`` or ``channels_first``.
        threads: of the CPU that it may use.
        prepare: makes an inference of a batch size, with input and output where the runtime wants them.
    """

    runtime: str
    variant: str | None
    device: str
    precision: str
    layout: str
    threads: int
    prepare: Callable[[int], Timed]


@dataclass(frozen=True)
class Latency:
    """Measured latency of one batch size; percentiles are interpolated between repetitions.

    With fewer than 100 repetitions the 99th percentile lies next to the slowest of them; ``repetitions`` says so.
    """

    runtime: str
    variant: str | None
    device: str
    precision: str
    layout: str
    threads: int
    batch: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    images_per_second: float
    repetitions: int
    warmup_repetitions: int

    def to_json(self) -> dict[str, Any]:
        """Return JSON data."""
        return asdict(self)


def measure_latency(
    contenders: Sequence[Runner],
    batches: Sequence[int],
    seconds: float,
    advance: Callable[[str], None] = lambda what: None,
) -> list[Latency]:
    """Measure every contender at every batch size.

    Args:
        contenders: take turns, so that each meets the same disturbances.
        batches: images an inference.
        seconds: time measured for each contender and batch size, warm-up not counted.
        advance: is told before each of the ``len(batches) * len(contenders) * (1 + ROUNDS)`` steps what it is.
    """
    measured = []
    for batch in batches:
        timed, warm = [], []
        for contender in contenders:
            advance(f"{contender.runtime}, batch {batch}: warm-up")
            timed.append(contender.prepare(batch))
            warm.append(warm_up(timed[-1]))
        samples: list[list[float]] = [[] for _ in contenders]
        for _ in range(ROUNDS):
            for i, contender in enumerate(contenders):
                advance(f"{contender.runtime}, batch {batch}")
                timed[i]()  # the first call after another runtime's turn finds cold caches
                samples[i] += time_repeats(timed[i], seconds / ROUNDS, MIN_REPETITIONS // ROUNDS)
        measured += [
            _summary(contender, batch, taken, count)
            for contender, taken, count in zip(contenders, samples, warm, strict=True)
        ]
    return measured


def warm_up(timed: Timed) -> int:
    """Repeat until the time of an inference is steady and return how many repetitions that took."""
    count, total, before = 0, 0.0, 0.0
    while True:
        window = time_repeats(timed, WARMUP_WINDOW_S, 2)
        count, total, median = count + len(window), total + sum(window), statistics.median(window)
        steady = abs(median - before) <= STEADY * before
        if total >= WARMUP_LIMIT_S or (steady and total >= WARMUP_S):
            return count
        before = median


def time_repeats(timed: Timed, seconds: float, at_least: int) -> list[float]:
    """Repeat until the inferences themselves have taken ``seconds`` and return the seconds of each."""
    taken: list[float] = []
    total = 0.0
    while total < seconds or len(taken) < at_least:
        taken.append(timed())
        total += taken[-1]
    return taken


def _summary(contender: Runner, batch: int, seconds: list[float], warmup_repetitions: int) -> Latency:
    p50, p95, p99 = (float(value) for value in np.percentile(np.asarray(seconds) * 1000, (50, 95, 99)))
    fields = {name: value for name, value in vars(contender).items() if name != "prepare"}
    return Latency(
        **fields,
        batch=batch,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        images_per_second=batch * len(seconds) / sum(seconds),
        repetitions=len(seconds),
        warmup_repetitions=warmup_repetitions,
    )
