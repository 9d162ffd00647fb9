"""Gradients of a step, added up over processes while the backward pass goes on.

This does what ``DistributedDataParallel`` of PyTorch does, with two differences that a run needs. The layout of the
buckets never changes, while DDP changes it after the first step: a run that continues from a checkpoint then adds up in
the order of one that was never interrupted, and its weights are equal to the bit. And a process may have fewer images
than another, or none: DDP takes the mean over processes, and waits for those that have no backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from regnet_deploy.training.distributed import add_up, wait_for

#: Bytes of gradients in one message, as in DDP.
_BUCKET_BYTES = 25 * 2**20


@dataclass(eq=False)
class _Bucket:
    """Parameters whose gradients are sent together; ``flat`` has them one after the other."""

    parameters: list[nn.Parameter]
    flat: Tensor
    views: list[Tensor]
    ready: int = 0
    work: dist.Work | None = None


@dataclass(eq=False)
class GradientSum:
    """Adds up gradients and statistics of a network over all processes.

    Attributes:
        model: the network.
        active: whether the gradients of the backward pass that runs now are complete, so that they can be sent.
    """

    model: nn.Module
    active: bool = True
    _buckets: list[_Bucket] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Lay out the buckets in the order of the backward pass, and follow it."""
        parameters: list[nn.Parameter] = []
        for parameter in reversed([each for each in self.model.parameters() if each.requires_grad]):
            if parameters and sum(each.nbytes for each in (*parameters, parameter)) > _BUCKET_BYTES:
                self._add(parameters)
                parameters = []
            parameters.append(parameter)
        self._add(parameters)

    def _add(self, parameters: list[nn.Parameter]) -> None:
        sizes = [parameter.numel() for parameter in parameters]
        flat = torch.zeros(sum(sizes), dtype=parameters[0].dtype, device=parameters[0].device)
        # As the parameters lie in memory, which may be channels last.
        views = [
            part.as_strided(p.shape, p.stride()) for part, p in zip(torch.split(flat, sizes), parameters, strict=True)
        ]
        bucket = _Bucket(parameters, flat, views)
        self._buckets.append(bucket)
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(partial(self._arrived, bucket))  # type: ignore[no-untyped-call]

    def _arrived(self, bucket: _Bucket, _: Tensor) -> None:
        if not self.active:
            return
        bucket.ready += 1
        # Buckets are sent in their order, which is the same in all processes.
        for each in self._buckets:
            if each.work is None:
                if each.ready < len(each.parameters):
                    return
                self._send(each)

    def _send(self, bucket: _Bucket) -> None:
        for parameter, view in zip(bucket.parameters, bucket.views, strict=True):
            if parameter.grad is None:
                view.zero_()
            else:
                view.copy_(parameter.grad)
        bucket.work = add_up(bucket.flat)

    def finish(self, figures: Tensor, batch: int) -> Tensor:
        """Set the gradients to those of the mean loss of all images of the step; return the sums of the figures.

        Running statistics of batch norm become their means over all processes, so that they are equal in each.

        Args:
            figures: of this process, ``(n,)`` float64: first its number of images, then what else is to be added up.
            batch: images of a step. The loss of the backward pass is the sum over the images, divided by this.

        Raises:
            ProcessLost: a process has ended.
        """
        statistics = running_statistics(self.model)
        size = dist.get_world_size()
        shared = torch.cat([value.detach().flatten().double() / size for value in statistics] + [figures])
        for bucket in self._buckets:  # of a process without a backward pass
            if bucket.work is None:
                self._send(bucket)
        last = add_up(shared)
        for bucket in self._buckets:
            if bucket.work is not None:
                wait_for(bucket.work)
            bucket.work, bucket.ready = None, 0
        wait_for(last)
        sums = shared[-len(figures) :]
        share = (batch / sums[0].clamp(min=1)).float()  # below 1 only: images that could not be read are missing
        for bucket in self._buckets:
            bucket.flat.mul_(share)
            for parameter, view in zip(bucket.parameters, bucket.views, strict=True):
                parameter.grad = view
        with torch.no_grad():
            sizes = [value.numel() for value in statistics]
            for value, mean in zip(statistics, torch.split(shared[: sum(sizes)], sizes), strict=True):
                value.copy_(mean)
        return sums


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Return running mean and variance of each batch norm that updates them."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d) and module.training]
    return [value for norm in norms for value in (norm.running_mean, norm.running_var) if value is not None]
