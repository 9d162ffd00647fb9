"""Batch norm with the statistics of the images of all processes: with it, a step does not depend on their number.

``torch.nn.SyncBatchNorm`` does this on GPUs alone. Here it is written with operations that run on each device, so that
what is tested on a CPU is what runs on a GPU; there it takes more time and memory than PyTorch's fused kernels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from regnet_deploy.training.distributed import add_up, wait_for


class _SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes; its gradient is the sum of the gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return _sum(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _sum(gradient)


def _sum(values: Tensor) -> Tensor:
    sums = values.clone(memory_format=torch.contiguous_format)
    wait_for(add_up(sums))
    return sums


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that, in training, normalizes by mean and variance over all processes; a process may have no image."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalized activations, ``(n, channels, h, w)``."""
        if not self.training:
            return super().forward(input)
        values = input.float()
        count = values.new_full((1,), values.numel() / values.shape[1], dtype=torch.float64)
        sums = (power.sum((0, 2, 3), dtype=torch.float64) for power in (values, values.square()))
        total, squares, count = torch.split(
            _SumOverProcesses.apply(torch.cat([*sums, count])),  # type: ignore[no-untyped-call]
            [self.num_features, self.num_features, 1],
        )
        count = count.clamp(min=1)
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=0)
        self._follow(mean.detach(), (variance * count / (count - 1).clamp(min=1)).detach())
        scale = self.weight * torch.rsqrt(variance + self.eps).float()
        offset = self.bias - mean.float() * scale
        normalized = torch.addcmul(offset.view(1, -1, 1, 1), values, scale.view(1, -1, 1, 1))
        return normalized.to(input.dtype)

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Update the running statistics as :class:`torch.nn.BatchNorm2d` does."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        factor = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.float(), factor)
        self.running_var.lerp_(variance.float(), factor)


def synchronize_batch_norm(model: nn.Module) -> None:
    """Replace each batch norm of a network by one over all processes, with the same weights and names."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                new = SyncBatchNorm2d(child.num_features, child.eps, child.momentum)
                new.weight, new.bias = child.weight, child.bias
                new.running_mean, new.running_var = child.running_mean, child.running_var
                new.num_batches_tracked = child.num_batches_tracked
                setattr(module, name, new.train(child.training))
