"""Scaling of the loss in float16, whose smallest numbers are larger than many gradients, by PyTorch's ``GradScaler``.

The loss is multiplied by a factor before the backward pass, and the gradients are divided by it. A step whose gradients
are not finite is left out, and the factor is halved; after 2,000 steps without that it is doubled. Processes that train
together do the same: they look at the sums of their gradients, in which a number that is not finite in one of them is
not finite in all.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

#: Factor at the start of a run.
FIRST_SCALE = 2.0**16
#: With a smaller factor than this, gradients are not finite whatever it is.
_SMALLEST = 2.0**-20


class LossScale:
    """The factor of the loss, and whether the last step was left out.

    Attributes:
        skipped: whether it was, a bool on the device; reading it waits for the device.
    """

    def __init__(self, device: str) -> None:
        self._scaler = GradScaler(device, init_scale=FIRST_SCALE)
        self._one = torch.ones((), device=device)
        self.skipped = torch.zeros((), dtype=torch.bool, device=device)

    def scaled(self, loss: Tensor) -> Tensor:
        """Return the loss times the factor."""
        return self._scaler.scale(loss)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients by the factor, take the step unless one of them is not finite, and set the factor."""
        before = self.scaled(self._one)
        self._scaler.step(optimizer)
        self._scaler.update()
        self.skipped = self.scaled(self._one) < before

    @property
    def is_lost(self) -> bool:
        """Whether no factor makes the gradients finite; reading it waits for the device."""
        return self._scaler.get_scale() < _SMALLEST

    def state(self) -> dict[str, Tensor]:
        """Return the factor, and the steps since it was changed."""
        state = self._scaler.state_dict()
        return {
            "scale": torch.tensor(state["scale"], dtype=torch.float64),
            "steps": torch.tensor(state["_growth_tracker"], dtype=torch.int64),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Set the factor, and the steps since it was changed, to those of :meth:`state`."""
        scale, steps = float(state["scale"]), int(state["steps"])
        self._scaler.load_state_dict({**self._scaler.state_dict(), "scale": scale, "_growth_tracker": steps})

    def reset(self) -> None:
        """Begin anew."""
        self.restore({"scale": torch.tensor(FIRST_SCALE), "steps": torch.tensor(0)})
