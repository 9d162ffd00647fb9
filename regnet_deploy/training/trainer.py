"""The trainer: a network, its optimizer and one training step."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.bundle.training import Execution
from regnet_deploy.errors import UsageError
from regnet_deploy.images.preprocessing import scale_and_shift
from regnet_deploy.models.anynet import HEAD
from regnet_deploy.training.batch_augmentation import draw_mix
from regnet_deploy.training.class_balance import class_weights
from regnet_deploy.training.data_loader import Batch
from regnet_deploy.training.distributed import ALONE, ProcessGroup
from regnet_deploy.training.gradient_sum import GradientSum
from regnet_deploy.training.loss import training_loss
from regnet_deploy.training.loss_scale import LossScale
from regnet_deploy.training.recipe import BETAS, MOMENTUM, Recipe
from regnet_deploy.training.stochastic_depth import StochasticDepth, stochastic_depth
from regnet_deploy.training.sync_batch_norm import synchronize_batch_norm

#: Types of autocast.
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
#: State of AdamW for each parameter: both moments, and the number of its steps.
_ADAMW = ("exp_avg", "exp_avg_sq", "step")
#: Height and width of the input without images; the network takes any.
_EMPTY_SIDE = 32


class StepResult(NamedTuple):
    """Mean loss of a step, number of correct predictions and number of images: scalars, float64, on the device."""

    loss: Tensor
    right: Tensor
    images: Tensor


class StepAbandoned(Exception):
    """A step was ended before the optimizer changed the weights."""


@dataclass(frozen=True)
class Trainer:
    """A network with its optimizer.

    Attributes:
        model: the network, on its device.
        optimizer: SGD or AdamW; every parameter has its state from the start, so that it always has the same shape.
        execution: how a step is executed.
        recipe: fitted to the dataset.
        forward: ``model``, compiled or not.
        scale: factor of the pixels, ``(1, channels, 1, 1)``.
        shift: added to the scaled pixels, ``(1, channels, 1, 1)``.
        average: exponential moving average of weights and statistics, if the recipe has one.
        gradients: adds up gradients over the processes that train together; None with one process.
        class_weights: of the images of each class in the loss, ``(classes,)`` float32; None if all are 1.
        depth: leaves residual blocks out, if the recipe says so.
        scaling: of the loss in float16; None in other precisions.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    execution: Execution
    recipe: Recipe
    forward: Callable[[Tensor], Tensor]
    scale: Tensor
    shift: Tensor
    average: AveragedModel | None = None
    gradients: GradientSum | None = None
    class_weights: Tensor | None = None
    depth: StochasticDepth | None = None
    scaling: LossScale | None = None

    def step(self, batch: Batch, rate: float, at: tuple[int, int] = (0, 0)) -> StepResult:
        """Run one training step with this rate of the head.

        With several processes the batch is the share of this one, and the result is of all processes.

        In float16, a step whose gradients are not finite leaves the weights as they are.

        Of mixed images, a prediction is correct if it is the label with the larger share.

        Args:
            batch: of two images or more.
            rate: learning rate of the head.
            at: epoch and step, counted from 0; random numbers of the step are a function of them and of the seed.

        Raises:
            ProcessLost: another process has ended.
            StepAbandoned: a hook of the network has raised it, in this process or in another. The weights and the state
                of the optimizer are as before; statistics of batch norm may not be.
            UsageError: the batch does not fit into GPU memory.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        parts = self.parts(batch) if self.can_use(batch) else []
        whole = self.recipe.batch if self.gradients else len(batch.labels)
        # The last one is the number of processes that have abandoned the step.
        figures, first = torch.zeros(4, dtype=torch.float64, device=self.execution.device), 0
        self.optimizer.zero_grad(set_to_none=True)
        try:
            try:
                for number, part in enumerate(parts, start=1):
                    if self.gradients:
                        self.gradients.active = number == len(parts)
                    with self.depth.applied(at, first, len(part.labels)) if self.depth else contextlib.nullcontext():
                        figures[:3] += self._backward(part, len(part.labels) / whole, at)
                    first += len(part.labels)
            except StepAbandoned:
                if not self.gradients:
                    raise
                figures[3] = 1  # the others wait for the sums
            if self.gradients:
                figures = self.gradients.finish(figures, whole)
                if self.execution.device == "cpu" and figures[3]:
                    raise StepAbandoned
            if self.scaling:
                self.scaling.step(self.optimizer)
            else:
                self.optimizer.step()
        except torch.OutOfMemoryError:
            raise UsageError(
                f"a batch of {len(batch.labels)} images does not fit into GPU memory: give --micro-batch, or a smaller "
                "--batch-size"
            ) from None
        images, loss_sum, right = figures[:3]
        return StepResult(loss_sum / images.clamp(min=1), right, images)

    def parts(self, batch: Batch) -> list[Batch]:
        """Return the batch in parts of nearly equal size, of as many images as the execution processes at a time.

        Processes that share the statistics of batch norm have equally many parts, of which some may have no images.
        """
        most, processes = self.execution.micro_batch, self.execution.processes or 1
        if most is None:
            return [batch]
        count = math.ceil(math.ceil(self.recipe.batch / processes) / most)
        if not (self.execution.sync_bn and self.execution.processes):
            count = min(count, len(batch.labels) // 2)  # batch norm has no statistics of a single image
        tensors = (torch.tensor_split(each, count) for each in (batch.pixels, batch.shifts, batch.labels))
        return [batch._replace(pixels=part[0], shifts=part[1], labels=part[2]) for part in zip(*tensors, strict=True)]

    def can_use(self, batch: Batch) -> bool:
        """Tell whether the network can be trained on the batch: batch norm has no statistics of a single image.

        If the statistics are those of several processes, each of them has to take part.
        """
        return len(batch.labels) > 1 or bool(self.execution.sync_bn and self.execution.processes)

    def _backward(self, batch: Batch, share: float, at: tuple[int, int]) -> Tensor:
        """Add to the gradients those of the mean loss of a part of a step, which is this share of the step.

        Returns:
            Number of images, sum of their losses and number of correct predictions, ``(3,)`` float64.
        """
        labels = batch.labels.to(self.execution.device, non_blocking=True)
        images = self.images(batch)
        mix = draw_mix(self.recipe, at, images.shape[3], images.shape[2])
        if mix:
            images = mix.images(images)
        kind = _TYPES.get(self.execution.precision)
        with torch.autocast(self.execution.device, kind, enabled=kind is not None):
            logits = self.forward(images).float()
        count = len(labels)
        if not count:  # this process has a part in the statistics of all
            torch.autograd.backward(logits.sum())
            return torch.zeros(3, dtype=torch.float64, device=self.execution.device)
        loss = training_loss(logits, labels, self.recipe, self.class_weights)
        if mix:  # the loss is linear in the targets
            neighbors = mix.neighbors(labels)
            other = training_loss(logits, neighbors, self.recipe, self.class_weights)
            loss = mix.share * loss + (1 - mix.share) * other
            labels = labels if mix.share >= 0.5 else neighbors
        part = loss * share
        torch.autograd.backward(self.scaling.scaled(part) if self.scaling else part)
        right = (logits.detach().argmax(1) == labels).sum()
        return torch.stack([torch.full_like(loss, count), loss.detach().double() * count, right])

    def reset(self, weights: Mapping[str, Tensor]) -> None:
        """Load weights and statistics, and set the state of the optimizer to 0; the average begins anew."""
        self.model.load_state_dict(dict(weights))
        if self.average:
            self.average.module.load_state_dict(dict(weights))
            self.average.n_averaged.zero_()
        for value in self.optimizer_state().values():
            value.zero_()
        if self.scaling:
            self.scaling.reset()

    def follow(self) -> None:
        """Let the average, if there is one, take up the weights after a step; not after one that was left out."""
        if self.average and not (self.scaling and self.scaling.skipped):
            self.average.update_parameters(self.model)

    def averaged(self) -> Trainer | None:
        """Return a trainer whose network is the average, to evaluate it; None if there is none."""
        return replace(self, model=self.average.module, average=None, gradients=None) if self.average else None

    def train_mode(self) -> None:
        """Put the network into training mode: batch norm as the recipe says."""
        self.model.train()
        if self.recipe.frozen_bn:
            for module in self.model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()

    def images(self, batch: Batch) -> Tensor:
        """Return the batch as the network's input, ``(n, channels, h, w)``, on the device."""
        if not len(batch.labels):
            return self.scale.new_zeros((0, self.scale.shape[1], _EMPTY_SIDE, _EMPTY_SIDE))
        pixels = batch.pixels.to(self.execution.device, non_blocking=True).permute(0, 3, 1, 2)
        layout = torch.channels_last if self.execution.channels_last else torch.contiguous_format
        images = pixels.to(torch.float32, memory_format=layout).mul_(self.scale).add_(self.shift)
        return images.add_(batch.shifts.to(self.execution.device, non_blocking=True)[:, :, None, None])

    def optimizer_state(self) -> dict[str, Tensor]:
        """Return the state of the optimizer: the momentum of each parameter by its name, or AdamW's.

        That is ``exp_avg.NAME``, ``exp_avg_sq.NAME`` and ``step.NAME`` of each parameter.
        """
        parameters = dict(self.model.named_parameters())
        if self.recipe.optimizer == "sgd":
            return {name: self.optimizer.state[p]["momentum_buffer"] for name, p in parameters.items()}
        return {f"{key}.{name}": self.optimizer.state[p][key] for key in _ADAMW for name, p in parameters.items()}

    def synchronize(self) -> None:
        """Wait until the device has finished."""
        if self.execution.device == "cuda":
            torch.cuda.synchronize()


def make_trainer(
    model: nn.Module,
    execution: Execution,
    recipe: Recipe,
    preprocessing: Preprocessing,
    group: ProcessGroup = ALONE,
    class_counts: Sequence[int] = (),
) -> Trainer:
    """Return a trainer with a copy of ``model`` and an optimizer whose state is 0.

    It trains together with the other processes of the group. ``class_counts`` are the training images of each class,
    which class weights need.
    """
    layout = torch.channels_last if execution.channels_last else torch.contiguous_format
    model = copy.deepcopy(model).to(execution.device).to(memory_format=layout)  # type: ignore[call-overload]
    if execution.sync_bn and group.size > 1:
        synchronize_batch_norm(model)
    optimizer = _optimizer(model, recipe)
    scale, shift = (
        torch.from_numpy(value).view(1, -1, 1, 1).to(execution.device) for value in scale_and_shift(preprocessing)
    )
    forward = torch.compile(model) if execution.compiled else model
    average = None
    if recipe.ema_decay:
        average = _moving_average(model, recipe.ema_decay)
    gradients = GradientSum(model) if group.size > 1 else None
    weights = class_weights(recipe, class_counts)
    trainer = Trainer(
        model,
        optimizer,
        execution,
        recipe,
        forward,
        scale,
        shift,
        average,
        gradients,
        None if weights is None else torch.from_numpy(weights).to(execution.device),
        stochastic_depth(model, recipe, group),
        LossScale(execution.device) if execution.precision == "fp16" else None,
    )
    trainer.train_mode()
    return trainer


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the optimizer of a recipe, with the state of each parameter."""
    groups, parameters = _parameter_groups(model, recipe), list(model.parameters())
    optimizer: torch.optim.Optimizer
    if recipe.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, lr=recipe.lr, momentum=MOMENTUM, nesterov=True, fused=True)
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=BETAS, fused=True)
    for parameter in parameters:
        step = torch.zeros((), dtype=torch.float32, device=parameter.device)
        moments = torch.zeros_like(parameter), torch.zeros_like(parameter)
        optimizer.state[parameter].update(zip(_ADAMW, (*moments, step), strict=True))
    return optimizer


def _moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """Return an exponential moving average, whose decay is lower at its start: it forgets the first weights.

    After n updates it is (1 + n) / (10 + n), if that is less, as in TensorFlow's ExponentialMovingAverage.
    """

    def update(averaged: Any, current: Any, _: Any) -> None:
        count = int(average.n_averaged)  # of the average itself: what is passed here is on the GPU
        get_ema_multi_avg_fn(min(decay, (1 + count) / (10 + count)))(averaged, current, _)  # type: ignore[no-untyped-call]

    average = AveragedModel(model, multi_avg_fn=update, use_buffers=True)
    return average


def _parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Return the parameters in groups by their share of the learning rate and their weight decay.

    Parameters of one dimension are those of batch norm, and biases.
    """
    parts = list(dict.fromkeys(name.partition(".")[0] for name, _ in model.named_parameters()))  # stem, s1, ..., head
    body = [part for part in parts if part != HEAD.rstrip(".")]
    shares = {part: recipe.body_lr * recipe.layer_decay**depth for depth, part in enumerate(reversed(body))}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        decay = recipe.weight_decay if recipe.decay_norms or parameter.ndim > 1 else 0.0
        groups.setdefault((shares.get(name.partition(".")[0], 1.0), decay), []).append(parameter)
    return [
        {"params": parameters, "share": share, "weight_decay": decay} for (share, decay), parameters in groups.items()
    ]
