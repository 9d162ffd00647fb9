"""Choice of precision, memory layout and compilation by timing a few training steps on real images."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

from regnet_deploy.bundle.training import Autotune, Execution
from regnet_deploy.errors import UsageError
from regnet_deploy.progress import NoProgress, Progress
from regnet_deploy.training.data_loader import Batch
from regnet_deploy.training.execution import ExecutionRequest, can_compile
from regnet_deploy.training.trainer import Trainer

#: Timed steps of each execution, and the time after which no further round starts.
ROUNDS, MAX_S = 5, 10.0
#: Share of the time of the first candidate that another one must save to be chosen; less is noise.
MIN_SAVING = 0.05
#: Compilation for a GPU takes a minute or two; it is tried for runs that take longer than this.
MIN_COMPILED_RUN_S = 600.0


def autotune_execution(
    request: ExecutionRequest,
    make_trainer: Callable[[Execution], Trainer],
    batch: Batch,
    steps: int,
    progress: Progress = NoProgress(),
) -> Autotune:
    """Choose how the steps of a run are executed.

    Args:
        request: what the user requests; what is ``auto`` is timed.
        make_trainer: returns a trainer with this execution and with weights of its own.
        batch: real images.
        steps: number of steps of the whole run; decides whether compilation is worth its time.
        progress: receives a message if compilation fails.

    Raises:
        UsageError: the request cannot be met on this machine.
    """
    candidates = request.candidates()
    device = candidates[0].device
    if request.compiled == "on":
        if not can_compile(device):
            raise UsageError(
                "--compile on: torch.compile finds no C compiler here (or no Triton for CUDA); leave it off"
            )
        try:
            make_trainer(candidates[0]).step(batch, 0.0)
        except _compile_errors() as error:
            raise UsageError(f"--compile on: torch.compile fails here ({_first_line(error)}); leave it off") from None
    if len(candidates) == 1 and (request.compiled != "auto" or device == "cpu"):
        return Autotune(execution=candidates[0], step_ms={}, reason="as asked")
    times = _step_seconds(candidates, make_trainer, batch)
    chosen = _faster(times, candidates[0])
    if (
        request.compiled == "auto"
        and device == "cuda"
        and can_compile(device)
        and steps * times[chosen] > MIN_COMPILED_RUN_S
    ):
        compiled = chosen.replace(compiled=True)
        try:
            times |= _step_seconds([chosen, compiled], make_trainer, batch)
            chosen = _faster({execution: times[execution] for execution in (chosen, compiled)}, chosen)
        except _compile_errors() as error:
            progress.message(f"torch.compile fails here ({_first_line(error)}): continuing without it")
    return Autotune(
        execution=chosen,
        step_ms={str(execution): round(seconds * 1e3, 3) for execution, seconds in times.items()},
        reason=f"the fastest that saves {MIN_SAVING:.0%} or more, median of {ROUNDS} steps at most",
    )


def _step_seconds(
    executions: Sequence[Execution], make_trainer: Callable[[Execution], Trainer], batch: Batch
) -> dict[Execution, float]:
    """Return the median seconds of a step. Executions take turns, so that other load on the machine affects all."""
    trainers = {execution: make_trainer(execution) for execution in executions}
    times: dict[Execution, list[float]] = {execution: [] for execution in executions}
    for trainer in trainers.values():
        trainer.step(batch, 0.0)  # the first step allocates and initializes
        trainer.synchronize()
    start = time.perf_counter()
    for _ in range(ROUNDS):
        for execution, trainer in trainers.items():
            begin = time.perf_counter()
            trainer.step(batch, 0.0)
            trainer.synchronize()
            times[execution].append(time.perf_counter() - begin)
        if time.perf_counter() - start > MAX_S:
            break
    return {execution: statistics.median(values) for execution, values in times.items()}


def _faster(times: dict[Execution, float], first: Execution) -> Execution:
    fastest = min(times, key=times.__getitem__)
    return fastest if times[fastest] <= (1 - MIN_SAVING) * times[first] else first


def _compile_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that torch.compile raises if its compilers are missing or fail."""
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    return TorchDynamoException, CppCompileError, InvalidCxxCompiler


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
