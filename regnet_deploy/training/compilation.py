"""A trial of torch.compile: whether its compilers work here shows only in a step."""

from __future__ import annotations

from regnet_deploy.training.data_loader import Batch
from regnet_deploy.training.trainer import Trainer


def compile_error(trainer: Trainer, batch: Batch) -> str | None:
    """Run one step with learning rate 0; return why it cannot be compiled, in one line, or None.

    Args:
        trainer: compiled, with weights of its own: the step changes its batch norm statistics.
        batch: of two images or more.
    """
    try:
        trainer.step(batch, 0.0)
    except _compile_errors() as error:
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return None


def _compile_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that torch.compile raises if its compilers are missing or fail."""
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    return TorchDynamoException, CppCompileError, InvalidCxxCompiler
