"""Training steps that take seconds on a CPU: a signal ends them between two layers. GPUs take no such time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import torch

from regnet_deploy.training.data_loader import Batch
from regnet_deploy.training.layer_calls import between_layers
from regnet_deploy.training.trainer import StepAbandoned, StepResult, Trainer

#: Seconds from which a step is slow.
SLOW_S = 1.0


class SlowSteps:
    """Runs training steps, of which slow ones are abandoned when a signal has arrived.

    A step is slow if the one before it was; the first one may be. Fast steps are completed, and cost nothing.

    Args:
        trainer: runs the steps. On a GPU, compiled, or with batch norm over several processes, all are completed.
        signalled: tells whether a signal has arrived.
    """

    def __init__(self, trainer: Trainer, signalled: Callable[[], bool]) -> None:
        execution = trainer.execution
        synchronized = bool(execution.sync_bn and trainer.gradients)
        self._trainer, self._signalled = trainer, signalled
        self._possible = execution.device == "cpu" and not execution.compiled and not synchronized
        self._watched = self._possible

    def step(self, batch: Batch, rate: float, at: tuple[int, int]) -> StepResult:
        """Run a step: see :meth:`Trainer.step`.

        Raises:
            StepAbandoned: the network, with its statistics, and the optimizer are as before the step. With several
                processes, all of them raise it.
        """
        trainer = self._trainer
        # Another process may watch this step, and abandon it, where this one does not.
        kept = self._watched or (self._possible and trainer.gradients)
        buffers = [(buffer, buffer.clone()) for buffer in trainer.model.buffers()] if kept else []
        watching = between_layers(trainer.model, self._look) if self._watched else contextlib.nullcontext()
        begun = time.perf_counter()
        try:
            with watching:
                result = trainer.step(batch, rate, at)
        except StepAbandoned:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
            trainer.optimizer.zero_grad(set_to_none=True)
            raise
        self._watched = self._possible and time.perf_counter() - begun >= SLOW_S
        return result

    def _look(self) -> None:
        if self._signalled():
            raise StepAbandoned
