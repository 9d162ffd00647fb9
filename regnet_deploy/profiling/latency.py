"""Measures the latency of inferences: a warm-up, then repetitions; several runtimes take turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from regnet_deploy.bundle.measurements import Latency
from regnet_deploy.errors import UsageError
from regnet_deploy.progress import NoProgress, Progress
from regnet_deploy.space.complexity import stage_resolutions
from regnet_deploy.space.network import Network

#: Shortest duration of a warm-up, length of its windows, and longest duration; it ends when two windows in a row agree.
WARMUP_S, WARMUP_WINDOW_S, WARMUP_LIMIT_S = 1.0, 0.2, 10.0
#: Largest relative difference of the medians of two windows that agree.
STEADY = 0.05
#: Turns of each runtime at each batch size, so that a disturbance of the machine affects all of them.
ROUNDS = 4
#: Smallest number of repetitions, however long they take.
MIN_REPETITIONS = 2 * ROUNDS

#: Runs one inference and returns its duration in seconds.
TimedInference = Callable[[], float]


@dataclass(frozen=True)
class Runner:
    """Runs the network in one runtime.

    Attributes:
        runtime: name and version, such as ``torch 2.13.0``.
        variant: name of the exported variant, or None for the PyTorch model.
        device: ``cpu`` or the name of the GPU.
        precision: such as ``fp32``.
        layout: of the input in memory, ``channels_last`` or ``channels_first``.
        threads: number of CPU threads.
        prepare: returns an inference of a batch size; input and output are in host memory.
    """

    runtime: str
    variant: str | None
    device: str
    precision: str
    layout: str
    threads: int
    prepare: Callable[[int], TimedInference]


def measure_latency(
    runners: Sequence[Runner], batches: Sequence[int], seconds: float, progress: Progress | None = None
) -> list[Latency]:
    """Measure every runner at every batch size.

    Args:
        runners: take turns, so that a disturbance of the machine affects all of them.
        batches: batch sizes.
        seconds: measured for each runner and batch size, without the warm-up.
        progress: is updated before each of the ``len(batches) * len(runners) * (1 + ROUNDS)`` turns.
    """
    progress = progress or NoProgress()
    latencies = []
    for i, batch in enumerate(batches):
        taken = time_in_turns(runners, batch, seconds, _Part(progress, i, len(batches)))
        latencies += [_summary(runner, batch, turns) for runner, turns in zip(runners, taken, strict=True)]
    return latencies


@dataclass(frozen=True)
class Turns:
    """The durations of one runner.

    Attributes:
        rounds: durations of the inferences of each turn, s.
        warmup_repetitions: number of inferences before.
    """

    rounds: list[list[float]]
    warmup_repetitions: int


def time_in_turns(
    runners: Sequence[Runner], batch: int, seconds: float, progress: Progress | None = None
) -> list[Turns]:
    """Warm every runner up, then let them take :data:`ROUNDS` turns each, and return the durations.

    Args:
        runners: take turns, so that a disturbance of the machine affects all of them.
        batch: images in an inference.
        seconds: measured for each runner, without the warm-up.
        progress: is updated before each of the ``len(runners) * (1 + ROUNDS)`` turns.
    """
    progress = progress or NoProgress()
    turns, turn = len(runners) * (1 + ROUNDS), 0
    inferences, warm_ups = [], []
    for runner in runners:
        progress.update(turn, turns, f"{runner.runtime}, batch {batch}: warm-up")
        inferences.append(runner.prepare(batch))
        warm_ups.append(warm_up(inferences[-1]))
        turn += 1
    durations: list[list[list[float]]] = [[] for _ in runners]
    for _ in range(ROUNDS):
        for i, runner in enumerate(runners):
            progress.update(turn, turns, f"{runner.runtime}, batch {batch}")
            inferences[i]()  # not measured: caches are cold after the turn of another runtime
            durations[i].append(time_repeats(inferences[i], seconds / ROUNDS, MIN_REPETITIONS // ROUNDS))
            turn += 1
    return [Turns(taken, count) for taken, count in zip(durations, warm_ups, strict=True)]


@dataclass(frozen=True)
class _Part:
    """The progress of one of several equal parts."""

    whole: Progress
    part: int
    parts: int

    def step(self, description: str, total: float | None = None) -> None:
        self.whole.step(description, total)

    def update(self, completed: float, total: float | None = None, note: str = "") -> None:
        assert total is not None  # time_in_turns knows it
        self.whole.update(self.part * total + completed, self.parts * total, note)

    def message(self, line: str) -> None:
        self.whole.message(line)


def warm_up(inference: TimedInference) -> int:
    """Repeat an inference until its duration is steady and return the number of repetitions."""
    count, total, before = 0, 0.0, 0.0
    while True:
        window = time_repeats(inference, WARMUP_WINDOW_S, 2)
        count, total, median = count + len(window), total + sum(window), statistics.median(window)
        steady = abs(median - before) <= STEADY * before
        if total >= WARMUP_LIMIT_S or (steady and total >= WARMUP_S):
            return count
        before = median


def time_repeats(inference: TimedInference, seconds: float, at_least: int) -> list[float]:
    """Repeat an inference until the sum of the durations is ``seconds`` and return the durations."""
    taken: list[float] = []
    total = 0.0
    while total < seconds or len(taken) < at_least:
        taken.append(inference())
        total += taken[-1]
    return taken


def _summary(runner: Runner, batch: int, turns: Turns) -> Latency:
    seconds = [each for taken in turns.rounds for each in taken]
    p50, p95, p99 = (float(value) for value in np.percentile(np.asarray(seconds) * 1000, (50, 95, 99)))
    fields = {name: value for name, value in vars(runner).items() if name != "prepare"}
    return Latency(
        **fields,
        batch=batch,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        images_per_second=batch * len(seconds) / sum(seconds),
        repetitions=len(seconds),
        warmup_repetitions=turns.warmup_repetitions,
    )


def check_memory(network: Network, resolution: int, batch: int, memory_bytes: int) -> None:
    """Check that the first feature maps of a batch fit into memory; otherwise the system would kill the process.

    Args:
        network: the stages.
        resolution: height and width of the images, pixels.
        batch: number of images.
        memory_bytes: that this process may use.

    Raises:
        UsageError: the batch is too large; the message has a size that may fit.
    """
    image_bytes = first_maps_bytes(network, resolution)
    if batch * image_bytes > memory_bytes:
        raise UsageError(
            f"--batch {batch} needs more than {batch * image_bytes / 2**30:,.0f} GiB, and this process may use "
            f"{memory_bytes / 2**30:,.1f} GiB: give at most --batch {max(1, memory_bytes // (2 * image_bytes))}"
        )


def first_maps_bytes(network: Network, resolution: int) -> int:
    """Return the bytes of the first feature maps of one image in FP32: ``resolution`` is its side in pixels."""
    side = stage_resolutions(resolution, network.stem_stride, 0)[0]
    # The first block keeps its input for the shortcut while its first convolution and batch norm each have an output.
    return 4 * side**2 * (network.stem_width + 2 * network.bottleneck_widths[0])
