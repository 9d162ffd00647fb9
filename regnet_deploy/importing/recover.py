"""Recovers the network from the names and shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from regnet_deploy.errors import DataError, RegnetDeployError
from regnet_deploy.models.anynet import AnyNet
from regnet_deploy.space.network import SE_RATIO, Network

_BLOCK = re.compile(r"s(\d+)\.b(\d+)\.")
#: Tensors of layers; others are missing or superfluous, which the comparison with the network tells.
_CHECKED = (".weight", ".bias", ".running_mean", ".running_var")
#: Number of tensors that a message names.
_NAMED = 5


def recover_network(tensors: Mapping[str, Tensor], stem_stride: int = 2) -> Network:
    """Return the network that has these tensors; names are those of this program.

    Args:
        tensors: weights and batch norm statistics.
        stem_stride: of the stem, which the weights do not tell.

    Raises:
        DataError: the numbers of stages and blocks are not contiguous, or names or shapes are not those of a RegNet;
            the message names the tensors.
    """
    depths = _depths(tensors)
    _check_kinds(tensors)
    try:
        network = _network(tensors, depths, stem_stride)
    except KeyError as missing:
        raise DataError(
            f"a RegNet has a tensor {missing.args[0]}, and the weights do not: they are not complete"
        ) from None
    except RegnetDeployError as error:
        raise DataError(f"the shapes fit no RegNet: {error}") from None
    check_tensors(tensors, network)
    return network


def classes_of(tensors: Mapping[str, Tensor]) -> int:
    """Return the number of outputs."""
    return len(tensors["head.fc.weight"])


def check_tensors(tensors: Mapping[str, Tensor], network: Network) -> None:
    """Check that names and shapes are those of a network; ``num_batches_tracked`` may be missing.

    Raises:
        DataError: a tensor is missing, has another shape, or is not of the network; the first five are named.
    """
    classes = len(tensors["head.fc.weight"]) if "head.fc.weight" in tensors else 1
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in AnyNet(network, classes).state_dict().items()}
    counters = {name for name in expected if name.endswith("num_batches_tracked")}
    missing = [name for name in expected if name not in tensors and name not in counters]
    extra = [name for name in tensors if name not in expected]
    shaped = [
        f"{name} {_shape(tensors[name].shape)} in place of {_shape(shape)}"
        for name, shape in expected.items()
        if name in tensors and name not in counters and tuple(tensors[name].shape) != shape
    ]
    for found, what in ((shaped, "have other shapes"), (missing, "are missing"), (extra, "are of no RegNet")):
        if found:
            raise DataError(f"the weights fit no RegNet: {_tensors(len(found), what)}: {_first(found)}")


def _check_kinds(tensors: Mapping[str, Tensor]) -> None:
    """Check the number of dimensions and the type of each tensor, on which the recovery relies, and the variances."""
    named = {name: tensor for name, tensor in tensors.items() if name.endswith(_CHECKED)}
    shaped = [
        f"{name} {_shape(tensor.shape)}"
        for name, tensor in named.items()
        if tensor.ndim != _dimensions(name) or 0 in tensor.shape
    ]
    integers = [
        f"{name} {str(tensor.dtype).removeprefix('torch.')}"
        for name, tensor in named.items()
        if not tensor.is_floating_point()
    ]
    negative = [name for name, tensor in named.items() if name.endswith("running_var") and bool((tensor < 0).any())]
    for found, what in (
        (shaped, "have shapes that are not those of its layers"),
        (integers, "have integers (weights that were quantized cannot be imported)"),
        (negative, "have variances below 0"),
    ):
        if found:
            raise DataError(f"the weights fit no RegNet: {_tensors(len(found), what)}: {_first(found)}")


def _dimensions(name: str) -> int:
    """Return the number of dimensions of a tensor of a RegNet."""
    module, _, tensor = name.rpartition(".")
    if tensor != "weight" or module.endswith("bn"):
        return 1
    return 2 if module == "head.fc" else 4


def _depths(tensors: Mapping[str, Tensor]) -> list[int]:
    blocks = {(int(found[1]), int(found[2])): name for name in tensors if (found := _BLOCK.match(name))}
    if not blocks or "stem.conv.weight" not in tensors:
        raise DataError(f"the weights have no stem or no stages of blocks: {_first(list(tensors))}")
    stages = sorted({stage for stage, _ in blocks})
    if stages != list(range(1, len(stages) + 1)):
        raise DataError(
            f"the stages are numbered {', '.join(map(str, stages))}, not from 1 without gaps: weights are missing"
        )
    depths = []
    for stage in stages:
        numbers = sorted(block for of, block in blocks if of == stage)
        if numbers != list(range(1, len(numbers) + 1)):
            raise DataError(
                f"the blocks of stage {stage} are numbered {', '.join(map(str, numbers))}, not from 1 without gaps: "
                "weights are missing"
            )
        depths.append(len(numbers))
    return depths


def _network(tensors: Mapping[str, Tensor], depths: Sequence[int], stem_stride: int) -> Network:
    stem = tensors["stem.conv.weight"]
    stem_width, channels = stem.shape[:2]
    if not any(".f.b." in name for name in tensors):  # blocks of one 3x3 convolution
        block = "vr" if any(".f.a." in name for name in tensors) else "v"
        first = "f.a" if block == "vr" else "a"
        plain = tuple(len(tensors[f"s{i}.b1.{first}.weight"]) for i in range(1, len(depths) + 1))
        ones = (1.0,) * len(depths)
        return Network(tuple(depths), plain, plain, ones, 0.0, stem_stride, stem_width, block, channels)
    widths: list[int] = []
    groups: list[int] = []
    ratios: list[float] = []
    squeezed: list[tuple[int, int]] = []
    width_in = stem_width
    for i, depth in enumerate(depths, start=1):
        if f"s{i}.b1.proj.weight" not in tensors:
            raise DataError(
                f"the first block of stage {i} has no projection in its shortcut, as the inverted bottlenecks of a "
                "RegNetZ: this kind of network cannot be imported"
            )
        width, inner = len(tensors[f"s{i}.b1.f.c.weight"]), len(tensors[f"s{i}.b1.f.a.weight"])
        widths.append(width)
        groups.append(tensors[f"s{i}.b1.f.b.weight"].shape[1])
        ratios.append(width / inner)
        for j in range(1, depth + 1):
            name = f"s{i}.b{j}.f.se.f_ex.0.weight"
            if name in tensors:
                squeezed.append((width_in, len(tensors[name])))
            width_in = width
    ratio = _se_ratio(squeezed)
    stages = tuple(depths), tuple(widths), tuple(groups), tuple(ratios)
    return Network(*stages, ratio, stem_stride, stem_width, input_channels=channels)


def _se_ratio(squeezed: Sequence[tuple[int, int]]) -> float:
    """Return the ratio of which the squeezed widths follow from the input widths of the blocks; 0 without any.

    Args:
        squeezed: (input width, squeezed width) of each block.
    """
    if not squeezed or all(round(SE_RATIO * width) == inner for width, inner in squeezed):
        return SE_RATIO if squeezed else 0.0
    low = max((inner - 0.5) / width for width, inner in squeezed)
    high = min((inner + 0.5) / width for width, inner in squeezed)
    if low > high:
        listed = ", ".join(f"{inner} of {width}" for width, inner in squeezed[:_NAMED])
        raise DataError(f"the squeezed widths of squeeze-and-excitation follow no one ratio: {listed}")
    for denominator in range(1, 65):
        numerator = round((low + high) / 2 * denominator)
        ratio = numerator / denominator
        if numerator and all(round(ratio * width) == inner for width, inner in squeezed):
            return ratio
    return (low + high) / 2


def _tensors(count: int, what: str) -> str:
    """Return ``2 tensors are missing``, or ``1 tensor is missing``."""
    if count > 1:
        return f"{count} tensors {what}"
    verb, rest = what.split(" ", 1)
    return f"1 tensor {'is' if verb == 'are' else 'has'} {rest}"


def _first(names: Sequence[str]) -> str:
    more = f", and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _shape(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, shape))})"
