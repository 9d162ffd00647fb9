"""Counts the operations of a network with fvcore's tracer and compares the result with the closed form.

The quantities are:

* ``macs`` - as in the paper and in pycls: multiply-adds of convolutions and the final linear layer, plus one for each
  output element of those with a bias (the two convolutions of SE and the linear layer);
* ``fvcore_total`` - ``FlopCountAnalysis.total()``: without biases, but with two for each element of a batch norm and
  one for each element that the final pooling reads;
* ``activations`` - number of output elements of convolutions and the linear layer, for one image.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from regnet_deploy.bundle.measurements import ClosedForm, ComplexityRecord, OperatorCount, StageCount
from regnet_deploy.errors import ProofError, require
from regnet_deploy.space.complexity import Cost, network_complexity
from regnet_deploy.space.network import Network

#: Operators that neither the paper nor fvcore counts: additions of the shortcuts and, in SE, mean, sigmoid and product.
_UNCOUNTED: dict[str, set[str]] = {
    "x": {"aten::add"},
    "y": {"aten::add", "aten::mul", "aten::sigmoid", "aten::mean"},
    "v": set(),
    "vr": {"aten::add"},
}
_WITHOUT_ACTIVATIONS = {"aten::batch_norm", "aten::adaptive_avg_pool2d"}

#: Name of a module and size of its kernel -> name of its row; the convolutions of SE have a common row.
_CONVOLUTIONS = {
    ("conv", 3): "3x3 stem",
    ("a", 1): "1x1 a",
    ("a", 3): "3x3 a",  # blocks V and VR
    ("b", 3): "3x3 b (grouped)",
    ("c", 1): "1x1 c",
    ("proj", 1): "1x1 projection",
}
_SE = "squeeze-excitation"


class Count(NamedTuple):
    """MACs as in the paper, fvcore's own total, parameters and activations."""

    macs: int = 0
    fvcore_total: int = 0
    parameters: int = 0
    activations: int = 0

    def plus(self, other: Count) -> Count:
        """Add field by field."""
        return Count(*(a + b for a, b in zip(self, other, strict=True)))


@dataclass(frozen=True)
class Counts:
    """Counts for one image of this resolution: total, by stage, by operator, and by the closed form."""

    resolution: int
    classes: int
    total: Count
    stages: dict[str, Count]
    operators: dict[str, Count]
    closed_form: dict[str, Cost]

    def differences(self) -> list[str]:
        """Return one phrase for each count of total and stages that differs from the closed form."""
        counted = {"total": self.total, **self.stages}
        return [
            f"{quantity} of {where}: counted {getattr(counted[where], quantity):,}, closed form {int(value):,}"
            for where, cost in self.closed_form.items()
            for quantity, value in cost._asdict().items()
            if getattr(counted[where], quantity) != value
        ]

    def record(self) -> ComplexityRecord:
        """Return the record of the counts."""
        closed = {quantity: int(value) for quantity, value in self.closed_form["total"]._asdict().items()}
        return ComplexityRecord(
            resolution=self.resolution,
            classes=self.classes,
            **self.total._asdict(),
            closed_form=ClosedForm(**closed, equal=not self.differences()),
            stages=tuple(StageCount(stage=name, **count._asdict()) for name, count in self.stages.items()),
            operators=tuple(OperatorCount(operator=name, **count._asdict()) for name, count in self.operators.items()),
        )


def count(model: nn.Module, network: Network, resolution: int, classes: int) -> Counts:
    """Count a model's operations with fvcore and check them against the closed form, in total and by stage.

    Args:
        model: the AnyNet of ``network``; it is not changed.
        network: its stages.
        resolution: height and width of the input, pixels.
        classes: number of its outputs.

    Raises:
        MissingExtra: fvcore is not installed.
        ProofError: fvcore found an operator that no AnyNet has, or the closed form gives other numbers.
    """
    leaves = _count_leaves(copy.deepcopy(model).eval(), network, resolution)
    total, stages = Count(), dict[str, Count]()
    operators = dict.fromkeys([*_CONVOLUTIONS.values(), _SE, "linear"], Count())  # in the order of the table
    for (name, operator), cost in leaves.items():
        stage = name.partition(".")[0]
        total = total.plus(cost)
        stages[stage] = stages.get(stage, Count()).plus(cost)
        operators[operator] = operators.get(operator, Count()).plus(cost)
    closed = network_complexity(network, resolution, classes)
    by_stage = {f"s{i}": cost for i, cost in enumerate(closed.stages, start=1)}
    counts = Counts(
        resolution,
        classes,
        total,
        stages,
        {name: cost for name, cost in operators.items() if cost != Count()},
        {"total": closed.total, "stem": closed.stem, **by_stage, "head": closed.head},
    )
    if counts.differences():
        raise ProofError(
            f"fvcore and the closed form disagree at {resolution} pixels: {'; '.join(counts.differences())}"
        )
    return counts


def _count_leaves(model: nn.Module, network: Network, resolution: int) -> dict[tuple[str, str], Count]:
    """Return the count of every module without children, by its name and operator."""
    with _without_jit_deprecations():
        fvcore = require("fvcore.nn", "profile")
        image = torch.zeros(1, network.input_channels, resolution, resolution, device=next(model.parameters()).device)
        flops, activations = fvcore.FlopCountAnalysis(model, image), fvcore.ActivationCountAnalysis(model, image)
        for analysis in (flops, activations):
            # fvcore logs operators that it does not count; _check_unsupported checks the same list.
            analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        total = flops.total()
        by_module, outputs = flops.by_module_and_operator(), activations.by_module()
    _check_unsupported(flops, _UNCOUNTED[network.family])
    _check_unsupported(activations, _UNCOUNTED[network.family] | _WITHOUT_ACTIVATIONS)
    leaves = {}
    for name, module in model.named_modules():
        if any(module.children()):
            continue
        counted = by_module[name]
        biases = outputs[name] if getattr(module, "bias", None) is not None else 0
        leaves[name, _operator(name, module)] = Count(
            macs=counted["conv"] + counted["linear"] + biases,
            fvcore_total=sum(counted.values()),
            parameters=sum(parameter.numel() for parameter in module.parameters()),
            activations=outputs[name],
        )
    if sum(cost.fvcore_total for cost in leaves.values()) != total:
        raise ProofError(f"fvcore counts {total:,} in the network but the counts of its modules have another sum")
    return leaves


def _operator(name: str, module: nn.Module) -> str:
    if isinstance(module, nn.Conv2d):
        return _CONVOLUTIONS.get((name.rpartition(".")[2], module.kernel_size[0]), _SE)
    if isinstance(module, nn.Linear):
        return "linear"
    return {nn.BatchNorm2d: "batch norm", nn.AdaptiveAvgPool2d: "pooling"}.get(type(module), "activation function")


def _check_unsupported(analysis: Any, known: set[str]) -> None:
    unknown = set(analysis.unsupported_ops()) - known
    missing = known - set(analysis.unsupported_ops())
    if unknown or missing:
        what = f"cannot count {', '.join(sorted(unknown))}" if unknown else f"found no {', '.join(sorted(missing))}"
        raise ProofError(f"fvcore {what} in this network, so its totals are not those of an AnyNet")


@contextmanager
def _without_jit_deprecations() -> Iterator[None]:
    """Suppress torch's deprecation warnings for TorchScript, which fvcore uses and has no replacement for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", DeprecationWarning)
        yield
