"""How the steps of a run are executed: chosen when it begins, and the same when it continues."""

from __future__ import annotations

from collections.abc import Callable

import torch

from regnet_deploy.bundle.training import Autotune, Execution
from regnet_deploy.cpu import cpu_has_fp16
from regnet_deploy.errors import DataError, UsageError
from regnet_deploy.images.decode import decoder
from regnet_deploy.progress import Progress
from regnet_deploy.training.checkpoint import Checkpoint
from regnet_deploy.training.compilation import compile_error
from regnet_deploy.training.data_loader import Batch, TrainingDataset, batches_from, load
from regnet_deploy.training.distributed import ProcessGroup
from regnet_deploy.training.execution import ExecutionRequest, can_compile, ensure_fp16, has_bf16, resolve_device
from regnet_deploy.training.recipe import steps_per_epoch
from regnet_deploy.training.trainer import Trainer


def choose_execution(
    request: ExecutionRequest,
    trainer_for: Callable[[Execution], Trainer],
    training: TrainingDataset,
    progress: Progress,
    group: ProcessGroup,
) -> Autotune:
    """Decide how the steps of a run are executed, and say so.

    Raises:
        UsageError: the request cannot be met on this machine.
    """
    recipe = training.recipe
    execution = request.execution(recipe.epochs * steps_per_epoch(len(training), recipe.batch))
    execution = execution.replace(processes=group.size if group.size > 1 else None)
    if execution.compiled:
        error = compile_error(trainer_for(execution), _first_batch(training))
        if error and request.compiled == "on":
            raise UsageError(f"--compile on: torch.compile fails here ({error}); leave it off")
        if error:
            progress.message(f"torch.compile fails here ({error}): continuing without it")
            execution = execution.replace(compiled=False)
    threads, cores = torch.get_num_threads(), group.cores
    if request.threads is not None and request.threads > cores:
        progress.message(
            f"--threads {request.threads} is more than the {cores} core{'' if cores == 1 else 's'} that this process "
            "may use: steps may take longer"
        )
    if execution.precision == "fp16" and execution.device == "cpu" and not cpu_has_fp16():
        progress.message("this CPU has no instructions for float16: steps may take longer than in fp32")
    faster = request.precision == "auto" and execution.precision == "fp32" and has_bf16(execution.device)
    progress.message(
        f"running steps in {execution} with {threads} {'thread' if threads == 1 else 'threads'}"
        + ("; --precision bf16 may be faster on this CPU, with other weights" if faster else "")
    )
    return Autotune(execution=execution, step_ms={}, reason="as requested, else by rule", threads=threads)


def _first_batch(training: TrainingDataset) -> Batch:
    """Return the first batch of two images or more.

    Raises:
        DataError: there is none.
    """
    for batch in load(training, batches_from(training.recipe, training.labels, 0, 0), workers=0, pin=False):
        if len(batch.labels) > 1:
            return batch
    raise DataError(f"none of the images in {training.subset.source.root} can be read any more: does it still exist?")


def resumed_execution(checkpoint: Checkpoint, progress: Progress, group: ProcessGroup) -> Autotune:
    """Return the execution of a checkpoint, after checking that it is possible here."""
    autotune = checkpoint.autotune
    processes = autotune.execution.processes or 1
    if processes != group.size:
        progress.message(
            f"started with {processes} process{'es' if processes > 1 else ''} and continued with {group.size}: the "
            "weights will not be bit-identical to those of an uninterrupted run"
        )
        now = group.size if group.size > 1 else None
        autotune = autotune.replace(execution=autotune.execution.replace(processes=now))
    if checkpoint.torch != torch.__version__:
        progress.message(
            f"started with PyTorch {checkpoint.torch} and continued with {torch.__version__}: "
            "the weights will not be bit-identical to those of an uninterrupted run"
        )
    before = checkpoint.description.data.decoder
    if before != decoder():
        progress.message(
            f"started with images decoded by {before or 'an earlier version'} and continued with {decoder()}: "
            "the weights may not be bit-identical to those of an uninterrupted run"
        )
    if checkpoint.autotune.threads:
        torch.set_num_threads(checkpoint.autotune.threads)  # sums over another number of threads have other last bits
    execution = checkpoint.autotune.execution
    resolve_device(execution.device)
    ensure_fp16(execution.precision, execution.device)
    if execution.compiled and not can_compile(execution.device):
        raise UsageError("the unfinished run is compiled, and there is no compiler on this machine: --restart drops it")
    return autotune
