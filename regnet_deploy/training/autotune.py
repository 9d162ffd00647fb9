"""A short timed trial on real images: which precision and layout this device gains from, and whether to compile."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from regnet_deploy.errors import UsageError
from regnet_deploy.training.data_loader import Batch
from regnet_deploy.training.execution import Execution, ExecutionRequest, can_compile
from regnet_deploy.training.trainer import Trainer

#: Timed steps of each way, and the time after which there are no more rounds.
ROUNDS, ENOUGH_S = 5, 10.0
#: Share of the plainest way's time that another must save to be taken: less is noise.
WORTHWHILE = 0.05
#: A run longer than this repays the minute or two that compilation for a GPU can take.
COMPILE_REPAYS_S = 600.0


@dataclass(frozen=True)
class Autotune:
    """How steps are run, and why.

    Attributes:
        execution: what was chosen.
        step_ms: median time of a step of each way that was tried, by its name; empty without a trial.
        reason: in words.
        threads: of the CPU, kept when a run goes on: sums of another number of threads have other last bits.
    """

    execution: Execution
    step_ms: dict[str, float]
    reason: str
    threads: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return JSON data that :meth:`from_json` reads."""
        return {
            "execution": self.execution.to_json(),
            "step_ms": self.step_ms,
            "reason": self.reason,
            "threads": self.threads,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Autotune:
        """Read what :meth:`to_json` wrote."""
        return cls(Execution(**data["execution"]), data["step_ms"], data["reason"], data["threads"])


def autotune_execution(
    wanted: ExecutionRequest,
    make: Callable[[Execution], Trainer],
    batch: Batch,
    steps: int,
    say: Callable[[str], None] = lambda line: None,
) -> Autotune:
    """Decide how the steps of a run are executed.

    Args:
        wanted: what the user asked for; what is left open is tried.
        make: makes a learner that is run so, with weights of its own.
        batch: real images.
        steps: of the whole run, to tell whether compilation is repaid.
        say: told where compilation was tried and failed.

    Raises:
        UsageError: what was asked for cannot be done here.
    """
    candidates = wanted.candidates()
    device = candidates[0].device
    if wanted.compiled == "on":
        if not can_compile(device):
            raise UsageError(
                "--compile on: torch.compile finds no C compiler here (or no Triton for CUDA); leave it off"
            )
        try:
            make(candidates[0]).step(batch, 0.0)
        except _compile_errors() as error:
            raise UsageError(f"--compile on: torch.compile fails here ({_first_line(error)}); leave it off") from None
    if len(candidates) == 1 and (wanted.compiled != "auto" or device == "cpu"):
        return Autotune(candidates[0], {}, "as asked")
    times = _time_s(candidates, make, batch)
    chosen = _faster(times, candidates[0])
    if (
        wanted.compiled == "auto"
        and device == "cuda"
        and can_compile(device)
        and steps * times[chosen] > COMPILE_REPAYS_S
    ):
        compiled = replace(chosen, compiled=True)
        try:
            times |= _time_s([chosen, compiled], make, batch)
            chosen = _faster({way: times[way] for way in (chosen, compiled)}, chosen)
        except _compile_errors() as error:
            say(f"torch.compile fails here ({_first_line(error)}): going on without")
    step_ms = {str(way): round(seconds * 1e3, 3) for way, seconds in times.items()}
    return Autotune(
        chosen, step_ms, f"the fastest that saves {WORTHWHILE:.0%} or more, median of {ROUNDS} steps at most"
    )


def _time_s(ways: Sequence[Execution], make: Callable[[Execution], Trainer], batch: Batch) -> dict[Execution, float]:
    """Return the median seconds of a step, each way in turn so that a busy moment meets them all."""
    learners = {way: make(way) for way in ways}
    times: dict[Execution, list[float]] = {way: [] for way in ways}
    for learner in learners.values():
        learner.step(batch, 0.0)  # the first step sets things up
        learner.synchronize()
    start = time.perf_counter()
    for _ in range(ROUNDS):
        for way, learner in learners.items():
            begin = time.perf_counter()
            learner.step(batch, 0.0)
            learner.synchronize()
            times[way].append(time.perf_counter() - begin)
        if time.perf_counter() - start > ENOUGH_S:
            break
    return {way: statistics.median(values) for way, values in times.items()}


def _faster(times: dict[Execution, float], plainest: Execution) -> Execution:
    fastest = min(times, key=times.__getitem__)
    return fastest if times[fastest] <= (1 - WORTHWHILE) * times[plainest] else plainest


def _compile_errors() -> tuple[type[Exception], ...]:
    """Return what torch.compile raises where its compilers are missing or fail."""
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    return TorchDynamoException, CppCompileError, InvalidCxxCompiler


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
